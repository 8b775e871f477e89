"""A sampler tried on a Gaussian as wide as the data, with a perfect score: what is wrong there is the sampler's own doing."""
from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ebm.diagnose.calibration import GREY
from ebm.diagnose.ladder import Ladder, ladder
from ebm.diagnose.record import StepRecord
from ebm.diagnose.reference import Reference, Twin
from ebm.randomness import image_generators, normal_like
from ebm.samplers.step import Step

Bound = functools.partial[Any]  # a sampler with its hyperparameters bound, as Hydra's _partial_ makes it
FAR = 0.5  # a distance from the data's statistics that shows
ROWS, IMAGES = 256, 8  # 2,048 samples of each band: its standard deviation is known to 1.6 %


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where a sampler ends on the twin."""

    off: tuple[float, ...]  # ln of the standard deviation reached over that of the law aimed at, for each band
    lost: float  # distance of the law aimed at from the data's: detail that a denoising from the last level cannot give back
    ladder: Ladder
    acceptance: float | None

    @property
    def mixed(self) -> bool:
        """Whether every band ends as wide as it should, within 35 %."""
        return all(abs(value) <= 0.35 for value in self.off)

    @property
    def followed(self) -> bool:
        """Whether noise follows the ladder."""
        return self.ladder.lag is None or self.ladder.lag <= 1.4

    @property
    def sound(self) -> bool:
        """Whether a perfect model would be sampled well."""
        return self.lost <= FAR and self.mixed and self.followed and (self.acceptance is None or self.acceptance > 0.3)


@torch.no_grad()
def try_on_twin(sampler: Bound, reference: Reference, *, seed: int) -> Trial:
    """Runs ``sampler`` on the reference's twin; the cost doesn't depend on the model."""
    twin = Twin(deviations=tuple(math.sqrt(variance) for variance in reference.variances))
    generators = image_generators("cpu", seed, range(IMAGES))
    noise = normal_like(torch.empty(IMAGES, 1, ROWS, len(twin.deviations)), generators)
    records, x = [], noise
    for step in sampler(twin, noise, generators=generators):
        x = step.x
        records.append(_light(step))
        if not bool(x.isfinite().all()):
            break
    goals = aimed_at(records, twin.deviations)
    reached = x.double().square().mean((0, 1, 2)).sqrt().nan_to_num(1e30, 1e30).tolist()
    moves = [record.acceptance for record in records if record.acceptance is not None]
    return Trial(
        off=tuple(_log(one, goal) for one, goal in zip(reached, goals, strict=True)),
        lost=distance_between(goals, twin.deviations, reference.sizes) if records[-1].denoising else 0.0,
        ladder=ladder(records, start=start_of(sampler), dimensions=reference.dimensions),
        acceptance=sum(moves) / len(moves) if moves else None,
    )


def distance_between(these: Sequence[float], those: Sequence[float], sizes: Sequence[int]) -> float:
    """Fréchet distance of Gaussians with these standard deviations in each band from those, relative to those."""
    apart = sum(size * (one - other) ** 2 for size, one, other in zip(sizes, these, those, strict=True))
    return math.sqrt(apart / sum(size * other**2 for size, other in zip(sizes, those, strict=True)))


def _log(one: float, goal: float) -> float:
    return 0.0 if abs(one - goal) < GREY else math.log(max(one, 1e-9) / max(goal, 1e-9))


def aimed_at(records: list[StepRecord], deviations: tuple[float, ...]) -> list[float]:
    """The standard deviations that a run should end with, where data have ``deviations``: noised at its last level,
    or, where the last move takes noise away, of the means of what remains possible."""
    last, sigma = records[-1], records[-1].sigma
    if last.step_size is None:
        return list(deviations)
    if last.denoising:
        return [s**2 / math.sqrt(s**2 + sigma**2) for s in deviations]
    return [math.sqrt(s**2 + sigma**2) for s in deviations]


def start_of(sampler: Bound) -> float:
    """Standard deviation of the noise that a sampler starts from."""
    settings = sampler.keywords
    return float(settings["start"] if "start" in settings else settings["grid"].sigmas(settings["steps"])[0])


def changed(sampler: Bound, changes: Mapping[str, object]) -> Bound:
    """The sampler with other hyperparameters; those of its grid are named ``grid.<field>``."""
    settings = dict(sampler.keywords)
    inner = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith("grid.")}
    if inner:
        settings["grid"] = dataclasses.replace(settings["grid"], **inner)
    settings |= {name: value for name, value in changes.items() if not name.startswith("grid.")}
    return functools.partial(sampler.func, **settings)


def _light(step: Step) -> StepRecord:
    """A record of the move alone."""
    a, b, none = step.step_size, step.noise_size, math.nan
    return StepRecord(
        index=step.index, sigma=step.sigma, sigma_after=step.sigma_after, step_size=a, noise_size=b, drift=none,
        temperature=None if a is None else b**2 / (2 * a), drift_total=none, noise_total=none, moved=none, rms=none,
        clamped=0.0, energy=None, distance=none, noise=none,
        acceptance=None if step.acceptance is None else float(step.acceptance.mean()))

