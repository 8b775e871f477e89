"""Pictures of images in [-1, 1]; numpy and PIL draw them, since torchvision takes seconds to import."""
from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ebm.data import to_uint8
from ebm.files import write_atomically


def grid(images: Tensor) -> NDArray[np.uint8]:
    """Images (B, C, H, W), clamped to [-1, 1], row by row in a nearly square picture (H', W', 3).

    A black border one pixel wide surrounds each image; a single image has none.
    """
    count, _, height, width = images.shape
    columns, gap = math.ceil(math.sqrt(count)), int(count > 1)
    page = np.zeros((math.ceil(count / columns) * (height + gap) + gap, columns * (width + gap) + gap, 3), np.uint8)
    for index, tile in enumerate(to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()):
        top, left = index // columns * (height + gap) + gap, index % columns * (width + gap) + gap
        page[top:top + height, left:left + width] = tile
    return page


def save_grid(images: Tensor, path: Path) -> None:
    """Writes the grid of images (B, C, H, W) as a PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(grid(images)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
