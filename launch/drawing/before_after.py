"""The picture of a task's results, with a row for each image and a column for each version of it, and their PSNR."""
from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

ROWS, EDGE, GAP, HEAD = 16, 96, 4, 16  # maximum rows; pixels of a tile (minimum), between tiles, and of the captions
PAPER = 255


def before_after(columns: list[tuple[str, Tensor]]) -> bytes:
    """A PNG of captioned columns, each uint8 (K, C, H, W), enlarged for viewing."""
    height, width = columns[0][1].shape[2:]
    scale = max(1, -(-EDGE // height))
    count = min(ROWS, len(columns[0][1]))
    tall, wide = scale * height + GAP, scale * width + GAP
    page = np.full((HEAD + count * tall, len(columns) * wide, 3), PAPER, np.uint8)
    for column, (_, images) in enumerate(columns):
        tiles = images[:count].permute(0, 2, 3, 1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        for row, tile in enumerate(tiles.numpy()):
            top, left = HEAD + row * tall, column * wide
            page[top:top + scale * height, left:left + scale * width] = tile
    picture = Image.fromarray(page)
    pen = ImageDraw.Draw(picture)
    for column, (caption, _) in enumerate(columns):
        pen.text((column * wide + 2, 2), caption, fill=(0, 0, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def psnr(images: Tensor, originals: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each image in dB, uint8 (K, C, H, W) twice; at most 59, that of rounding."""
    error = (images.double() - originals.double()).square().flatten(1).mean(1)
    decibels: list[float] = (10 * torch.log10(255**2 / error.clamp(min=1 / 12))).tolist()
    return [round(value, 3) for value in decibels]
