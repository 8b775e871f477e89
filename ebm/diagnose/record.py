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
    """One move; sizes are RMS over images and pixels. Energy, distance and noise are those of x after the move if it stays at
    its level or is the last, else of x before it."""

    index: int
    sigma: float  # at which the score was evaluated
    sigma_after: float  # the level at which the move ends
    step_size: float | None  # a
    noise_size: float  # b
    drift: float  # RMS of the deterministic part, ‖a s‖/√D
    temperature: float | None  # b²/(2a), 1 for Langevin; None without a
    drift_total: float  # RMS of the sum of all drifts so far, which can grow in proportion to the steps
    noise_total: float  # √Σb², which grows with the square root of the steps
    moved: float  # RMS distance from the start
    rms: float  # of x
    clamped: float  # share of pixels at the clamp
    energy: float | None  # mean over the images; None where it was not read
    distance: float  # from the data noised to its level, see `Reference.distance`
    noise: float  # the noise level that x appears to have
    acceptance: float | None

    @property
    def denoising(self) -> bool:
        """Whether this is the final move to the expected clean image: a = σ² and no noise."""
        return self.step_size is not None and self.sigma_after == 0


@dataclass(frozen=True, kw_only=True)
class Path:
    """A sampler's run: its records, the states to examine more closely, and where it began and ended."""

    start: Tensor  # (B, C, H, W)
    final: Tensor
    records: tuple[StepRecord, ...]
    states: tuple[tuple[int, float, Tensor], ...]  # (step, the state's σ, the state)
    broken: int | None  # step after which x was no longer finite


def follow(
    steps: Iterator[Step], start: Tensor, *, sigma: float, reference: Reference, energy: EnergyOf | None, clamp: float | None,
    states: int
) -> Iterator[StepRecord | Path]:
    """A record for each step from ``start``, which lies at ``sigma``, then the whole path with about ``states`` of its states;
    stops where x is not finite."""
    records: list[StepRecord] = []
    selected: list[tuple[int, float, Tensor]] = []
    total_drift, variance, x, broken = torch.zeros_like(start), 0.0, start, None
    latest: deque[tuple[int, float, Tensor]] = deque(maxlen=4)  # where the run breaks, the states that led there are examined
    for step in steps:
        if not bool(step.x.isfinite().all()):
            broken = step.index
            break
        before, sigma_before, x, sigma = x, sigma, step.x, step.sigma_after
        # Where a move changes the level, the state before it is examined: there the score was evaluated.
        stays = step.sigma_after == step.sigma or step.index == step.total - 1
        state, level = (x, sigma) if stays else (before, sigma_before)
        conditioning_sigma = level or step.sigma  # models are not defined at σ = 0
        total_drift += step.drift
        acceptance = None if step.acceptance is None else float(step.acceptance.mean())
        variance += step.noise_size**2 * (1.0 if acceptance is None else acceptance)
        select = step.index % max(1, math.ceil(step.total / states)) == 0 or step.index == step.total - 1
        mean_energy = None
        if energy is not None and (step.index % math.ceil(step.total / 100) == 0 or select):
            mean_energy = float(energy(state, conditioning_sigma).mean())
        records.append(_record(step, state, start, total_drift, variance, level=level, acceptance=acceptance,
                               reference=reference, clamp=clamp, energy=mean_energy))
        if select:
            selected.append((step.index, conditioning_sigma, state.detach()))
        latest.append((step.index, conditioning_sigma, state.detach()))
        yield records[-1]
    for candidate in [*latest] if broken is not None else [*latest][-1:]:
        if candidate[0] > selected[-1][0]:
            selected.append(candidate)
    yield Path(start=start, final=x, records=tuple(records), states=tuple(selected), broken=broken)


def _record(step: Step, state: Tensor, start: Tensor, total_drift: Tensor, variance: float, *, level: float,
            acceptance: float | None, reference: Reference, clamp: float | None, energy: float | None) -> StepRecord:
    a, b = step.step_size, step.noise_size
    return StepRecord(
        index=step.index, sigma=step.sigma, sigma_after=step.sigma_after, step_size=a, noise_size=b, drift=_rms(step.drift),
        temperature=None if a is None else b**2 / (2 * a), drift_total=_rms(total_drift), noise_total=math.sqrt(variance),
        moved=_rms(step.x - start), rms=_rms(step.x),
        clamped=0.0 if clamp is None else float((step.x.abs() >= clamp).float().mean()),
        energy=energy, distance=reference.distance(state, sigma=level), noise=reference.noise(state),
        acceptance=acceptance)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def langevin_moves(records: Sequence[StepRecord]) -> list[StepRecord]:
    """The records of moves that have a step size, without the final denoising step."""
    return [record for record in records if record.step_size is not None and not record.denoising]
