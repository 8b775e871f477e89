"""A pixel's quantum, and noise uniform over it, with which discrete images have a density (Theis et al. 2016, section 3.1)."""
from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import count as counting

import torch
from torch import Tensor

from ebm.randomness import generator

QUANTUM = 1 / 127.5  # between two neighbouring pixel values in [-1, 1]


def dequantised(x: Tensor, *, seed: int, indices: Sequence[int]) -> Tensor:
    """Pixels (B, C, H, W) in [-1, 1] with noise over a quantum: the mean log-density is a lower bound on the discrete image's
    log-probability. Image i gets noise made from (seed, i), the same on every device."""
    v = torch.stack([torch.rand(x.shape[1:], generator=generator("cpu", seed, "dequantise", i)) for i in indices])
    return x + QUANTUM * (v - 0.5).to(x)


def dequantised_batches(batches: Iterator[Tensor], *, seed: int, start: int, batch: int, rows: slice) -> Generator[Tensor]:
    """The same for training batches (b, C, H, W) from step ``start``: new noise at every step, by row in the global batch."""
    with closing(batches):  # type: ignore[type-var]  # a generator's
        for step, x in zip(counting(start), batches, strict=False):
            source = generator(x.device, seed, "dequantise", step)
            v = torch.rand(batch, *x.shape[1:], generator=source, device=x.device)[rows]
            yield x + QUANTUM * (v - 0.5)
