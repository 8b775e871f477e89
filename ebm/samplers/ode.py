"""Solvers of the probability-flow ODE dx/dσ = −σ s(x, σ) (Karras et al. 2022, eq. 1 with σ as time)."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ebm.accepted import positive, whole
from ebm.model import ScoreModel, score_at
from ebm.samplers.langevin import noised, one_generator_each
from ebm.samplers.step import Step
from ebm.schedule import NoiseSchedule


def heun(
    model: ScoreModel,
    noise: Tensor,
    *,
    grid: NoiseSchedule,
    steps: int,
    churn: float,
    churn_min: float,
    churn_max: float,
    churn_noise: float,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Heun's second-order solver with fresh noise between ``churn_min`` and ``churn_max`` (EDM, algorithm 2).

    ``churn``, ``churn_min``, ``churn_max``, ``churn_noise`` are the paper's S_churn, S_tmin, S_tmax, S_noise; churn 0
    is its deterministic algorithm 1. Starts at σ_max · noise, (B, C, H, W), ends at σ = 0 with an Euler step. Raises
    ValueError for an unusable argument.
    """
    levels = _levels(grid, steps)
    for name, value in {"churn": churn, "churn_min": churn_min}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {value!r} is not accepted; it must be a number from 0")
    if not churn_max >= churn_min:
        raise ValueError(f"churn_max: {churn_max!r} is not accepted; it must be at least churn_min={churn_min!r}")
    positive(churn_noise=churn_noise)
    one_generator_each(noise, generators)
    gamma = min(churn / steps, math.sqrt(2) - 1)  # at most a doubling of the noise's variance
    raised = [sigma * (1 + gamma) if churn_min <= sigma <= churn_max else sigma for sigma in levels]
    return _heun(model, noise, levels=levels, raised=raised, churn_noise=churn_noise, generators=generators)


@torch.no_grad()
def _heun(
    model: ScoreModel,
    noise: Tensor,
    *,
    levels: Sequence[float],
    raised: Sequence[float],
    churn_noise: float,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    x = levels[0] * noise
    for index, (low, sigma, after) in enumerate(zip(levels, raised, [*levels[1:], 0.0], strict=True)):
        noise_size = churn_noise * math.sqrt(sigma**2 - low**2)
        x = noised(x, size=noise_size, generators=generators)
        slope = -sigma * score_at(model, x, sigma=sigma)
        if after > 0:  # the slope is not defined at σ = 0, so the last step stays an Euler step
            ahead = x + (after - sigma) * slope
            slope = (slope - after * score_at(model, ahead, sigma=after)) / 2
        drift = (after - sigma) * slope
        x = x + drift
        yield Step(x=x, index=index, total=len(levels), sigma=sigma, sigma_after=after, drift=drift,
                   noise_size=noise_size)


def dpm_solver_pp_2m(
    model: ScoreModel,
    noise: Tensor,
    *,
    grid: NoiseSchedule,
    steps: int,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Second-order multistep solver, one score per step (DPM-Solver++(2M), Lu et al. 2022, algorithm 2, α = 1).

    Deterministic. Starts at σ_max · noise, (B, C, H, W), ends at σ = 0 with the denoised image. Raises ValueError for an
    unusable argument.
    """
    levels = _levels(grid, steps)
    one_generator_each(noise, generators)
    return _dpm_solver_pp_2m(model, noise, levels=levels)


@torch.no_grad()
def _dpm_solver_pp_2m(model: ScoreModel, noise: Tensor, *, levels: Sequence[float]) -> Iterator[Step]:
    x = levels[0] * noise
    before: tuple[float, Tensor] | None = None  # the last step's length in λ = −ln σ and its denoised image
    for index, (sigma, after) in enumerate(pairwise([*levels, 0.0])):
        denoised = x + sigma**2 * score_at(model, x, sigma=sigma)
        target = denoised
        if after > 0:
            length = math.log(sigma / after)
            if before is not None:  # 1/(2r) = length / (2 · length before): extrapolates to the step's middle in λ
                target = denoised + length / (2 * before[0]) * (denoised - before[1])
            before = length, denoised
        drift = (1 - after / sigma) * (target - x)  # from σ to 0 the step is infinite in λ, hence first order
        x = x + drift
        yield Step(x=x, index=index, total=len(levels), sigma=sigma, sigma_after=after, drift=drift, noise_size=0.0)


def _levels(grid: NoiseSchedule, steps: int) -> list[float]:
    whole(1, steps=steps)
    levels: list[float] = grid.sigmas(steps).tolist()
    if any(sigma <= after for sigma, after in pairwise(levels)):
        raise ValueError(f"grid: {grid!r} is not accepted; its {steps} levels must decrease strictly")
    return levels
