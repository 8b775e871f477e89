"""Verdicts turn at the thresholds of docs/diagnosis.md, each of which is tested on both sides."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_diagnose_regimes import EFFORT, plain

from ebm.diagnose.calibration import GREY, Calibration, calibrate
from ebm.diagnose.curvature import Curvature
from ebm.diagnose.doctor import Doctor
from ebm.diagnose.facts import CurvatureAt, Facts
from ebm.diagnose.ladder import Ladder, ladder
from ebm.diagnose.training import short_average, spread, unguided
from ebm.diagnose.trial import Trial
from ebm.diagnose.verdict import astray, blind, diverging, frozen, noise_dominated, noise_left, not_mixed, stuck
from ebm.precision import Precision
from ebm.randomness import generator
from ebm.samplers.langevin import langevin
from ebm.train.ema import Halflife

LADDER = Ladder(levels=40, overlap=0.9, lag=1.1, needed=6.0, possible=50.0, left=0.0)
LEVEL = Calibration(sigma=0.5, explained=0.9, slope=1.0, slope_error=0.01, direction=0.9, gaussian=0.5, rounding=0.0)


def curvature_at(stiffness: float) -> CurvatureAt:
    """A curvature on a path whose steps have the size ½."""
    shape = Curvature(sigma=0.5, largest=2 * stiffness, smallest=0.1, mean=1.0, asymmetry=0.0)
    return CurvatureAt(index=3, curvature=shape, step_size=0.5, on_path=True)


def facts(*, stiffness: float = 0.5, last: dict[str, Any] | None = None, records: list[Any] | None = None, **more: Any) -> Any:
    """Facts of a healthy run down a ladder, except for what is given; ``last`` changes its last move."""
    move = SimpleNamespace(sigma=0.5, step_size=0.5, noise_size=1.0, drift=0.2, clamped=0.0, energy=None, distance=0.1,
                           noise=0.0, acceptance=None, denoising=False)
    final = SimpleNamespace(**{**vars(move), **(last or {})})
    path = SimpleNamespace(records=records or [*[move] * 9, final], broken=None)
    healthy = {"sharpest": curvature_at(stiffness), "plausible": (curvature_at(stiffness),), "path": path, "tested": False,
               "temperature": 1.0, "moves": path.records, "ladder": LADDER, "relaxation": None, "single": False,
               "calibrations": (LEVEL,), "trusted": (0.5, 0.5), "beginning": None, "descent": False, "by_chance": 0.1,
               "trial": SimpleNamespace(off=(0.0,), lost=0.0), "reference": SimpleNamespace(dimensions=200, scatter=0.25)}
    return SimpleNamespace(**{**healthy, **more})


def drifting(by: float) -> Any:
    """Facts at one level whose mean energy changes by so much over the second half of the steps; 3 √(D/2) is 30."""
    slope = by / 50
    moves = [SimpleNamespace(energy=step * slope, clamped=0.0, distance=0.1) for step in range(100)]
    return facts(records=moves, single=True, relaxation=9.0)


def untrusted(count: int) -> Any:
    """Facts of twenty steps, ``count`` of which read the score at an untrusted level."""
    levels = (LEVEL, replace(LEVEL, sigma=8.0, slope=0.1))
    return facts(calibrations=levels, records=[SimpleNamespace(sigma=8.0 if step < count else 0.5) for step in range(20)])


WIDE = math.nextafter(2, 3)
CASES: dict[str, tuple[Callable[[Any], object], Any, Any]] = {  # a rule, facts just within it and just beyond
    "a·L": (diverging, facts(stiffness=2.0), facts(stiffness=WIDE)),
    "a·L of tested moves": (diverging, facts(stiffness=99.0, tested=True), facts(stiffness=99.0)),
    "clamped": (diverging, facts(last={"clamped": 0.5}), facts(last={"clamped": 0.51})),
    "temperature": (noise_dominated, facts(temperature=1.49), facts(temperature=1.51)),  # a·L of ½ adds a third
    "a step near 2/L": (noise_dominated, facts(stiffness=0.99), facts(stiffness=1.01)),
    "relaxation": (frozen, facts(single=True, relaxation=0.51), facts(single=True, relaxation=0.49)),
    "a ladder's e-folds": (frozen, facts(ladder=replace(LADDER, possible=1.51)), facts(ladder=replace(LADDER, possible=1.49))),
    "a ladder with hardly any way": (frozen, facts(ladder=replace(LADDER, needed=0.5, possible=0.0)),
                                     facts(ladder=replace(LADDER, needed=0.51, possible=0.0))),
    "acceptance": (frozen, facts(moves=[SimpleNamespace(acceptance=0.101)]), facts(moves=[SimpleNamespace(acceptance=0.099)])),
    "untrusted steps": (blind, untrusted(2), untrusted(3)),
    "direction at the start": (blind, facts(beginning=replace(LEVEL, direction=0.251)),
                               facts(beginning=replace(LEVEL, direction=0.249))),
    "lag": (stuck, facts(ladder=replace(LADDER, overlap=0.2, lag=1.5)), facts(ladder=replace(LADDER, overlap=0.2, lag=1.51))),
    "overlap": (stuck, facts(ladder=replace(LADDER, overlap=0.31, lag=9.0)),
                facts(ladder=replace(LADDER, overlap=0.3, lag=9.0))),
    "too wide": (not_mixed, facts(trial=SimpleNamespace(off=(0.0, 0.34), lost=0.0)),
                 facts(trial=SimpleNamespace(off=(0.0, 0.36), lost=0.0))),
    "too narrow": (not_mixed, facts(trial=SimpleNamespace(off=(-0.34, 0.0), lost=0.0)),
                   facts(trial=SimpleNamespace(off=(-0.36, 0.0), lost=0.0))),
    "energy that rises": (not_mixed, drifting(29.0), drifting(31.0)),
    "energy that falls": (not_mixed, drifting(-29.0), drifting(-31.0)),
    "a descent's end": (not_mixed, facts(descent=True, last={"distance": 0.5}), facts(descent=True, last={"distance": 0.51})),
    "noise left": (noise_left, facts(ladder=replace(LADDER, left=GREY)), facts(ladder=replace(LADDER, left=1.01 * GREY))),
    "noise that a denoising takes": (noise_left, facts(ladder=replace(LADDER, left=0.5), last={"denoising": True}),
                                     facts(ladder=replace(LADDER, left=0.5))),
    "far": (astray, facts(last={"distance": 0.5}), facts(last={"distance": 0.51})),
    "far by chance": (astray, facts(last={"distance": 0.8}, by_chance=0.8), facts(last={"distance": 0.81}, by_chance=0.8)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_turns_where_the_documentation_says(name: str) -> None:
    rule, well, ill = CASES[name]
    assert rule(well) is None
    assert rule(ill) is not None


@pytest.mark.parametrize(("well", "ill"), [
    ({"explained": 0.376}, {"explained": 0.374}),  # a gain of −0.25 where a Gaussian explains half
    ({"slope": 0.781}, {"slope": 0.779}), ({"slope": 1.219}, {"slope": 1.221}),  # 0.2 and two standard errors of 0.01
    ({"rounding": 0.5}, {"rounding": 0.51}), ({"sigma": 0.99 * GREY, "slope": 9.0}, {"sigma": 1.01 * GREY, "slope": 9.0}),
    ({}, {"explained": math.nan})])
def test_a_level_is_trusted_as_the_documentation_says(well: dict[str, float], ill: dict[str, float]) -> None:
    assert replace(LEVEL, **well).trusted
    assert not replace(LEVEL, **ill).trusted


def test_a_cure_is_sound_where_the_twin_is_sampled_well() -> None:
    well = Trial(off=(0.35, -0.35), lost=0.5, ladder=replace(LADDER, lag=1.4), acceptance=0.31)
    assert well.sound and replace(well, acceptance=None).sound
    for change in ({"off": (0.36,)}, {"off": (-0.36,)}, {"lost": 0.51}, {"ladder": replace(LADDER, lag=1.41)},
                   {"acceptance": 0.3}):
        assert not replace(well, **change).sound, change  # type: ignore[arg-type]


def test_faults_of_the_run_itself_have_their_thresholds() -> None:
    reference = facts().reference  # whose images have the standard deviation ½
    for sigma_data, fits in ((0.81, False), (0.79, True), (0.32, True), (0.31, False)):
        assert (spread(reference, sigma_data=sigma_data) is None) == fits, sigma_data
    average = partial(short_average, step=10_000, batch=10)  # under 100 steps is short: a half-life of 693 images
    assert average(Halflife(images=700, rampup=1.0).decay) is None
    assert average(Halflife(images=680, rampup=1.0).decay) is not None
    assert short_average(Halflife(images=5, rampup=1.0).decay, step=99, batch=10) is None
    assert unguided([1.0, 0.91], [0.0]) is None and unguided([1.0, 0.89], [0.0]) is not None
    assert unguided([1.0, 0.5], [0.021, -1.0]) is None and unguided([1.0, 0.5], [0.019]) is not None


def test_no_prescribed_step_is_longer_than_a_quarter_of_the_stable_one() -> None:
    from ebm.diagnose.prescription import _single_level, _sizes

    settings = {"steps": 10, "step_size": 0.5, "sigma": 0.5, "start": 1.0, "noise_size": None, "clamp": None}
    met = facts(stiffness=4.0, ahead=(curvature_at(4.0),), sampler=partial(langevin, **settings))  # L = 8: stable below ¼
    first = next(_single_level(met, {"diverging"}))
    assert first.changes["step_size"] == pytest.approx(1 / 16, rel=0.01)
    gentle = facts(ahead=(curvature_at(0.5),), sampler=met.sampler)  # L = 1 near the data, and yet it diverged
    assert next(_single_level(gentle, {"diverging"})).changes["step_size"] == pytest.approx(0.5 / 4, rel=0.01)
    ladder = SimpleNamespace(sampler=SimpleNamespace(keywords={"step_scale": 3.0}), ahead=(curvature_at(8.0),), tested=False)
    assert _sizes(ladder, {"diverging"}) == [{"step_scale": pytest.approx(0.5 / (16 * 0.25))}]  # type: ignore[arg-type]


def test_curvatures_of_states_that_have_exploded_are_ignored() -> None:
    """Three times as wide as the start or the noised data is as far as images can be."""
    curvatures = tuple(replace(curvature_at(0.5), index=index, on_path=index < 3) for index in range(4))
    records = [SimpleNamespace(index=index, rms=rms) for index, rms in enumerate((0.5, 2.12, 2.13, 99.0))]
    met = SimpleNamespace(path=SimpleNamespace(start=torch.full((2, 3), 0.1), records=records), curvatures=curvatures,
                          reference=SimpleNamespace(scatter=0.25))  # and σ = ½: 9 · (0.25 + 0.25) is 2.1213²
    plausible: Any = Facts.plausible
    assert [one.index for one in plausible.fget(met)] == [0, 1, 3]
    met.path.start = torch.full((2, 3), 0.8)
    assert [one.index for one in plausible.fget(met)] == [0, 1, 2, 3]


@pytest.mark.parametrize("acceptance", [None, 0.5])
def test_rejected_moves_remove_no_noise(acceptance: float | None) -> None:
    share, variance, possible, records = acceptance or 1.0, 4.0, 0.0, []
    for sigma in (1.0, 1.0, 0.5):
        a = 0.3 * sigma**2
        records.append(SimpleNamespace(sigma=sigma, step_size=a, noise_size=math.sqrt(2 * a), acceptance=acceptance,
                                       denoising=False))
        variance = (1 - 0.3 * share) ** 2 * variance + 2 * a * share
        possible += 0.3 * share
    found = ladder(records, start=2.0, dimensions=192)  # type: ignore[arg-type]
    assert (found.left, found.possible) == pytest.approx((math.sqrt(variance), possible))
    assert (found.levels, found.needed) == (2, pytest.approx(math.log(2 / 0.5)))


def test_the_doctor_calibrates_the_score_at_the_level_that_the_model_is_conditioned_on() -> None:
    law, levels = plain(0.3), (0.5, 1.0)
    images = law.sample(32, sigma=0.0, generator=torch.Generator().manual_seed(0))
    doctor = Doctor(model=law, images=images, trained=(0.1, 2.0), effort=EFFORT, precision=Precision(name="fp32"), seed=0,
                    tell=lambda what, done, total: None)
    for level in levels:
        expected = calibrate(law, images, sigma=1.0, conditioning_sigma=level, batch=16, precision=Precision(name="fp32"),
                             generator=generator("cpu", 0, "calibration", "1.0"))
        assert doctor.calibrate(1.0, conditioning_sigma=level) == expected
    assert [round(doctor.calibrate(1.0, conditioning_sigma=level).slope, 1) for level in levels] == [0.3, 1.0]  # V(level)/V(1)
