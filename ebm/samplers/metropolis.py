"""Langevin moves with a Metropolis test: exact at any step size, and possible only where there is a true energy."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebm.accepted import positive, whole
from ebm.model import EnergyModel, score_at, sigma_of, with_energy
from ebm.randomness import normal_like, uniform
from ebm.samplers.langevin import one_generator_each
from ebm.samplers.step import Step
from ebm.schedule import NoiseSchedule


def metropolis_annealed(
    model: EnergyModel,
    noise: Tensor,
    *,
    grid: NoiseSchedule,
    steps: int,
    steps_per_level: int,
    step_scale: float,
    denoise: bool,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996, MALA) with a = ``step_scale`` · σ² at each of the levels.

    Starts at σ_max · noise, (B, C, H, W); ``denoise`` ends with x + σ² s, which is not tested. Raises ValueError for
    a model that has a score but no energy, and for an unusable argument.
    """
    with_energy(model, what="the Metropolis test")
    whole(1, steps=steps, steps_per_level=steps_per_level)
    positive(step_scale=step_scale)
    one_generator_each(noise, generators)
    levels = grid.sigmas(steps).tolist()
    return _metropolis_annealed(
        model,
        levels[0] * noise,
        levels=levels,
        steps_per_level=steps_per_level,
        step_scale=step_scale,
        denoise=denoise,
        generators=generators,
    )


class _State(NamedTuple):
    x: Tensor  # (B, C, H, W)
    energy: Tensor  # (B,) in float64, since the test reads small differences of large energies
    score: Tensor  # (B, C, H, W)


def _state_at(model: EnergyModel, x: Tensor, *, sigma: float) -> _State:
    return _State(x, model.energy(x, sigma_of(x, sigma=sigma)).double(), score_at(model, x, sigma=sigma))


@torch.no_grad()
def _metropolis_annealed(
    model: EnergyModel,
    x: Tensor,
    *,
    levels: Sequence[float],
    steps_per_level: int,
    step_scale: float,
    denoise: bool,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    index, total = 0, len(levels) * steps_per_level + denoise
    for sigma in levels:
        a = step_scale * sigma**2
        state = _state_at(model, x, sigma=sigma)  # carried along within the level: each move evaluates one new state
        for _ in range(steps_per_level):
            n, drift = normal_like(state.x, generators), a * state.score
            proposal = _state_at(model, state.x + drift + math.sqrt(2 * a) * n, sigma=sigma)
            acceptance = _acceptance(state, proposal, n=n, step_size=a)
            accepted = uniform(generators, dtype=torch.float64) < acceptance
            state = _State(*(_where(accepted, new, old) for new, old in zip(proposal, state, strict=True)))
            yield Step(
                x=state.x,
                index=index,
                total=total,
                sigma=sigma,
                sigma_after=sigma,
                drift=_where(accepted, drift, torch.zeros_like(drift)),
                noise_size=math.sqrt(2 * a),
                step_size=a,
                acceptance=acceptance,
            )
            index += 1
        x = state.x
    if denoise:
        a = sigma**2
        drift = a * state.score
        yield Step(x=x + drift, index=index, total=total, sigma=sigma, sigma_after=0.0, drift=drift,
                   noise_size=0.0, step_size=a)


def _acceptance(state: _State, proposal: _State, *, n: Tensor, step_size: float) -> Tensor:
    """min(1, p(y) q(x|y) / (p(x) q(y|x))), (B,), for the proposal y = x + a s(x) + √(2a) n."""
    # The reverse move needs the noise −(n + c), so that log q(x|y)/q(y|x) = (‖n‖² − ‖n + c‖²)/2, where ‖n‖² cancels.
    c = math.sqrt(step_size / 2) * (state.score.double() + proposal.score.double())
    log_ratio = state.energy - proposal.energy - (n * c + c**2 / 2).flatten(1).sum(1)
    return log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)  # a state of non-finite energy has no probability


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.view(-1, *[1] * (new.dim() - 1)), new, old)
