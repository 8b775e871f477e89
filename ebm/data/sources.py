"""Where images come from: each source is a function that returns a `Source`."""
from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from ebm.accepted import whole
from ebm.arrays import array_in

Pixels = NDArray[np.uint8]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """``count`` uint8 (H, W, 3) images of one size, produced anew by each call of ``images``; ``name`` identifies them."""

    name: str
    count: int
    images: Callable[[], Iterator[Pixels]]
    notes: list[str] = field(default_factory=list)  # what became of the images, once they have all been produced


class UnreadableError(ValueError):
    """Files that hold no readable image; the message names the first ten of them."""

    def __init__(self, faults: list[ValueError], *, count: int) -> None:
        shown = [str(fault) for fault in faults[:10]]
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        heading = [f"{len(faults)} of {count} pictures can't be read:"] if len(faults) > 1 else []
        super().__init__("\n  ".join([*heading, *shown, *more]))


def short_digest(content: bytes) -> str:
    """Eight hexadecimal digits that change with the content, by which a source's name shows that the source has changed."""
    return hashlib.blake2b(content, digest_size=4).hexdigest()


def cifar10(root: str | Path, *, train: bool, download: bool) -> Source:
    """CIFAR-10 (Krizhevsky 2009), 50,000 training or 10,000 test images of 32 x 32, checked by MD5.

    ``root`` is the folder that holds (or is) ``cifar-10-batches-py``, or where ``download`` puts it. Asking for its
    images raises FileNotFoundError if they are not there and can't be downloaded.
    """
    root = Path(root).parent if Path(root).name == "cifar-10-batches-py" else Path(root)

    def images() -> Iterator[Pixels]:
        from torchvision.datasets import CIFAR10

        try:
            with warnings.catch_warnings():  # numpy: the published pickles give a flag as 0 that is now a bool
                warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                data = CIFAR10(str(root), train=train, download=download).data
        except (OSError, RuntimeError) as error:
            why = f"the download failed ({error})" if download else "downloading was not allowed"
            raise FileNotFoundError(f"{root}: no intact CIFAR-10 there, and {why}; "
                                    "give the folder that holds cifar-10-batches-py") from error
        yield from data

    return Source(name=f"cifar10 {'train' if train else 'test'}", count=50_000 if train else 10_000, images=images)


def open_picture(file: Path) -> Image.Image:
    """The file's picture as RGB, turned as its EXIF data say; raises ValueError, naming the file, if it cannot be read."""
    return read_picture(file)[0]


def read_picture(file: Path) -> tuple[Image.Image, bool]:
    """The same, and whether transparency was dropped."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel (mode {image.mode}); convert it first, with ImageMagick by "
                                 f"magick {file.name} -depth 8 PNG24:{file.stem}-8bit.png")
            upright = ImageOps.exif_transpose(image)
            alpha = "A" in upright.mode or "transparency" in upright.info
            transparent = alpha and any(upright.convert("RGBA").getchannel("A").histogram()[:255])
            return upright.convert("RGB"), transparent
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a readable image ({error})") from error


def load_square(file: Path, *, size: int) -> Pixels:
    """The file's central square as (size, size, 3), resized only if needed; raises as `open_picture` does."""
    return square(open_picture(file), size=size)


def square(image: Image.Image, *, size: int) -> Pixels:
    """The picture's central square as (size, size, 3), resized only if needed."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    if edge != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)  # Pillow widens the filter when it shrinks
    return np.array(image)


def picture_files(path: Path) -> list[Path]:
    """Every png, jpg, jpeg, webp and bmp file under ``path``, in the order of their paths.

    Pictures of other kinds are left out, with a warning that counts them. Raises FileNotFoundError where there is no such
    folder, ValueError where it holds no file.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    every = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    files = sorted((file for file in every if file.suffix.lower() in SUFFIXES),
                   key=lambda file: file.relative_to(path).as_posix())
    kinds = {*Image.registered_extensions()} - SUFFIXES
    if others := Counter(suffix for file in every if (suffix := file.suffix.lower()) in kinds):
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        warnings.warn(f"{path}: {ignored} left out; {', '.join(sorted(SUFFIXES))} are read", stacklevel=2)
    if not files:
        raise ValueError(f"{path}: holds no {', '.join(sorted(SUFFIXES))} file")
    return files


def folder(path: str | Path, *, size: int, skip_unreadable: bool = False) -> Source:
    """The `picture_files` under ``path`` as size x size RGB; transparency is dropped.

    Raises as `picture_files` does, and ValueError if ``size`` is below 1. Unreadable files raise UnreadableError when the first
    is reached and the others have been looked at, or, with ``skip_unreadable``, are left out and counted in the name.
    """
    path = Path(path)
    whole(1, size=size)
    files, skipped = picture_files(path), 0
    listing = "".join(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n" for file in files)
    if skip_unreadable:
        faults = unreadable(tqdm(files, desc="check", unit="img", disable=None, leave=False))
        bad, skipped = {file for file, _ in faults}, len(faults)
        if skipped == len(files):
            raise UnreadableError([fault for _, fault in faults], count=len(files))
        files = [file for file in files if file not in bad]
    notes: list[str] = []

    def images() -> Iterator[Pixels]:
        enlarged = transparent = 0
        for index, file in enumerate(files):
            try:
                image, had_alpha = read_picture(file)
            except ValueError:
                faults = unreadable(files[index:])
                raise UnreadableError([fault for _, fault in faults], count=len(files)) from None
            enlarged += min(image.size) < size
            transparent += had_alpha
            yield square(image, size=size)
        notes[:] = [f"{count} of {len(files)} pictures {what}" for count, what in (
            (enlarged, f"are smaller than {size} pixels and were enlarged"), (transparent, "lost their transparency")) if count]

    name = f"folder {path.resolve().name} at {size} pixels, listing {short_digest(listing.encode())}"
    return Source(name=name + (f", {skipped} unreadable left out" if skipped else ""), count=len(files), images=images,
                  notes=notes)


def unreadable(files: Iterable[Path]) -> list[tuple[Path, ValueError]]:
    """Those of the files that hold no readable image, with the reasons."""
    found = []
    for file in files:
        try:
            read_picture(file)
        except ValueError as fault:
            found.append((file, fault))
    return found


def npz(path: str | Path, *, key: str) -> Source:
    """The uint8 array ``key`` of an .npz file: (N, H, W, 3), or grey as (N, H, W, 1) or (N, H, W).

    Raises FileNotFoundError, or ValueError if the array is missing (with a list of the file's arrays), of another kind or
    damaged.
    """
    path = Path(path)
    _, array = array_in(path, key)
    shape = f"{array.dtype} {array.shape}"
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"{path}: array {key!r} is {shape}; uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W) is accepted")
    images: Pixels = np.broadcast_to(array, (*array.shape[:3], 3))
    return Source(name=f"npz {path.name}:{key}, content {short_digest(array.tobytes())}", count=len(images),
                  images=lambda: iter(images))
