"""The images and masks that users give to tasks, read as the training data were; refusals name the key."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ebm.data import sources
from launch.config.build import naming

CHANNELS = 3  # the data are RGB, and so are images read here: a grey one has three equal channels


def read_images(path: str, *, size: tuple[int, int], key: str) -> Tensor:
    """The images of a picture file, a folder, or `images` in an .npz, uint8 (K, 3, H, W), where ``size`` = (H, W).

    Pictures are cropped to their central square and resized; arrays must have the size. Raises ValueError for anything else.
    """
    place, (height, width) = Path(path), size
    if not place.exists():
        raise ValueError(f"{key}: {path!r} is not accepted; there is no such file or folder")
    with naming(f"{key}: "):
        if place.suffix.lower() == ".npz":
            source = sources.npz(place, key="images")
            arrays = list(source.images())
            if arrays[0].shape[:2] != size:
                raise ValueError(f"{path} holds images of {arrays[0].shape[0]} × {arrays[0].shape[1]} pixels, which is not "
                                 f"accepted; they must be {height} × {width}")
        elif height != width:
            raise ValueError(f"{path!r} is not accepted; pictures are cropped to squares, and {height} × {width} is none: give "
                             "an .npz")
        else:
            arrays = list(sources.folder(place, size=height).images() if place.is_dir()
                          else [sources.load_square(place, size=height)])
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def read_mask(path: str, *, size: tuple[int, int], key: str) -> Tensor:
    """A picture as booleans (H, W), true where it is lighter than middle grey; raises ValueError for another size."""
    try:
        with Image.open(path) as opened:
            grey = np.asarray(opened.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{key}: {path!r} is not accepted; it must be a readable image ({error})") from error
    if grey.shape != size:
        raise ValueError(f"{key}: {path!r} has {grey.shape[0]} × {grey.shape[1]} pixels, which is not accepted; it must have "
                         f"the run's {size[0]} × {size[1]}")
    return torch.from_numpy(grey > 127)


def box_mask(box: list[int], *, size: tuple[int, int], key: str) -> Tensor:
    """[top, left, height, width] as booleans (H, W), true inside; raises ValueError unless it lies in the image."""
    if len(box) != 4 or min(box[:2]) < 0 or min(box[2:]) < 1 or any(box[i] + box[i + 2] > size[i] for i in range(2)):
        raise ValueError(f"{key}: {box!r} is not accepted; it must be [top, left, height, width] within the run's "
                         f"{size[0]} × {size[1]} pixels")
    inside = torch.zeros(size, dtype=torch.bool)
    inside[box[0]:box[0] + box[2], box[1]:box[1] + box[3]] = True
    return inside
