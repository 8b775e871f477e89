"""Sets of real images that samples are compared with, identified by the hash of their images, and files of their features."""
from __future__ import annotations

import functools
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ebm.arrays import MissingArrayError, array_in
from ebm.data import Dataset
from ebm.data.sources import folder
from ebm.files import write_atomically
from ebm.randomness import generator

Pixels = Callable[[NDArray[np.int64]], Tensor]
Rows = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Real images; ``pixels`` gives those at some indices, uint8 (n, 3, H, W) on the CPU."""

    name: str
    sha256: str
    count: int
    shape: tuple[int, int, int]
    place: Path  # the folder that holds it
    pixels: Pixels

    def choice(self, count: int | None, *, seed: int) -> NDArray[np.int64]:
        """Indices of ``count`` of the images, drawn without replacement, in order; all for None.

        Drawn at random, as the first may all be of one class. Raises ValueError where there are fewer.
        """
        if count is None or count == self.count:
            return np.arange(self.count)
        if not 0 < count < self.count:
            raise ValueError(f"{count!r} is not accepted; {self.name} has {self.count} images")
        chosen = torch.randperm(self.count, generator=generator("cpu", seed, "reference", self.sha256))[:count]
        return chosen.sort().values.numpy()


def dataset_images(data: Dataset) -> ImageSet:
    """The images of a `.beton` file, under its manifest's name and hash."""
    return ImageSet(name=data.manifest.source, sha256=data.manifest.sha256, count=data.count, shape=data.shape,
                    place=data.path.parent, pixels=data.pixels)


@functools.lru_cache(maxsize=2)
def read_image_set(path: str, *, size: int) -> ImageSet:
    """The images at ``path``: a .beton, an .npz (its only array, or FILE:KEY), or a folder, cropped and resized to ``size``.

    Raises FileNotFoundError, or ValueError for anything but uint8 images of three channels.
    """
    if path.endswith(".beton"):
        return dataset_images(Dataset.open(path))
    place, _, key = path.partition(".npz:")
    if key or path.endswith(".npz"):
        file = Path(f"{place}.npz" if key else path)
        return array_images(read_npz(file, key), name=f"npz {file.name}", place=file.parent)
    source = folder(path, size=size)
    bar = tqdm(source.images(), total=source.count, desc="reference", unit="img", leave=False, dynamic_ncols=True)
    return array_images(np.stack(list(bar)), name=source.name, place=Path(path).parent)


def read_npz(file: Path, key: str) -> NDArray[np.uint8]:
    """One array of an .npz, uint8 (N, H, W, 3); raises FileNotFoundError, or ValueError for anything else."""
    try:
        name, images = array_in(file, key)
    except MissingArrayError as error:
        raise ValueError(f"{error}; name one as FILE:KEY") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"{file}: {name} is {images.dtype} {images.shape}; uint8 (N, H, W, 3) is accepted")
    return np.asarray(images)


def array_images(images: NDArray[np.uint8], *, name: str, place: Path) -> ImageSet:
    """Images (N, H, W, 3) in memory, under the hash of their pixels."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    count, height, width, channels = images.shape
    return ImageSet(name=name, sha256=digest.hexdigest(), count=count, shape=(channels, height, width), place=place,
                    pixels=lambda indices: torch.from_numpy(images[indices]).permute(0, 3, 1, 2).contiguous())


def load_features(path: Path, *, count: int) -> Rows | None:
    """The rows that `save_features` wrote, with ``count`` finite features; None where they are absent or damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:  # numpy leaves damaged files open
            rows = {key: content[key] for key in content.files}  # reads all, which verifies the checksums
        whole = rows["features"].shape[0] == count and np.isfinite(rows["features"]).all()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return rows if whole else None


def save_features(path: Path, rows: Rows) -> None:
    """Writes features and their statistics atomically; raises OSError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **rows)  # type: ignore[arg-type]  # numpy's stub takes a name for its own flag
    write_atomically(path, buffer.getbuffer())
