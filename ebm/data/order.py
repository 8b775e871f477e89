"""Which images are in which batch: a function of (seed, step), so that a run can start at any step."""
from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ebm.randomness import generator


def steps_per_epoch(*, count: int, batch: int) -> int:
    """Whole global batches in one pass over ``count`` images; raises ValueError unless 1 <= batch <= count."""
    if not 1 <= batch <= count:
        raise ValueError(f"batch: {batch!r} is not accepted; it must be from 1 to the data set's {count} images")
    return count // batch


@lru_cache(maxsize=2)  # training goes through one epoch after the other
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """Order of the images in an epoch, (count,) int64; shared between callers, so never to be written to."""
    # Sorted random keys, not torch.randperm: that would start a team of OpenMP threads in the thread that reads ahead, and
    # with more threads than cores all of torch's arithmetic slows down.
    keys = torch.rand(count, dtype=torch.float64, generator=generator("cpu", seed, "order", epoch))
    return torch.from_numpy(keys.numpy().argsort(kind="stable"))


def batch_indices(*, count: int, batch: int, seed: int, step: int) -> Tensor:
    """Images of the global batch of ``step`` (counted from 0), (batch,) int64; an epoch's remainder is left out."""
    epoch, index = divmod(step, steps_per_epoch(count=count, batch=batch))
    return permutation(count, seed, epoch)[index * batch:(index + 1) * batch].clone()


def local_rows(batch: int, rank: int, world: int) -> slice:
    """Rows of the global batch that belong to process ``rank`` of ``world``; raises ValueError if they don't divide."""
    if not 0 <= rank < world:
        raise ValueError(f"rank: {rank!r} is not accepted; it must be from 0 to {world - 1}")
    if batch % world:
        raise ValueError(f"batch: {batch!r} is not accepted; it must be divisible by the {world} processes")
    return slice(rank * batch // world, (rank + 1) * batch // world)
