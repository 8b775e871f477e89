"""Where the parts of an FFCV `.beton` file lie: format version 2, with one field of raw images of one size.

    header | one field descriptor | per-image metadata | 0... | page | page | ... | allocation table

A page's size is a power of two and an image never crosses a page, as FFCV's page cache asks.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VERSION, RGB_IMAGE, RAW, FIELD = 2, 2, 1, b"image"
SMALLEST_PAGE = 1 << 21  # 2 MiB, the least that FFCV's own writer accepts

HEADER = np.dtype([("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("count", "<u8"), ("table", "<u8")])
DESCRIPTOR = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
METADATA = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("bytes", "<u8")])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each part of a file of ``count`` raw (height, width, 3) images lies, in bytes from its start."""

    count: int
    height: int
    width: int

    @property
    def image(self) -> int:
        """Bytes of one image."""
        return self.height * self.width * 3

    @property
    def page(self) -> int:
        """Bytes of one page: the power of two that holds at least 8 images, so that little of it stays empty."""
        return max(SMALLEST_PAGE, 1 << (8 * self.image - 1).bit_length())

    @property
    def pointers(self) -> NDArray[np.uint64]:
        """First byte of each image, (count,)."""
        index, each = np.arange(self.count, dtype=np.uint64), self.page // self.image
        head = HEADER.itemsize + DESCRIPTOR.itemsize + self.count * METADATA.itemsize
        first = -(-head // self.page) * self.page
        pointers: NDArray[np.uint64] = first + index // each * self.page + index % each * self.image
        return pointers

    @property
    def table(self) -> int:
        """First byte of the allocation table: the end of the last page."""
        return (int(self.pointers[-1]) // self.page + 1) * self.page

    def head(self) -> bytes:
        """Header, descriptor and metadata."""
        header = np.array((VERSION, 1, self.page, self.count, self.table), HEADER)
        descriptor = np.zeros((), DESCRIPTOR)
        descriptor["type"], descriptor["name"] = RGB_IMAGE, FIELD
        metadata = np.empty(self.count, METADATA)
        metadata["mode"], metadata["width"], metadata["height"] = RAW, self.width, self.height
        metadata["pointer"] = self.pointers
        return header.tobytes() + descriptor.tobytes() + metadata.tobytes()

    def allocations(self) -> bytes:
        """The table that says which bytes belong to which image."""
        table = np.empty(self.count, ALLOCATION)
        table["sample"], table["pointer"], table["bytes"] = np.arange(self.count), self.pointers, self.image
        return table.tobytes()
