"""Samples by number: image i depends on (seed, i), whatever batch, process or run draws it."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ebm.accepted import whole
from ebm.model import ScoreModel
from ebm.randomness import image_generators, normal_like
from ebm.samplers.step import Step

Sampler = Callable[..., Iterator[Step]]


def trajectory(
    model: ScoreModel | nn.Module, sampler: Sampler, *, shape: tuple[int, int, int], indices: Sequence[int], seed: int,
    device: torch.device,
) -> Iterator[Step]:
    """The steps of ``sampler``, its hyperparameters already bound, for the images ``indices`` of shape (C, H, W)."""
    generators = image_generators(device, seed, indices)
    noise = normal_like(torch.empty(len(indices), *shape, device=device), generators)
    return sampler(model, noise, generators=generators)


def draw(
    model: nn.Module, sampler: Sampler, *, shape: tuple[int, int, int], indices: Sequence[int], seed: int, device: torch.device
) -> Tensor:
    """The images that ``sampler`` ends with, (len(indices), C, H, W), pixels about [-1, 1]."""
    return last(trajectory(model, sampler, shape=shape, indices=indices, seed=seed, device=device)).x


def last(steps: Iterator[Step]) -> Step:
    """The last of a sampler's steps, without storing the others; raises ValueError where it takes none."""
    step = None
    for step in steps:
        pass
    if step is None:
        raise ValueError("sampler: it took no step")
    return step


def batches_of(count: int, *, batch: int, rank: int, world: int) -> list[range]:
    """This process's batches of the images 0 … count − 1, which are the same whatever the number of processes.

    Floating-point sums depend on the batch size, so equal batches give equal bits. Raises ValueError below 1.
    """
    whole(1, n=count, batch=batch)
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)][rank::world]
