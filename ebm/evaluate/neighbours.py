"""Nearest training images: the samples of a model that memorises are closer to them than held-out images are."""
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
    """The k nearest neighbours of q queries, nearest first, each (q, k)."""

    distance: Tensor  # float64
    index: Tensor  # int64, in the set
    mirrored: Tensor  # bool: whether the distance is that of the query's mirror image


def nearest(queries: Tensor, mirrored: Tensor | None, blocks: Iterable[Tensor], *, k: int) -> Neighbours:
    """The exact Euclidean neighbours of ``queries`` (q, D) among all rows of the ``blocks``, each (b, D).

    If ``mirrored`` (q, D), the queries' mirror images, is given, the smaller of both distances counts. Computed in float64,
    which makes distances of uint8 pixels exact. Raises ValueError for k below 1 or above the number of rows.
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
        raise ValueError(f"k: {k!r} is not accepted; there are {start} images")
    return Neighbours(distance=best.clamp(min=0).sqrt(), index=where, mirrored=flip)


def copied(distance: Tensor, *, within: float) -> Tensor:
    """Which queries are copies, bool (q,): the distance (q, k ≥ 2) of the nearest is at most ``within`` times the second's.

    The criterion, with 1/3, of Yoon et al. 2023 (ICML workshop, "Diffusion probabilistic models generalize when they fail to
    memorize"). A query identical to an image that the set contains twice counts as a copy.
    """
    return distance[:, 0] <= within * distance[:, 1]


def ratio(samples: Tensor, others: Tensor, *, draws: int, generator: torch.Generator) -> tuple[float, float] | None:
    """Ratio of the median distance of samples (n,) to that of held-out images (m,), and its bootstrap standard error.

    About 1 where samples are as far from the training images as held-out ones are, far below 1 where they are copies. None
    where half of the held-out images are copies themselves.
    """
    a, b = samples.double().cpu(), others.double().cpu()
    middle = float(b.quantile(0.5))
    if middle == 0:
        return None
    medians = [x[torch.randint(len(x), (draws, len(x)), generator=generator)].quantile(0.5, dim=1) for x in (a, b)]
    spread = (medians[0] / medians[1].clamp(min=1e-300)).std()
    return float(a.quantile(0.5)) / middle, float(spread)


def picture(samples: Tensor, neighbours: Tensor) -> bytes:
    """A PNG with one row per sample (q, C, H, W): the sample, a gap and its neighbours (q, k, C, H, W), all uint8."""
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
