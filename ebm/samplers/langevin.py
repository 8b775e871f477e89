"""Langevin dynamics at one noise level, and the walk x ← x + a s(x, σ) + b n that its annealed relatives share."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebm.accepted import positive, whole
from ebm.model import ScoreModel, score_at
from ebm.randomness import normal_like
from ebm.samplers.step import Step


class Move(NamedTuple):
    """One planned move x ← x + a s(x, σ) + b n, with n standard normal: Langevin's where b = √(2a)."""

    sigma: float
    step_size: float  # a
    noise_size: float  # b
    sigma_after: float  # σ of x after the move


def langevin(
    model: ScoreModel,
    noise: Tensor,
    *,
    sigma: float,
    start: float,
    steps: int,
    step_size: float,
    noise_size: float | None,
    clamp: float | None,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Langevin dynamics x ← x + a s(x, σ) + b n from ``start`` · noise, (B, C, H, W), cut to ±``clamp`` if given.

    ``noise_size`` None means b = √(2a), the unadjusted Langevin algorithm (Roberts & Tweedie 1996); a smaller b
    samples at the lower temperature b²/(2a) (Du & Mordatch 2019). Raises ValueError for an unusable argument.
    """
    positive(sigma=sigma, start=start, step_size=step_size)
    whole(1, steps=steps)
    if noise_size is None:
        noise_size = math.sqrt(2 * step_size)
    if not (math.isfinite(noise_size) and noise_size >= 0):
        raise ValueError(f"noise_size: {noise_size!r} is not accepted; it must be None or a number from 0")
    if clamp is not None:
        positive(clamp=clamp)
    one_generator_each(noise, generators)
    moves = [Move(sigma, step_size, noise_size, sigma_after=sigma)] * steps
    return walk(model, start * noise, moves=moves, clamp=clamp, generators=generators)


def gradient_descent(
    model: ScoreModel,
    noise: Tensor,
    *,
    sigma: float,
    start: float,
    steps: int,
    step_size: float,
    clamp: float | None,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Descent of the energy, x ← x + a s(x, σ): Langevin without its noise, (B, C, H, W), errors as ``langevin``.

    It stops at modes instead of sampling, and diverges where a exceeds 2 / (largest curvature of the energy).
    """
    return langevin(
        model,
        noise,
        sigma=sigma,
        start=start,
        steps=steps,
        step_size=step_size,
        noise_size=0.0,
        clamp=clamp,
        generators=generators,
    )


@torch.no_grad()  # as a decorator it is left at every yield; a `with` around the yield would leak to the caller
def walk(
    model: ScoreModel,
    x: Tensor,
    *,
    moves: Sequence[Move],
    clamp: float | None,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Makes the planned moves from x, (B, C, H, W), yielding a Step after each."""
    for index, (sigma, step_size, noise_size, sigma_after) in enumerate(moves):
        drift = step_size * score_at(model, x, sigma=sigma)
        x = noised(x + drift, size=noise_size, generators=generators)
        if clamp is not None:
            x = x.clamp(-clamp, clamp)
        yield Step(
            x=x,
            index=index,
            total=len(moves),
            sigma=sigma,
            sigma_after=sigma_after,
            drift=drift,
            noise_size=noise_size,
            step_size=step_size,
        )


def noised(x: Tensor, *, size: float, generators: Sequence[torch.Generator]) -> Tensor:
    """x + ``size`` · n, (B, C, H, W); where ``size`` is 0 nothing is drawn and x itself is returned."""
    return x + size * normal_like(x, generators) if size > 0 else x


def one_generator_each(noise: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Raises ValueError unless there is one generator for each image of the noise, (B, C, H, W)."""
    if len(generators) != len(noise):
        raise ValueError(f"generators: {len(generators)} are not accepted; noise has {len(noise)} images, one for each")
