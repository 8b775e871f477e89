"""A full diagnosis: calibration, one recorded run of the sampler, curvature along it, verdicts and the cure."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ebm.accepted import whole
from ebm.diagnose.calibration import GREY, Calibration, calibrate, levels_around
from ebm.diagnose.curvature import Curvature, curvature
from ebm.diagnose.facts import CurvatureAt, Facts, Finding
from ebm.diagnose.ladder import ladder
from ebm.diagnose.prescription import Prescription, prescribe
from ebm.diagnose.record import EnergyOf, Path, StepRecord, follow
from ebm.diagnose.reference import Reference
from ebm.diagnose.training import data_range, rounding_floor, sample_range
from ebm.diagnose.trial import FAR, Bound, start_of, try_on_twin
from ebm.diagnose.verdict import judge
from ebm.model import ScoreModel, has_energy, sigma_of
from ebm.precision import Precision
from ebm.randomness import generator, image_generators, normal_like
from ebm.samplers.step import Step

Tell = Callable[[str, int, int], None]  # reports progress: what is being done, how much of it is done, of how much


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a diagnosis measures; raises ValueError for a number below its minimum."""

    samples: int  # images that the sampler draws
    calibration: int  # held-out images at each level
    levels: int  # of calibration, per factor of ten in σ
    states: int  # of the path, at which the curvature is measured
    curvature: int  # images of each of these states
    iterations: int  # of Lanczos
    components: int  # principal components of the data

    def __post_init__(self) -> None:
        minimum = {"samples": 2, "calibration": 4, "levels": 1, "states": 2, "curvature": 1, "iterations": 2, "components": 1}
        for name, least in minimum.items():
            whole(least, **{name: getattr(self, name)})


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The facts, what they mean, and what to do; ``findings`` is empty where all is well."""

    facts: Facts
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    prescription: Prescription | None

    @property
    def verdicts(self) -> list[str]:
        """Names of the findings, or "healthy" alone."""
        return list(dict.fromkeys(finding.name for finding in self.findings)) or ["healthy"]


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """One model with held-out images (N, C, H, W) in [-1, 1]; ``diagnose`` examines one sampler after another.

    ``trained`` is the range of levels that the model was trained at, which the calibration covers too.
    """

    model: ScoreModel
    images: Tensor
    trained: tuple[float, float]
    effort: Effort
    precision: Precision
    seed: int
    tell: Tell
    measured: dict[tuple[float, float], Calibration] = field(default_factory=dict, repr=False)  # shared by all diagnoses

    def diagnose(self, sampler: Bound) -> Diagnosis:
        """Runs the sampler and measures everything; raises ValueError where its first step is not finite, and what the sampler
        raises."""
        reference = Reference.fit(self.images, components=self.effort.components)
        path = self.watch(sampler, reference)
        if not path.records:
            raise ValueError("sampler: its first step is not finite; the model is broken or the step size far too large")
        by_chance = reference.by_chance(self.images, count=self.effort.samples,
                                        generator=generator(self.images.device, self.seed, "by chance"))
        facts = Facts(
            sampler=sampler, reference=reference, by_chance=by_chance, calibrations=self.calibrations(path.records),
            beginning=self.beginning(path, sampler), path=path, curvatures=tuple(self.curvatures(path)),
            trial=try_on_twin(sampler, reference, seed=self.seed),
            ladder=ladder(path.records, start=start_of(sampler), dimensions=reference.dimensions))
        clean = facts.ladder.left < GREY and not (facts.single and facts.trial.off[0] < -1)  # a descent has no width to compare
        outside = [data_range(self.images), sample_range(path.final, reference) if clean else None,
                   rounding_floor(facts.calibrations)]
        findings = judge(facts)
        self.tell("prescription", 0, 1)
        prescription = prescribe(facts, findings, seed=self.seed)
        self.tell("prescription", 1, 1)
        findings += [finding for finding in outside if finding is not None]
        return Diagnosis(facts=facts, findings=tuple(findings), notes=tuple(notes(facts)), prescription=prescription)

    def watch(self, sampler: Bound, reference: Reference) -> Path:
        """One run of the sampler, in the precision it is used with."""
        device = self.images.device
        generators = image_generators(device, self.seed, range(self.effort.samples))
        noise = normal_like(torch.empty(self.effort.samples, *self.images.shape[1:], device=device, dtype=self.images.dtype),
                            generators)
        steps = sampler(self.model, noise, generators=generators)
        record: Path | StepRecord | None = None
        start = start_of(sampler)
        # A generator's code runs under its caller's autocast, so that it is entered for each move and left in between.
        records = follow(self.autocast(steps), start * noise, sigma=start, reference=reference, energy=self.energy(),
                         clamp=sampler.keywords.get("clamp"), states=self.effort.states)
        for record in records:
            if isinstance(record, StepRecord):
                self.tell("sampler", record.index + 1, 0)
        assert isinstance(record, Path)
        return record

    def autocast(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, each made under autocast."""
        while True:
            with self.precision.autocast(self.images.device):
                step = next(steps, None)
            if step is None:
                return
            yield step

    def energy(self) -> EnergyOf | None:
        """The energy as a function of x and σ, None where the model has none."""
        model = self.model
        if not has_energy(model):
            return None

        @torch.no_grad()
        def energy(x: Tensor, sigma: float) -> Tensor:
            return model.energy(x, sigma_of(x, sigma=sigma))

        return energy

    def calibrations(self, records: Sequence[StepRecord]) -> tuple[Calibration, ...]:
        """Calibrations at levels that extend beyond those trained and those the sampler visits."""
        visited = [record.sigma for record in records]
        levels = levels_around([*self.trained, min(visited), max(visited)], decade=self.effort.levels)
        calibrations = []
        for index, sigma in enumerate(levels):
            self.tell("calibration", index, len(levels))
            calibrations.append(self.calibrate(sigma, conditioning_sigma=sigma))
        self.tell("calibration", len(levels), len(levels))
        return tuple(calibrations)

    def calibrate(self, sigma: float, *, conditioning_sigma: float) -> Calibration:
        """Calibration on images noised at ``sigma`` of the model at ``conditioning_sigma``, measured only once."""
        key = sigma, conditioning_sigma
        if key not in self.measured:
            source = generator(self.images.device, self.seed, "calibration", repr(sigma))
            self.measured[key] = calibrate(self.model, self.images[: self.effort.calibration], sigma=sigma,
                                           conditioning_sigma=conditioning_sigma, batch=self.effort.samples,
                                           precision=self.precision, generator=source)
        return self.measured[key]

    def beginning(self, path: Path, sampler: Bound) -> Calibration | None:
        """Calibration at the start of a sampler that uses a single level; None for any other."""
        levels = {record.sigma for record in path.records}
        if len(levels) != 1 or "start" not in sampler.keywords:
            return None
        return self.calibrate(start_of(sampler), conditioning_sigma=levels.pop())

    def curvatures(self, path: Path) -> Iterator[CurvatureAt]:
        """Curvature at the path's selected states, and at held-out images noised to the same levels."""
        source = generator(self.images.device, self.seed, "curvature")
        levels: set[float] = set()
        for count, (index, sigma, x) in enumerate(path.states):
            self.tell("curvature", count, len(path.states))
            record = path.records[index]
            a = None if record.denoising or record.step_size is None else record.step_size
            few = slice(0, self.effort.curvature)
            farthest = torch.cat([x.abs().flatten(1).amax(1).argmax()[None], torch.arange(len(x), device=x.device)])[few]
            if not record.denoising and (here := self.finite_curvature(x[farthest], sigma, source)):
                yield CurvatureAt(index=index, curvature=here, step_size=a, on_path=True)
            if sigma not in levels:
                levels.add(sigma)
                clean = self.images[few]
                noise = torch.randn(clean.shape, generator=source, device=clean.device, dtype=clean.dtype)
                if here := self.finite_curvature(clean + sigma * noise, sigma, source):
                    yield CurvatureAt(index=index, curvature=here, step_size=a, on_path=False)
        self.tell("curvature", len(path.states), len(path.states))

    def finite_curvature(self, x: Tensor, sigma: float, source: torch.Generator) -> Curvature | None:
        """The curvature at x (B, C, H, W), None where it is not finite."""
        try:
            return curvature(self.model, x, sigma=sigma, iterations=self.effort.iterations, generator=source)
        except FloatingPointError:
            return None


def notes(facts: Facts) -> Iterator[str]:
    """What is worth knowing although it is not a fault."""
    if facts.single and facts.temperature is not None and facts.temperature < 0.5:
        yield (f"the temperature b²/(2a) is {facts.temperature:.2g}, so the sampler ends at modes of the energy instead of "
               "sampling from it")
    if facts.single and facts.temperature and facts.moves[0].drift > 0:
        first, steps = facts.moves[0], len(facts.moves)
        yield (f"in one step the noise is {first.noise_size / first.drift:.3g} times the drift, but over {steps} steps drift "
               f"can add up {steps}-fold and noise only {math.sqrt(steps):.3g}-fold")
    if facts.by_chance > FAR:
        yield (f"so few samples say little: for one draw in twenty of as many real images, the distance from the data's "
               f"statistics is {facts.by_chance:.2g} or more; raise effort.samples")
    asymmetry = max((at.curvature.asymmetry for at in facts.curvatures), default=0.0)
    if asymmetry > 0:
        yield (f"the score is not a gradient: its Jacobian has asymmetry {asymmetry:.2g}, and curvatures are those of its "
               "symmetric part")
