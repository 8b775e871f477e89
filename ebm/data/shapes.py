"""The embedded data set: coloured discs, rectangles and triangles over a soft gradient, drawn from a seed.

Only + - * / and square roots are used, which IEEE 754 rounds alike everywhere, on the raw bits of PCG64, which numpy
promises to keep: so an image is the same bytes on every machine.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ebm.accepted import whole
from ebm.data.sources import Pixels, Source

Array = NDArray[np.float32]
PER_SHAPE, MOST = 9, 3  # numbers that describe one shape; shapes in one image at most
DRAWS = 9 + PER_SHAPE * MOST
HALF_ROOT_3 = np.float32(0.8660254)


def shapes(*, count: int, size: int, seed: int) -> Source:
    """``count`` images of size x size with 1 to 3 shapes each; image i depends on (seed, i) alone.

    Raises ValueError if ``count`` is below 1, ``size`` below 8 or ``seed`` negative.
    """
    whole(1, count=count)
    whole(8, size=size)
    whole(0, seed=seed)

    def images() -> Iterator[Pixels]:
        for first in range(0, count, 64):  # 64 at a time stay in the processor's cache
            yield from draw(np.stack([uniforms(seed, i) for i in range(first, min(first + 64, count))]), size=size)

    return Source(name=f"shapes at {size} pixels, seed {seed}", count=count, images=images)


def uniforms(seed: int, index: int) -> Array:
    """Uniform numbers in [0, 1) that image ``index`` is made of, (DRAWS,)."""
    bits = np.random.PCG64([seed, index]).random_raw(DRAWS)
    numbers: Array = ((bits >> np.uint64(40)) * 2.0**-24).astype(np.float32)
    return numbers


def draw(u: Array, *, size: int) -> Pixels:
    """Images (n, size, size, 3) of n rows of uniform numbers, (n, DRAWS)."""
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = axis[None, None, :], axis[None, :, None]  # (1, 1, W), (1, H, 1), in image widths
    canvas = background(u[:, :8], x, y)
    shown = 1 + (u[:, 8] * MOST).astype(np.int64)  # (n,): 1, 2 or 3
    for index in range(MOST):
        numbers = u[:, 9 + PER_SHAPE * index:][:, :PER_SHAPE]
        # The share of each pixel that the shape covers, which is what supersampling would estimate.
        inside = np.clip(np.float32(0.5) - distance(numbers, x, y) * np.float32(size), 0, 1)
        inside *= (index < shown)[:, None, None]
        colour = hue(numbers[:, 6], saturation=0.55 + 0.45 * numbers[:, 7], value=0.7 + 0.3 * numbers[:, 8])
        for channel in range(3):
            canvas[channel] += inside * (colour[:, channel, None, None] - canvas[channel])
    pixels: Pixels = (np.stack(canvas, -1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return pixels


def background(u: Array, x: Array, y: Array) -> list[Array]:
    """Red, green and blue, each (n, H, W) in [0, 1], running from one muted colour to another in some direction."""
    across, down = direction(u[:, 0])
    along = np.clip((x - 0.5) * across + (y - 0.5) * down + np.float32(0.5), 0, 1).astype(np.float32)
    start = hue(u[:, 1], saturation=0.15 + 0.35 * u[:, 2], value=0.25 + 0.7 * u[:, 3])
    near = u[:, 1] + np.float32(0.25) * u[:, 4]  # a neighbouring hue
    end = hue(near - np.floor(near), saturation=0.15 + 0.35 * u[:, 5], value=0.25 + 0.7 * u[:, 6])
    return [start[:, c, None, None] + along * (end - start)[:, c, None, None] for c in range(3)]


def distance(u: Array, x: Array, y: Array) -> Array:
    """Signed distance to the edge of one shape in each of n images, (n, H, W), in image widths, negative inside."""
    kind, radius = (u[:, 0, None, None] * 3).astype(np.int64), 0.12 + 0.16 * u[:, 1, None, None]
    across, down = direction(u[:, 2])
    dx, dy = x - (0.2 + 0.6 * u[:, 3, None, None]), y - (0.2 + 0.6 * u[:, 4, None, None])
    a, b = dx * across + dy * down, dy * across - dx * down  # turned into the shape's own axes
    disc = np.sqrt(a * a + b * b) - radius
    box = np.maximum(np.abs(a) - radius, np.abs(b) - radius * (0.45 + 0.55 * u[:, 5, None, None]))
    triangle = np.maximum(HALF_ROOT_3 * np.abs(a) + np.float32(0.5) * b, -b) - np.float32(0.6) * radius
    chosen: Array = np.where(kind == 0, disc, np.where(kind == 1, box, triangle)).astype(np.float32)
    return chosen


def direction(u: Array) -> tuple[Array, Array]:
    """Cosine and sine, (n, 1, 1), of an angle that runs from 0 round to 2π with u, by the rational half-angle form."""
    t = (u * 4 - np.floor(u * 4))[:, None, None] * np.float32(0.41421356) * 2 - np.float32(0.41421356)  # tan of ±π/8
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    quarter = np.floor(u * 4)[:, None, None]
    swapped = quarter % 2 == 1
    sign = np.where(quarter >= 2, np.float32(-1), np.float32(1))
    return sign * np.where(swapped, -sine, cosine), sign * np.where(swapped, cosine, sine)


def hue(h: Array, *, saturation: Array, value: Array) -> Array:
    """Red, green and blue in [0, 1], (n, 3), of hues in [0, 1), saturations and values, each (n,)."""
    wheel = h[:, None] * 6 + np.array([5, 3, 1], np.float32)
    wheel = wheel - np.floor(wheel / 6) * 6
    ramp = np.clip(np.minimum(wheel, 4 - wheel), 0, 1)
    rgb: Array = (value[:, None] * (1 - saturation[:, None] * ramp)).astype(np.float32)
    return rgb
