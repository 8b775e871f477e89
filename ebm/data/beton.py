"""FFCV's `.beton` file, format version 2, with one field of raw images of one size, written and read without FFCV.

FFCV's own writer gives out pages to its processes first come, first served, so its file differs from run to run. This one is
a function of the images alone: the same images give the same bytes, and the same hash, on every machine.
"""
from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ebm.data.layout import ALLOCATION, DESCRIPTOR, FIELD, HEADER, METADATA, RAW, RGB_IMAGE, VERSION, Layout
from ebm.data.manifest import Manifest
from ebm.files import write_atomically


class Hashed:
    """A binary file with its length and SHA-256 so far; it can only grow."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Appends ``data``."""
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)

    def pad(self, end: int) -> None:
        """Appends zeros up to byte ``end``."""
        self.write(bytes(end - self.bytes))


@contextmanager
def replacing(path: Path, *, before: Callable[[], None]) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its place when the block ends, and vanishes when the block raises; ``before`` is
    called just before that, once the disk is known to hold all of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checked(images: Iterable[NDArray[np.uint8]], *, layout: Layout, source: str) -> Iterator[NDArray[np.uint8]]:
    """The images; raises ValueError at one that is not uint8 of the layout's shape, or if there are more or fewer."""
    shape, seen = (layout.height, layout.width, 3), 0
    for image in images:
        if seen == layout.count:
            raise ValueError(f"{source}: more images than the {layout.count} announced")
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(f"{source}: image {seen} is {image.dtype} {image.shape}; all must be uint8 {shape}")
        yield image
        seen += 1
    if seen < layout.count:
        raise ValueError(f"{source}: {seen} images where {layout.count} were announced")


def write_beton(
    path: str | Path, images: Iterable[NDArray[np.uint8]], *, source: str, count: int, progress: bool
) -> Manifest:
    """Writes ``count`` uint8 (H, W, 3) images of one size to ``path`` and its manifest beside it, all or nothing.

    Images are streamed and never held in memory together. Raises ValueError for images of unequal shape or of another number.
    """
    path, stream = Path(path), iter(images)
    first = next(stream, None)
    if first is None or count < 1:
        raise ValueError(f"{source}: no images")
    if first.ndim != 3 or max(first.shape[:2]) >= 1 << 16:
        raise ValueError(f"{source}: image 0 has shape {first.shape}; (H, W, 3) below 65536 is accepted")
    layout = Layout(count=count, height=first.shape[0], width=first.shape[1])
    if layout.page >= 1 << 32:
        raise ValueError(f"{source}: images of {layout.image} bytes are too large for the format's pages")
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(chain([first], stream), total=count, desc=path.name, unit="img", disable=None if progress else True)
    # An old manifest must never stand beside the new file.
    with bar, replacing(path, before=lambda: Manifest.beside(path).unlink(missing_ok=True)) as file:
        out = Hashed(file)
        out.write(layout.head())
        for pointer, image in zip(layout.pointers.tolist(), checked(bar, layout=layout, source=source), strict=True):
            out.pad(pointer)
            out.write(image.tobytes())
        out.pad(layout.table)
        out.write(layout.allocations())
    manifest = Manifest(source=source, count=count, height=layout.height, width=layout.width, bytes=out.bytes,
                        sha256=out.sha256.hexdigest())
    write_atomically(Manifest.beside(path), manifest.to_json().encode())
    return manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class Beton:
    """A `.beton` file of raw images of one size, open for random access; FFCV's own files can be read too."""

    count: int
    height: int
    width: int
    pointers: NDArray[np.uint64]
    data: NDArray[np.uint8]

    @classmethod
    def open(cls, path: str | Path) -> Beton:
        """Maps the file; raises ValueError, naming it, if it is damaged or of another kind than `write_beton` makes."""
        data: NDArray[np.uint8] = np.empty(0, np.uint8)
        if os.path.getsize(path):  # an empty file cannot be mapped
            data = np.asarray(np.memmap(path, np.uint8, "r"))
        metadata = metadata_of(data, path=path)
        height, width = int(metadata["height"][0]), int(metadata["width"][0])
        if (metadata["mode"] != RAW).any():
            raise ValueError(f"{path}: holds compressed images; write it again with raw ones")
        if (metadata["height"] != height).any() or (metadata["width"] != width).any():
            raise ValueError(f"{path}: holds images of different sizes; write it again with one size")
        pointers = metadata["pointer"].copy()
        if int(pointers.max()) + height * width * 3 > len(data):
            raise ValueError(f"{path}: damaged: an image lies beyond the file's end; make the file again")
        return cls(count=len(metadata), height=height, width=width, pointers=pointers, data=data)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of the images at ``indices``, (n, H, W, 3) uint8; raises IndexError outside the file's count."""
        windows = np.lib.stride_tricks.sliding_window_view(self.data, self.height * self.width * 3)
        rows: NDArray[np.uint8] = windows[self.pointers[indices]].reshape(-1, self.height, self.width, 3)
        return rows


def metadata_of(data: NDArray[np.uint8], *, path: str | Path) -> NDArray[np.void]:
    """The per-image records, (count,) of METADATA; raises ValueError unless the file is complete and has one image field."""
    start = HEADER.itemsize + DESCRIPTOR.itemsize
    if len(data) < start:
        raise ValueError(f"{path}: damaged: {len(data)} bytes are too few for a .beton file; make it again")
    header, descriptor = data[:HEADER.itemsize].view(HEADER)[0], data[HEADER.itemsize:start].view(DESCRIPTOR)[0]
    if header["version"] != VERSION:
        raise ValueError(f"{path}: not a .beton file of format version {VERSION} (found {header['version']})")
    if header["fields"] != 1 or descriptor["type"] != RGB_IMAGE or descriptor["name"] != FIELD:
        raise ValueError(f"{path}: one image field named {FIELD.decode()!r} is accepted; this file has other fields")
    count = int(header["count"])
    if count == 0 or len(data) != int(header["table"]) + count * ALLOCATION.itemsize:
        raise ValueError(f"{path}: damaged or cut short ({len(data)} bytes for {count} images); make the file again")
    return data[start:start + count * METADATA.itemsize].view(METADATA)


def read_beton(path: str | Path) -> NDArray[np.uint8]:
    """All images of the file, (N, H, W, 3) uint8, in memory; raises ValueError as `Beton.open` does."""
    beton = Beton.open(path)
    return beton.rows(np.arange(beton.count))
