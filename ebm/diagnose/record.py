"""What a sampler does at every step, in numbers."""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm.diagnose.reference import Reference
from ebm.samplers.step import Step

EnergyOf = Callable[[Tensor, float], Tensor]  # (B, C, H, W), σ -> (B,)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One move, RMS over images and pixels; energy, distance and noise are of x after a move that stays at its level, else of x
    before it, and of the last x."""

    index: int
    sigma: float  # at which the score was asked
    sigma_after: float  # where the move ends
    step_size: float | None  # a
    noise_size: float  # b
    drift: float  # RMS of the deterministic part, ‖a s‖/√D
    temperature: float | None  # b²/(2a), 1 for Langevin; None without a
    drift_total: float  # RMS of all drifts so far together: they add up in proportion to steps
    noise_total: float  # √Σb²: noise adds up in proportion to the square root of steps
    moved: float  # RMS distance from the start
    rms: float  # of x
    clamped: float  # share of pixels at the clamp
    energy: float | None  # mean over the images; None where it was not read
    distance: float  # from the data noised at σ, see `Reference.distance`
    noise: float  # the noise level at which x seems to lie
    acceptance: float | None

    @property
    def denoising(self) -> bool:
        """Whether it is the last move to the mean of the clean image: a = σ² and no noise."""
        return self.step_size is not None and self.sigma_after == 0


@dataclass(frozen=True, kw_only=True)
class Path:
    """A sampler's run: its records, the states at which to look closer, and where it began and ended."""

    start: Tensor  # (B, C, H, W)
    final: Tensor
    records: tuple[StepRecord, ...]
    states: tuple[tuple[int, float, Tensor], ...]  # (step, σ asked there, the state that lies at it)
    broken: int | None  # step after which x was not finite any more


def follow(
    steps: Iterator[Step], start: Tensor, *, sigma: float, reference: Reference, energy: EnergyOf | None, clamp: float | None,
    states: int
) -> Iterator[StepRecord | Path]:
    """A record for each step from ``start``, which lies at ``sigma``, then the whole path, with ``states`` of its states; stops
    where x is not finite."""
    records: list[StepRecord] = []
    kept: list[tuple[int, float, Tensor]] = []
    drifted, variance, x, broken = torch.zeros_like(start), 0.0, start, None
    latest: deque[tuple[int, float, Tensor]] = deque(maxlen=4)  # where it breaks, what led there is looked at
    for step in steps:
        if not bool(step.x.isfinite().all()):
            broken = step.index
            break
        before, left, x, sigma = x, sigma, step.x, step.sigma_after
        # A move that changes the level is seen before it, where the score was asked.
        stays = step.sigma_after == step.sigma or step.index == step.total - 1
        seen, level = (x, sigma) if stays else (before, left)
        asked = level or step.sigma  # no model knows σ = 0
        drifted += step.drift
        acceptance = None if step.acceptance is None else float(step.acceptance.mean())
        variance += step.noise_size**2 * (1.0 if acceptance is None else acceptance)
        look = step.index % max(1, math.ceil(step.total / states)) == 0 or step.index == step.total - 1
        read = energy is not None and (step.index % math.ceil(step.total / 100) == 0 or look)
        records.append(_record(step, seen, start, drifted, variance, level=level, acceptance=acceptance, reference=reference,
                               clamp=clamp, energy=float(energy(seen, asked).mean()) if energy is not None and read else None))
        if look:
            kept.append((step.index, asked, seen.detach()))
        latest.append((step.index, asked, seen.detach()))
        yield records[-1]
    for state in [*latest] if broken is not None else [*latest][-1:]:
        if state[0] > kept[-1][0]:
            kept.append(state)
    yield Path(start=start, final=x, records=tuple(records), states=tuple(kept), broken=broken)


def _record(step: Step, seen: Tensor, start: Tensor, drifted: Tensor, variance: float, *, level: float,
            acceptance: float | None, reference: Reference, clamp: float | None, energy: float | None) -> StepRecord:
    a, b = step.step_size, step.noise_size
    return StepRecord(
        index=step.index, sigma=step.sigma, sigma_after=step.sigma_after, step_size=a, noise_size=b, drift=_rms(step.drift),
        temperature=None if a is None else b**2 / (2 * a), drift_total=_rms(drifted), noise_total=math.sqrt(variance),
        moved=_rms(step.x - start), rms=_rms(step.x),
        clamped=0.0 if clamp is None else float((step.x.abs() >= clamp).float().mean()),
        energy=energy, distance=reference.distance(seen, sigma=level), noise=reference.noise(seen),
        acceptance=acceptance)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def langevin_moves(records: Sequence[StepRecord]) -> list[StepRecord]:
    """Those with a step size of their own, without the last denoising."""
    return [record for record in records if record.step_size is not None and not record.denoising]
