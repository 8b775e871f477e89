"""The training images nearest to samples: a model that copies is nearer to its training images than other real images are."""
from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GAP, ROW_GAP = 6, 1  # white pixels between a sample and its neighbours, and between rows


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest of a set to each of q queries, nearest first, each (q, k)."""

    distance: Tensor  # float64
    index: Tensor  # int64, in the set
    mirrored: Tensor  # bool: it is the query's mirror image that is so near


def nearest(queries: Tensor, mirrored: Tensor | None, blocks: Iterable[Tensor], *, k: int) -> Neighbours:
    """The exact Euclidean neighbours of ``queries`` (q, D) among all rows of the ``blocks``, each (b, D).

    Where ``mirrored`` (q, D), the queries' mirror images, is given, the nearer of both counts. All is computed in float64, in
    which distances of uint8 pixels are exact. Raises ValueError for k below 1 or where there are fewer rows.
    """
    if k < 1:
        raise ValueError(f"k: {k!r} is not accepted; it must be at least 1")
    sides = [side.double() for side in (queries, mirrored) if side is not None]
    squares = [side.square().sum(1, keepdim=True) for side in sides]
    best = torch.full((len(queries), 0), torch.inf, dtype=torch.float64, device=queries.device)
    where, flip = best.long(), best.bool()
    start = 0
    for block in blocks:
        rows = block.double()
        lengths = rows.square().sum(1)
        each = torch.stack([torch.addmm(s + lengths, side, rows.T, alpha=-2) for s, side in zip(squares, sides, strict=True)])
        both, side_of = each.min(0)  # (q, b)
        found = torch.arange(start, start + len(rows), device=rows.device).expand_as(both)
        best = torch.cat([best, both], 1)
        best, order = best.topk(min(k, best.shape[1]), largest=False, sorted=True)
        where = torch.cat([where, found], 1).gather(1, order)
        flip = torch.cat([flip, side_of.bool()], 1).gather(1, order)
        start += len(rows)
    if start < k:
        raise ValueError(f"k: {k!r} is not accepted; there are {start} images to be near to")
    return Neighbours(distance=best.clamp(min=0).sqrt(), index=where, mirrored=flip)


def copied(distance: Tensor, *, within: float) -> Tensor:
    """Which queries are copies, bool (q,): the nearest, of (q, k ≥ 2), is within this share of the second's distance.

    The criterion, with 1/3, is that of Yoon et al. 2023 (ICML workshop, "Diffusion probabilistic models generalize when they
    fail to memorize"). An image that is in the set twice makes a copy of it too, its distance being 0.
    """
    return distance[:, 0] <= within * distance[:, 1]


def ratio(samples: Tensor, others: Tensor, *, draws: int, generator: torch.Generator) -> tuple[float, float] | None:
    """Median of the samples' distances (n,) in units of that of other real images (m,), and its bootstrap standard error.

    About 1 where samples are as far from the training images as other real ones are, far below 1 where they are copies. None
    where half of the other images are copies themselves.
    """
    a, b = samples.double().cpu(), others.double().cpu()
    middle = float(b.quantile(0.5))
    if middle == 0:
        return None
    medians = [x[torch.randint(len(x), (draws, len(x)), generator=generator)].quantile(0.5, dim=1) for x in (a, b)]
    spread = (medians[0] / medians[1].clamp(min=1e-300)).std()
    return float(a.quantile(0.5)) / middle, float(spread)


def picture(samples: Tensor, neighbours: Tensor) -> bytes:
    """A PNG whose rows are a sample, (q, C, H, W), a gap, and its neighbours, (q, k, C, H, W), all uint8."""
    channels, height, width = samples.shape[1:]
    gap = torch.full((channels, height, GAP), 255, dtype=torch.uint8)
    line = torch.full((channels, ROW_GAP, width * (1 + neighbours.shape[1]) + GAP), 255, dtype=torch.uint8)
    rows = []
    for sample, near in zip(samples, neighbours, strict=True):
        rows += [torch.cat([sample, gap, *near], dim=2), line]
    pixels = torch.cat(rows[:-1], dim=1).permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.squeeze(2).numpy())).save(buffer, "PNG")
    return buffer.getvalue()
