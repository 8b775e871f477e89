"""Verdicts where truth is known: each sampler driven into each regime on exact laws, and cured by what is prescribed."""
from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from exact import Gaussian, GaussianMixture
from test_samplers import EVERY, gaussian, mixture
from torch import Tensor

from ebm.diagnose.doctor import Diagnosis, Doctor, Effort
from ebm.precision import Precision
from ebm.samplers.annealed import annealed_langevin, predictor_corrector
from ebm.samplers.langevin import gradient_descent, langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import dpm_solver_pp_2m, heun
from ebm.schedule import Karras, Levels, LogUniform

EFFORT = Effort(samples=16, calibration=32, levels=2, states=4, curvature=2, iterations=12, components=64)
NEAR, FAR = LogUniform(sigma_min=0.02, sigma_max=10), Karras(sigma_min=0.02, sigma_max=50, rho=7)
LANGEVIN = {"sigma": 0.5, "start": 1.0, "steps": 200, "step_size": 0.02, "noise_size": None, "clamp": None}
ANNEALED = {"grid": NEAR, "steps": 40, "steps_per_level": 8, "step_scale": 0.3, "denoise": True}
CORRECTED = {"grid": NEAR, "steps": 80, "corrector_steps": 1, "signal_to_noise": 0.3, "denoise": True}
DESCENT = {"sigma": 0.5, "start": 1.0, "steps": 200, "step_size": 0.02, "clamp": None}


def scaled() -> Gaussian:
    """Badly scaled: standard deviations from 0.02 to 2 among the pixels."""
    return Gaussian(mean=torch.zeros(2, 8, 8), std=torch.logspace(math.log10(0.02), math.log10(2), 128).view(2, 8, 8))


def plain(std: float) -> Gaussian:
    return Gaussian(mean=torch.zeros(2, 8, 8), std=torch.full((2, 8, 8), std))


LAWS = {"gaussian": lambda: gaussian(size=8), "narrow": lambda: plain(0.1), "wide": lambda: plain(1.0), "scaled": scaled,
        "mixture": mixture}


def diagnosed(law: object, sampler: partial, *, data: object = None, trained: tuple[float, float] = (0.02, 10.0),
              effort: Effort = EFFORT) -> Diagnosis:
    source: Gaussian | GaussianMixture = data or law  # type: ignore[assignment]
    images: Tensor = source.sample(512, sigma=0.0, generator=torch.Generator().manual_seed(0)).float()
    doctor = Doctor(model=law, images=images, trained=trained, effort=effort,  # type: ignore[arg-type]
                    precision=Precision(name="fp32"), seed=0, tell=lambda what, done, total: None)
    return doctor.diagnose(sampler)


def wild(step: float, **more: object) -> dict[str, object]:
    return {**LANGEVIN, "step_size": step, **more}


# Noise 0.5 at σ = 0.5 stays in every image of `langevin`: that is the truth too, wherever nothing worse hides it.
REGIMES = {
    "langevin, all well but for its noise": ("gaussian", partial(langevin, **LANGEVIN), {"noise left"}),
    "langevin, unstable": ("narrow", partial(langevin, **wild(0.6)), {"diverging"}),
    "langevin, unstable and clamped": ("narrow", partial(langevin, **wild(2.0, clamp=1.0)), {"diverging"}),
    "langevin, not finite": ("narrow", partial(langevin, **wild(50.0)), {"diverging"}),
    "langevin, too hot": ("gaussian", partial(langevin, **wild(0.02, noise_size=1.0)), {"noise-dominated"}),
    "langevin, step near the bound": ("narrow", partial(langevin, **wild(0.4)), {"noise-dominated"}),
    "langevin, tiny step": ("gaussian", partial(langevin, **wild(1e-5)), {"frozen"}),
    "langevin, too short": ("wide", partial(langevin, **wild(0.01, steps=100, start=4.0)), {"not mixed", "noise left"}),
    "descent, unstable": ("narrow", partial(gradient_descent, **{**DESCENT, "step_size": 0.7}), {"diverging"}),
    "descent, collapsing on the clamp": ("narrow", partial(gradient_descent, **{**DESCENT, "step_size": 3.0, "clamp": 1.0}),
                                         {"diverging"}),
    "descent, tiny step": ("scaled", partial(gradient_descent, **{**DESCENT, "step_size": 1e-5}), {"frozen"}),
    "annealed, unstable": ("narrow", partial(annealed_langevin, **{**ANNEALED, "step_scale": 2.3}), {"diverging"}),
    "annealed, step near the bound": ("narrow", partial(annealed_langevin, **{**ANNEALED, "step_scale": 1.5}),
                                      {"noise-dominated"}),
    "annealed, tiny step": ("gaussian", partial(annealed_langevin, **{**ANNEALED, "step_scale": 1e-4}), {"frozen"}),
    "annealed, ladder too coarse": ("narrow", partial(annealed_langevin, **{**ANNEALED, "steps": 5, "steps_per_level": 2}),
                                    {"stuck between levels"}),
    "annealed, noise left": ("gaussian", partial(annealed_langevin, **{**ANNEALED, "denoise": False}), {"noise left"}),
    "corrected, ladder too coarse": ("narrow", partial(predictor_corrector, **{**CORRECTED, "steps": 4}),
                                     {"stuck between levels"}),
    "corrected, noise left": ("gaussian", partial(predictor_corrector, **{**CORRECTED, "denoise": False}), {"noise left"}),
    "metropolis, refused": ("narrow", partial(metropolis_annealed, **{**ANNEALED, "step_scale": 30.0}), {"frozen"}),
    "heun, too few steps": (
        "gaussian", partial(heun, grid=FAR, steps=2, churn=0, churn_min=0, churn_max=math.inf, churn_noise=1), {"not mixed"}),
    "multistep, too few steps": ("gaussian", partial(dpm_solver_pp_2m, grid=FAR, steps=2), {"not mixed"}),
    "multistep, from too little noise": (
        "wide", partial(dpm_solver_pp_2m, grid=LogUniform(sigma_min=0.02, sigma_max=0.3), steps=40), {"not mixed"}),
}
CURABLE = [name for name in REGIMES if name not in ("multistep, from too little noise",)]


@pytest.mark.parametrize("name", REGIMES)
def test_each_regime_is_recognised_and_cured(name: str) -> None:
    law, sampler, expected = REGIMES[name]
    found = diagnosed(LAWS[law](), sampler)
    assert set(found.verdicts) == expected, found.findings
    assert found.prescription is not None
    if name not in CURABLE:
        return
    assert found.prescription.sampler is not None, found.prescription
    again = diagnosed(LAWS[law](), found.prescription.sampler)
    left = {"noise left"} if "sampler=annealed" not in found.prescription.choices and "noise left" not in expected else set()
    assert set(again.verdicts) - left <= {"healthy"}, (found.prescription.overrides, again.findings)
    if "start" not in sampler.keywords:
        assert again.facts.path.records[-1].distance < 0.35


def test_healthy_settings_raise_no_false_alarm() -> None:
    alarms = []
    for law in LAWS:
        for name, sampler in EVERY.items():
            if law == "scaled" and name in ("langevin", "annealed", "metropolis", "gradient descent"):
                continue  # steps of the size of σ² at every level leave its widest pixels behind: these are not healthy there
            found = diagnosed(LAWS[law](), sampler)
            truth = {"langevin": "noise left", "gradient descent": "not mixed"}.get(name)  # of σ = 1; a mode is no sample
            alarms += [(law, name, finding.name, finding.words) for finding in found.findings if finding.name != truth]
    assert not alarms


def test_a_small_drift_in_one_step_is_not_called_noise_dominated() -> None:
    found = diagnosed(plain(0.3), partial(langevin, **wild(4e-4, steps=1500, start=0.6)))
    first = found.facts.path.records[0]
    assert first.noise_size > 30 * first.drift
    assert "noise-dominated" not in found.verdicts
    assert found.facts.path.records[-1].drift_total > 0.5 * math.sqrt(2 * 4e-4 * 1500)


class Fixed:
    """An exact law that is told one level whatever is asked: a model without σ."""

    def __init__(self, law: Gaussian, *, level: float) -> None:
        self.law, self.level = law, level

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.law.energy(x, torch.full_like(sigma, self.level))

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.law.score(x, torch.full_like(sigma, self.level))


def test_a_model_without_sigma_is_blind_off_its_level() -> None:
    law = plain(0.1)
    found = diagnosed(Fixed(law, level=0.5), partial(annealed_langevin, **ANNEALED), data=law, trained=(0.5, 0.5))
    assert "blind" in found.verdicts
    low, high = found.facts.trusted or (0.0, 0.0)
    assert low <= 0.5 <= high and high < 2
    at_home = diagnosed(Fixed(law, level=0.5), partial(langevin, **LANGEVIN), data=law, trained=(0.5, 0.5))
    assert at_home.verdicts == ["noise left"]


@pytest.mark.parametrize("sampler", [
    partial(annealed_langevin, **ANNEALED | {"steps": 10}),
    partial(predictor_corrector, **CORRECTED | {"grid": LogUniform(sigma_min=2, sigma_max=10)})], ids=["one level", "none"])
def test_a_grid_of_which_no_part_is_trusted_is_not_cured_by_a_shorter_one(sampler: partial) -> None:
    law = plain(0.1)
    found = diagnosed(Fixed(law, level=0.5), sampler, data=law, trained=(0.5, 0.5))
    assert "blind" in found.verdicts
    assert found.prescription is not None and found.prescription.training


@pytest.mark.parametrize("model", [plain(0.1), Fixed(plain(0.1), level=0.5)], ids=["too coarse", "blind"])
def test_listed_levels_are_left_as_they_are(model: object) -> None:
    sampler = partial(annealed_langevin, **ANNEALED | {"grid": Levels(levels=[10, 1, 0.1]), "steps": 3})
    found = diagnosed(model, sampler, data=plain(0.1))
    assert found.verdicts != ["healthy"] and found.prescription is not None
    assert not {"steps", "grid.sigma_min", "grid.sigma_max"} & set(found.prescription.changes)


class WrongAbove:
    """An exact law up to a level, and nothing above it."""

    def __init__(self, law: Gaussian, *, level: float) -> None:
        self.law, self.level = law, level

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.law.score(x, sigma) * torch.where(sigma > self.level, -1.0, 1.0).view(-1, 1, 1, 1)


def test_levels_that_are_not_trusted_are_not_prescribed() -> None:
    found = diagnosed(WrongAbove(plain(0.1), level=1.0), partial(langevin, **LANGEVIN | {"sigma": 3.0, "start": 3.0}),
                      data=plain(0.1))
    assert "blind" in found.verdicts
    assert found.facts.trusted is not None and found.facts.trusted[1] < 1.1
    assert found.prescription is not None
    assert found.prescription.changes["grid.sigma_max"] <= found.facts.trusted[1]  # type: ignore[operator]


@pytest.mark.parametrize("step_size", [0.2499, 0.25])
def test_a_descent_whose_step_is_as_long_as_a_denoising_is_one(step_size: float) -> None:
    found = diagnosed(plain(0.3), partial(gradient_descent, **DESCENT | {"step_size": step_size}))
    assert found.facts.descent
    assert found.verdicts == ["not mixed"]


@pytest.mark.parametrize(("name", "sampler"), [
    ("heun", partial(heun, grid=FAR, steps=64, churn=0.0, churn_min=0.0, churn_max=50.0, churn_noise=1.0)),
    ("heun_churn", partial(heun, grid=FAR, steps=64, churn=30.0, churn_min=0.0, churn_max=50.0, churn_noise=1.0)),
    ("predictor_corrector", partial(predictor_corrector, **CORRECTED | {"corrector_steps": 4}))])
def test_a_sound_samplers_states_lie_where_they_are_said_to(name: str, sampler: partial) -> None:
    found = diagnosed(plain(0.5), sampler)
    far = max(record.distance for record in found.facts.path.records)
    assert far < 0.2, f"{name}: a state is said to be {far:.2f} off its level"


def test_moves_that_were_refused_move_nothing() -> None:
    sampler = partial(metropolis_annealed, grid=NEAR, steps=10, steps_per_level=5, step_scale=30.0, denoise=False)
    last = diagnosed(plain(0.3), sampler).facts.path.records[-1]
    assert last.drift_total < 10 * last.moved, (last.drift_total, last.moved)
    assert last.noise_total < 10 * last.moved, (last.noise_total, last.moved)


def test_a_sound_sampler_of_a_wrong_score_is_not_cured_by_another() -> None:
    """More steps of a wrong score end as wrong: what is prescribed is training."""
    wrong = Gaussian(mean=torch.full((2, 8, 8), 0.7), std=torch.full((2, 8, 8), 0.3))
    diagnosis = diagnosed(wrong, partial(dpm_solver_pp_2m, grid=NEAR, steps=40), data=plain(0.3))
    assert "blind" in diagnosis.verdicts
    assert diagnosis.facts.trial.sound
    assert diagnosis.prescription is not None
    assert diagnosis.prescription.sampler is None
    assert diagnosis.prescription.training
    assert "for longer" in diagnosis.prescription.words
