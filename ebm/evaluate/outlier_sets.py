"""Out-of-distribution images: sets on disk, and synthetic ones that need no files; all are uint8."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ebm.data.beton import Beton
from ebm.data.shapes import shapes as embedded
from ebm.data.sources import npz, open_picture, picture_files
from ebm.randomness import generator, seed_of

Shape = tuple[int, int, int]


def constant(images: Tensor, *, seed: int) -> Tensor:
    """Images of one random colour each, of the images' shape (n, C, H, W)."""
    colours = torch.randint(256, (*images.shape[:2], 1, 1), generator=generator("cpu", seed, "constant"), dtype=torch.uint8)
    return colours.expand(images.shape).contiguous()


def uniform(images: Tensor, *, seed: int) -> Tensor:
    """Independent uniform pixels, (n, C, H, W)."""
    return torch.randint(256, images.shape, generator=generator("cpu", seed, "uniform"), dtype=torch.uint8)


def gaussian(images: Tensor, *, seed: int) -> Tensor:
    """White noise with the images' mean and standard deviation, (n, C, H, W)."""
    noise = torch.randn(images.shape, generator=generator("cpu", seed, "gaussian"))
    return (images.float().mean() + images.float().std() * noise).round().clamp(0, 255).to(torch.uint8)


def shuffled(images: Tensor, *, seed: int) -> Tensor:
    """The images with their pixels in random order, (n, C, H, W)."""
    places = torch.rand(len(images), 1, images[0, 0].numel(), generator=generator("cpu", seed, "shuffled")).argsort(2)
    return images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).view(images.shape)


def shapes(images: Tensor, *, seed: int) -> Tensor:
    """The coloured shapes of ebm.data.shapes at the images' size, (n, 3, H, W)."""
    count, _, height, width = images.shape
    source = embedded(count=count, size=max(height, width, 8), seed=seed_of(seed, "outliers"))
    return torch.from_numpy(np.stack([*source.images()])).permute(0, 3, 1, 2)[:, :, :height, :width].contiguous()


def blurred(images: Tensor, *, seed: int) -> Tensor:
    """The images at a quarter of their height and width, enlarged again, (n, C, H, W)."""
    small = F.adaptive_avg_pool2d(images.float(), (-(-images.shape[2] // 4), -(-images.shape[3] // 4)))
    return F.interpolate(small, images.shape[2:], mode="bilinear").round().to(torch.uint8)


def inverted(images: Tensor, *, seed: int) -> Tensor:
    """The images' negatives, (n, C, H, W)."""
    return 255 - images


MADE: dict[str, Callable[..., Tensor]] = {made.__name__: made for made in (
    constant, uniform, gaussian, shuffled, shapes, blurred, inverted)}
STANDARD: dict[str, tuple[str, dict[str, Any]]] = {  # name: (class in torchvision.datasets, its arguments)
    "svhn": ("SVHN", {"split": "test"}),
    "cifar100": ("CIFAR100", {"train": False}),
    "textures": ("DTD", {"split": "test"}),
}


def load_standard(name: str, root: str | Path, *, count: int, shape: Shape, seed: int) -> Tensor:
    """At most ``count`` images of a published test set, (n, *shape) uint8, fitted to ``shape`` (C, H, W).

    Nothing is downloaded: raises FileNotFoundError, with the command that downloads it, unless torchvision finds it intact in
    the folder ``root``. The selection depends on (seed, name), as DTD is sorted by class.
    """
    from torchvision import datasets  # here: it takes a second and 160 MB

    kind, arguments = STANDARD[name]
    told = ", ".join([repr(str(root)), *(f"{key}={value!r}" for key, value in arguments.items()), "download=True"])
    try:
        with warnings.catch_warnings():  # numpy: published pickles give a flag as 0 that is now a bool
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            data = getattr(datasets, kind)(str(root), **arguments, download=False)
    except ImportError as error:
        raise FileNotFoundError(f"{name}: {error.name}: not installed; it needs pip install -e '.[evaluate]'") from error
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{name}: not in {root}; on a node with a network: python -c \"from torchvision.datasets "
                                f"import {kind}; {kind}({told})\"") from error
    chosen = torch.randperm(len(data), generator=generator("cpu", seed, name))[:count].sort().values
    return torch.stack([fit(data[int(i)][0], shape) for i in chosen])


def read_set(path: str | Path, *, count: int, shape: Shape, seed: int) -> Tensor:
    """At most ``count`` images of a .beton, an .npz with `images` or a folder of pictures, (n, *shape) uint8, fitted to
    ``shape`` (C, H, W); the selection depends on the seed. Raises FileNotFoundError or ValueError where there are none."""
    path = Path(path)
    source = generator("cpu", seed, "outliers", path.name)
    if path.suffix == ".beton":
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such data file; make it with tools/prepare_data.py")
        beton = Beton.open(path)
        chosen = torch.randperm(beton.count, generator=source)[:count].sort().values
        return torch.stack([fit(Image.fromarray(pixels), shape) for pixels in beton.rows(chosen.numpy())])
    if path.suffix == ".npz":
        images = npz(path, key="images")
        wanted = {*torch.randperm(images.count, generator=source)[:count].tolist()}
        return torch.stack([fit(Image.fromarray(np.asarray(one)), shape)
                            for i, one in enumerate(images.images()) if i in wanted])
    files = picture_files(path)
    chosen = torch.randperm(len(files), generator=source)[:count].sort().values
    return torch.stack([fit(open_picture(files[i]), shape) for i in chosen.tolist()])


def fit(image: Image.Image, shape: Shape) -> Tensor:
    """The picture cropped about its centre to the proportions of ``shape`` (3, H, W) and resized if needed, uint8."""
    _, height, width = shape
    image = image.convert("RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
