"""Samplers that walk Langevin moves down a grid of noise levels: each plans its moves (σ, a, b) and walks them."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ebm.accepted import positive, whole
from ebm.model import ScoreModel
from ebm.samplers.langevin import Move, one_generator_each, walk
from ebm.samplers.step import Step
from ebm.schedule import NoiseSchedule


def annealed_langevin(
    model: ScoreModel,
    noise: Tensor,
    *,
    grid: NoiseSchedule,
    steps: int,
    steps_per_level: int,
    step_scale: float,
    denoise: bool,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Langevin moves at each of ``steps`` levels with a = ``step_scale`` · σ² (Song & Ermon 2019, algorithm 1).

    The paper moves by α/2 · s + √α · n with α = ε σ² / σ_min², so step_scale = ε / (2 σ_min²); the energy's curvature
    is at most 1/σ², so moves are stable below step_scale = 2. Starts at σ_max · noise, (B, C, H, W). ``denoise`` ends
    with x + σ² s (the expected denoised sample, Jolicoeur-Martineau et al. 2021). Raises ValueError for an unusable argument.
    """
    whole(1, steps=steps, steps_per_level=steps_per_level)
    positive(step_scale=step_scale)
    one_generator_each(noise, generators)
    levels = grid.sigmas(steps).tolist()
    moves = [langevin_move(sigma, step_scale * sigma**2) for sigma in levels for _ in range(steps_per_level)]
    if denoise:
        moves.append(denoising_move(levels[-1]))
    return walk(model, levels[0] * noise, moves=moves, clamp=None, generators=generators)


def predictor_corrector(
    model: ScoreModel,
    noise: Tensor,
    *,
    grid: NoiseSchedule,
    steps: int,
    corrector_steps: int,
    signal_to_noise: float,
    denoise: bool,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Reverse diffusion from level to level, with Langevin moves at each (Song et al. 2021, algorithms 2 and 4, VE).

    The corrector's a = 2 (r ‖n‖ / ‖s‖)², r = ``signal_to_noise``, takes the norms' means over a batch in the paper.
    Here they are the expectations √d and √d / σ, so a = 2 r² σ²: no image depends on its batch mates, and a does not
    depend on x, which would bias the stationary distribution. Starts at σ_max · noise, (B, C, H, W); ``denoise`` ends with
    x + σ² s. Raises ValueError for an unusable argument.
    """
    whole(2, steps=steps)
    whole(0, corrector_steps=corrector_steps)
    positive(signal_to_noise=signal_to_noise)
    one_generator_each(noise, generators)
    levels = grid.sigmas(steps).tolist()
    moves = []
    for sigma, after in pairwise(levels):
        variance = sigma**2 - after**2  # removed by the reversed diffusion: a = b² = σ² − σ_after² (eq. 46)
        moves.append(Move(sigma, variance, math.sqrt(variance), sigma_after=after))
        moves += [langevin_move(after, 2 * (signal_to_noise * after) ** 2)] * corrector_steps
    if denoise:
        moves.append(denoising_move(levels[-1]))
    return walk(model, levels[0] * noise, moves=moves, clamp=None, generators=generators)


def langevin_move(sigma: float, step_size: float) -> Move:
    """The unadjusted Langevin move of size a at level σ, whose noise is √(2a)."""
    return Move(sigma, step_size, math.sqrt(2 * step_size), sigma_after=sigma)


def denoising_move(sigma: float) -> Move:
    """The noiseless move to the posterior mean x + σ² s of the clean image (Tweedie's formula; Robbins 1956)."""
    return Move(sigma, sigma**2, 0.0, sigma_after=0.0)
