"""What a sampler's schedule does to noise, whatever the model: how closely the noise follows the levels, and how much
neighbouring levels overlap."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from ebm.diagnose.record import StepRecord


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What a sequence of moves (σ, a, b) does to noise in directions where the energy's curvature is 1/σ²."""

    levels: int
    overlap: float | None  # the least between neighbouring levels; None for one level or an ODE, which needs none
    lag: float | None  # the greatest ratio of the noise in x to a level's σ on leaving it; None likewise
    needed: float  # e-folds by which the noise must shrink from the start to the last level
    possible: float  # Σ a/σ², the e-folds by which the moves can shrink it
    left: float  # standard deviation of the noise that the last state carries


def overlap(ratio: float, dimensions: int) -> float:
    """Share of one level's samples that are typical of the next lower level, for neighbours σ_i/σ_{i+1} = ``ratio`` in
    ``dimensions``; about 0.5 is recommended (Song & Ermon 2020, technique 2)."""
    centre = math.sqrt(2 * dimensions) * (ratio - 1)
    return _normal_cdf(centre + 3 * ratio) - _normal_cdf(centre - 3 * ratio)


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))


def ladder(records: Sequence[StepRecord], *, start: float, dimensions: int) -> Ladder:
    """What the recorded moves do to noise of standard deviation ``start``.

    Exact for images whose own variance is negligible beside σ² (Song & Ermon 2020, proposition 3).
    """
    variance, possible = start**2, 0.0
    carried: list[tuple[float, float]] = []  # (σ, noise before the move)
    for record, after in zip(records, [*records[1:], None], strict=True):
        carried.append((record.sigma, math.sqrt(variance)))
        if record.step_size is None:  # an ODE solver scales the noise exactly from level to level
            variance *= (after.sigma / record.sigma) ** 2 if after else 0.0  # its last move ends at σ = 0
            continue
        pull = record.step_size / record.sigma**2 * (1.0 if record.acceptance is None else record.acceptance)
        noise = record.noise_size**2 * (1.0 if record.acceptance is None else record.acceptance)
        variance = min((1 - pull) ** 2 * variance + noise, 1e30)
        possible += pull if not record.denoising else 0.0
    levels = [(sigma, min(noise for _, noise in group)) for sigma, group in groupby(carried, key=lambda pair: pair[0])]
    sigmas = [sigma for sigma, _ in levels]
    has_ladder = len(levels) > 1 and any(record.step_size is not None for record in records)
    return Ladder(
        levels=len(levels),
        overlap=min(overlap(high / low, dimensions) for high, low in pairwise(sigmas)) if has_ladder else None,
        lag=max(noise / sigma for sigma, noise in levels) if has_ladder else None,
        needed=math.log(max(start / sigmas[-1], 1.0)),
        possible=possible,
        left=math.sqrt(variance),
    )
