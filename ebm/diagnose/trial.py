"""A sampler tried on a Gaussian as wide as the data, with its exact score: what goes wrong there is the sampler's own fault."""
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
FAR = 0.5  # the distance from the data's statistics above which samples are visibly off
ROWS, IMAGES = 256, 8  # 2,048 samples of each band, so that its standard deviation is known to 1.6 %


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where a sampler ends on the twin."""

    off: tuple[float, ...]  # ln of the standard deviation reached over the target's, for each band
    lost: float  # distance of the target from the data: detail that denoising from the last level cannot restore
    ladder: Ladder
    acceptance: float | None

    @property
    def mixed(self) -> bool:
        """Whether every band ends as wide as it should, within 35 %."""
        return all(abs(value) <= 0.35 for value in self.off)

    @property
    def followed(self) -> bool:
        """Whether the noise keeps up with the ladder."""
        return self.ladder.lag is None or self.ladder.lag <= 1.4

    @property
    def sound(self) -> bool:
        """Whether the sampler would do well with an exact model."""
        return self.lost <= FAR and self.mixed and self.followed and (self.acceptance is None or self.acceptance > 0.3)


@torch.no_grad()
def try_on_twin(sampler: Bound, reference: Reference, *, seed: int) -> Trial:
    """Runs ``sampler`` on the reference's twin, at a cost that doesn't depend on the model."""
    twin = Twin(deviations=tuple(math.sqrt(variance) for variance in reference.variances))
    generators = image_generators("cpu", seed, range(IMAGES))
    noise = normal_like(torch.empty(IMAGES, 1, ROWS, len(twin.deviations)), generators)
    records, x = [], noise
    for step in sampler(twin, noise, generators=generators):
        x = step.x
        records.append(_without_state(step))
        if not bool(x.isfinite().all()):
            break
    targets = target_deviations(records, twin.deviations)
    reached = x.double().square().mean((0, 1, 2)).sqrt().nan_to_num(1e30, 1e30).tolist()
    acceptances = [record.acceptance for record in records if record.acceptance is not None]
    return Trial(
        off=tuple(_log_ratio(deviation, target) for deviation, target in zip(reached, targets, strict=True)),
        lost=relative_distance(targets, twin.deviations, reference.sizes) if records[-1].denoising else 0.0,
        ladder=ladder(records, start=start_of(sampler), dimensions=reference.dimensions),
        acceptance=sum(acceptances) / len(acceptances) if acceptances else None,
    )


def relative_distance(deviations: Sequence[float], reference: Sequence[float], sizes: Sequence[int]) -> float:
    """Fréchet distance of a Gaussian with these standard deviations in each band from the ``reference``, relative to the
    latter's width."""
    squared = sum(size * (s - own) ** 2 for size, s, own in zip(sizes, deviations, reference, strict=True))
    return math.sqrt(squared / sum(size * own**2 for size, own in zip(sizes, reference, strict=True)))


def _log_ratio(deviation: float, target: float) -> float:
    """ln of the ratio, 0 where the two differ by less than one grey level."""
    return 0.0 if abs(deviation - target) < GREY else math.log(max(deviation, 1e-9) / max(target, 1e-9))


def target_deviations(records: list[StepRecord], deviations: tuple[float, ...]) -> list[float]:
    """The standard deviations that a run should end with, where data have ``deviations``: those of data noised to its last
    level or, where the last move denoises, of the posterior means."""
    last, sigma = records[-1], records[-1].sigma
    if last.step_size is None:
        return list(deviations)
    if last.denoising:
        return [s**2 / math.sqrt(s**2 + sigma**2) for s in deviations]
    return [math.sqrt(s**2 + sigma**2) for s in deviations]


def start_of(sampler: Bound) -> float:
    """Standard deviation of the noise from which a sampler starts."""
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


def _without_state(step: Step) -> StepRecord:
    """A record of the move alone, without measurements of x."""
    a, b, none = step.step_size, step.noise_size, math.nan
    return StepRecord(
        index=step.index, sigma=step.sigma, sigma_after=step.sigma_after, step_size=a, noise_size=b, drift=none,
        temperature=None if a is None else b**2 / (2 * a), drift_total=none, noise_total=none, moved=none, rms=none,
        clamped=0.0, energy=None, distance=none, noise=none,
        acceptance=None if step.acceptance is None else float(step.acceptance.mean()))

