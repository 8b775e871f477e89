"""How to cure a sampler: other hyperparameters, another sampler or another training, tried on the twin first."""
from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ebm.diagnose.facts import Facts, Finding
from ebm.diagnose.trial import Bound, changed, try_on_twin
from ebm.samplers.annealed import annealed_langevin
from ebm.schedule import Levels, LogUniform, Range

MOST_MOVES = 4000  # that a prescription may ask for
STIFFNESS = 0.5  # a·L of a prescribed step: a quarter of the stability limit
TRAINING = ("model=unet", "schedule=lognormal")  # all levels, and a network conditioned on them


@dataclass(frozen=True, kw_only=True)
class Prescription:
    """``changes`` to the sampler's hyperparameters, by their names under ``sampler`` in a config; ``choices`` of config
    groups where it is another sampler; ``training``: overrides for the next run's training."""

    sampler: Bound | None  # ready to run; None where no sampler helps
    choices: tuple[str, ...]
    changes: Mapping[str, object]
    training: tuple[str, ...]
    words: str

    @property
    def overrides(self) -> list[str]:
        """What to add on the command line."""
        return [*self.choices, *(f"sampler.{name}={_written(value)}" for name, value in self.changes.items())]


def _written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def prescribe(facts: Facts, findings: list[Finding], *, seed: int) -> Prescription | None:
    """The cheapest cure found, None where nothing is wrong."""
    names = {finding.name for finding in findings}
    if not names:
        return None
    cure = _repaired(facts, names, seed=seed)
    training = TRAINING if cure is None or not cure.complete or ("blind" in names and not _covers(facts)) else ()
    advice = []
    if cure is not None:
        settings = ", ".join(f"{name} = {_written(value)}" for name, value in cure.changes.items())
        advice.append(f"sample with {' '.join((*cure.choices, settings))}"
                      + ("" if cure.complete else " (the best setting found, but no full cure)"))
    if training:
        advice.append(f"train with {' '.join(training)}, so that the model knows every level on the way from noise to images, "
                      "or for longer if it was trained that way already")
    return Prescription(
        sampler=cure.sampler if cure else None, choices=cure.choices if cure else (), changes=cure.changes if cure else {},
        training=training, words="; ".join(advice))


@dataclass(frozen=True, kw_only=True)
class Cure:
    """A candidate: choices of groups, changed hyperparameters, and the sampler that they make."""

    choices: tuple[str, ...]
    changes: Mapping[str, object]
    sampler: Bound
    complete: bool = False  # whether it samples the twin soundly


def _repaired(facts: Facts, names: set[str], *, seed: int) -> Cure | None:
    """The first candidate that samples the twin soundly, else the one that comes closest; None where there is none to try."""
    if "blind" in names and facts.trusted is None:
        return None
    best: tuple[float, Cure] | None = None
    for cure in _candidates(facts, names):
        if not cure.changes:  # the sampler as it is
            if "blind" in names and facts.trial.sound:  # it is the score that needs a cure
                return None
            continue
        trial = try_on_twin(cure.sampler, facts.reference, seed=seed)
        if trial.sound:
            return dataclasses.replace(cure, complete=True)
        off = max(abs(value) for value in trial.off)
        if best is None or off < 0.8 * best[0]:
            best = off, cure
    return best[1] if best else None


def _candidates(facts: Facts, names: set[str]) -> Iterator[Cure]:
    settings = facts.sampler.keywords
    if "step_size" in settings:
        yield from _single_level(facts, names)
        return
    limits = _limits(facts) if "blind" in names else {}
    if limits is None:
        return
    final: dict[str, object] = {"denoise": True} if "noise left" in names else {}
    for changes in sorted(_ladders(facts, names), key=lambda c: _moves({**settings, **c})):
        if _moves({**settings, **changes}) <= max(MOST_MOVES, _moves(settings)):
            every = {**changes, **final, **limits}
            yield Cure(choices=(), changes=every, sampler=changed(facts.sampler, every))


def _moves(settings: Mapping[str, object]) -> int:
    each = settings.get("steps_per_level", settings.get("corrector_steps", 0))
    assert isinstance(each, int) and isinstance(settings["steps"], int)
    return settings["steps"] * (each if "steps_per_level" in settings else 1 + each)


def _ladders(facts: Facts, names: set[str]) -> Iterator[dict[str, object]]:
    """Changes of a ladder's step size, moves per level and number of levels."""
    settings, sizes = facts.sampler.keywords, _sizes(facts, names)
    each = next((name for name in ("steps_per_level", "corrector_steps") if name in settings), None)
    as_many = (1,) if isinstance(settings["grid"], Levels) else (1, 2, 4, 8, 16)
    for size, more, finer in itertools.product(sizes, (1, 2, 4, 8, 16, 32), as_many):
        changes = dict(size)
        if each is not None and more > 1:
            changes[each] = max(1, settings[each]) * more
        if finer > 1:
            changes["steps"] = settings["steps"] * finer
        if each is not None or more == 1:
            yield changes


def _sizes(facts: Facts, names: set[str]) -> list[dict[str, object]]:
    """Candidates for a ladder's step size: the present one where it is stable, and the largest that is safe."""
    settings = facts.sampler.keywords
    safe = STIFFNESS / max([1.0, *(at.curvature.largest * at.curvature.sigma**2 for at in facts.ahead)])
    large = bool(names & {"diverging", "noise-dominated"})
    if "step_scale" in settings and facts.tested:
        return [{"step_scale": settings["step_scale"] / 2**halvings} if halvings else {} for halvings in range(8)] + [
            {"step_scale": round(safe, 4)}]
    if "step_scale" in settings:
        return [*([] if large else [{}]), {"step_scale": round(safe, 4)}]
    if "signal_to_noise" in settings:
        return [*([] if large else [{}]), {"signal_to_noise": round(math.sqrt(safe / 2), 4)}]
    return [{}]


def _limits(facts: Facts) -> dict[str, object] | None:
    """Limits that keep the grid to its trusted part; None where that is empty or a single level, or where the grid has none."""
    assert facts.trusted is not None
    if not isinstance(facts.sampler.keywords["grid"], Range):
        return None
    visited = [record.sigma for record in facts.path.records]
    least, greatest = (float(f"{sigma:.3g}") for sigma in facts.trusted)
    limits: dict[str, object] = {}
    if min(visited) < least:
        limits["grid.sigma_min"] = least
    if max(visited) > greatest:
        limits["grid.sigma_max"] = greatest
    return limits if max(least, min(visited)) < min(greatest, max(visited)) else None


def _covers(facts: Facts) -> bool:
    """Whether the score is trusted up to noise as wide as the data's widest directions."""
    return facts.trusted is not None and facts.trusted[1] >= math.sqrt(facts.reference.variances[0])


def _single_level(facts: Facts, names: set[str]) -> Iterator[Cure]:
    """A safe step size with ever more steps, and then a ladder that ends with a denoising step, which alone helps where noise
    is left, or missing as in a descent."""
    settings = facts.sampler.keywords
    largest = max([1e-12, *(at.curvature.largest for at in facts.ahead or facts.plausible)])
    unfit = bool(names & {"diverging", "noise-dominated", "frozen", "not mixed"})
    a = STIFFNESS / largest if unfit else settings["step_size"]
    if "diverging" in names:
        a = min(a, settings["step_size"] / 4)  # the step may be stable near the data but not where the path strays
    a = float(f"{a:.3g}")
    if not facts.descent and not names & {"noise left", "blind"}:
        for more in (1, 2, 4, 8, 16):
            if settings["steps"] * more <= MOST_MOVES:
                changes = {"step_size": a, "steps": settings["steps"] * more, "noise_size": None}
                yield Cure(choices=(), changes=changes, sampler=changed(facts.sampler, changes))
    yield from _ladder_instead(facts, a)


def _ladder_instead(facts: Facts, a: float) -> Iterator[Cure]:
    """Annealed Langevin within the trusted levels: one level with a final denoising step, then a whole ladder."""
    sigma, steps = facts.path.records[-1].sigma, facts.sampler.keywords["steps"]
    low, high = facts.trusted or (sigma, sigma)
    scale = round(min(a / sigma**2, STIFFNESS), 4)
    top = min(high, max(3 * math.sqrt(facts.reference.variances[0]), sigma))
    bottom = max(low, min(0.01, sigma))
    ranges = []
    if _covers(facts) and top > 1.1 * bottom:  # otherwise its start would not be a noised image
        rungs = math.ceil(math.log(top / bottom) / math.log(1 + 3 / math.sqrt(2 * facts.reference.dimensions)))
        ranges.append((bottom, top, max(2, rungs)))
    if low <= sigma <= high:
        ranges.insert(0, (sigma * 0.999, sigma, 1))
    for least, greatest, levels in ranges:
        for each in ([steps, 4 * steps] if levels == 1 else [2, 5, 10, 20]):
            if levels * each > MOST_MOVES:
                continue
            changes: dict[str, object] = {
                "steps": levels, "steps_per_level": each, "step_scale": scale,
                "denoise": True,
                "grid.sigma_min": float(f"{least:.4g}"), "grid.sigma_max": float(f"{greatest:.4g}")}
            grid = LogUniform(sigma_min=float(f"{least:.4g}"), sigma_max=float(f"{greatest:.4g}"))
            inner = {name: value for name, value in changes.items() if not name.startswith("grid.")}
            yield Cure(choices=("sampler=annealed", "sampler/grid=loguniform"), changes=changes,
                       sampler=functools.partial(annealed_langevin, grid=grid, **inner))  # type: ignore[arg-type]
