"""What else a failing run can show: each fault is planted, and its absence is not reported."""
from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from exact import Gaussian
from test_diagnose_regimes import EFFORT, LANGEVIN, diagnosed, plain
from torch import Tensor

from ebm.diagnose.calibration import calibrate
from ebm.diagnose.reference import Reference
from ebm.diagnose.training import data_range, rounding_floor, sample_range, short_average, spread, unguided
from ebm.precision import Precision
from ebm.samplers.annealed import annealed_langevin
from ebm.samplers.langevin import langevin
from ebm.samplers.ode import dpm_solver_pp_2m
from ebm.schedule import LogUniform
from ebm.train.ema import Halflife, PowerFunction


class Walled:
    """E = ‖x‖²/2 + Σ max(0, |x| − 4)⁴·20: gentle inside, and sharper the further a pixel strays."""

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x.square() / 2 + 20 * (x.abs() - 4).clamp(min=0) ** 4).flatten(1).sum(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return -(x + 80 * (x.abs() - 4).clamp(min=0) ** 3 * x.sign())


def test_nan_after_a_while_is_traced_to_a_curvature_that_grew() -> None:
    sampler = partial(langevin, **{**LANGEVIN, "sigma": 1.0, "start": 0.3, "step_size": 0.3, "steps": 400})
    found = diagnosed(Walled(), sampler, data=plain(0.2))
    (finding,) = [one for one in found.findings if one.name == "diverging"]
    broken = finding.numbers["not_finite_after_step"]
    assert broken is not None and broken > 5, finding
    assert (finding.numbers["curvature_grew"] or 0) > 2
    assert found.prescription is not None and found.prescription.changes["step_size"] < 0.3  # type: ignore[operator]


def test_an_energy_that_drifts_is_seen() -> None:
    class Leaking(Gaussian):
        """A linear slope along one direction that ends nowhere."""

        def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
            return super().energy(x, sigma) - 30 * x[:, 0, 0, 0].abs() * 10

        def score(self, x: Tensor, sigma: Tensor) -> Tensor:
            s = super().score(x, sigma).clone()
            s[:, 0, 0, 0] = 300 * x[:, 0, 0, 0].sign()
            return s

    law = plain(0.1)
    sampler = partial(langevin, **{**LANGEVIN, "step_size": 0.02, "start": 0.5})
    assert "not mixed" not in diagnosed(law, sampler).verdicts
    leaking = diagnosed(Leaking(mean=law.mean, std=law.std), sampler, data=law)
    assert any(finding.numbers.get("energy_drift") for finding in leaking.findings if finding.name == "not mixed")


def test_a_short_average_is_seen() -> None:
    short, fair, power = Halflife(images=100, rampup=0.05), Halflife(images=100_000, rampup=0.05), PowerFunction(sigma_rel=0.1)
    assert short_average(short.decay, step=10_000, batch=32) is not None
    assert short_average(fair.decay, step=10_000, batch=32) is None
    assert short_average(power.decay, step=10_000, batch=32) is None


class Coarse:
    """An exact narrow law that rounds its input to bfloat16 under autocast, as a network does."""

    def __init__(self, law: Gaussian) -> None:
        self.law = law

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.law.score(x.bfloat16().float() if torch.is_autocast_enabled("cpu") else x, sigma)


def test_the_floor_of_bf16_is_seen_at_small_noise_only() -> None:
    law = Gaussian(mean=torch.full((2, 8, 8), 0.7), std=torch.full((2, 8, 8), 0.0005))
    x = law.sample(32, sigma=0.0, generator=torch.Generator().manual_seed(0))
    for precision, expected in (("bf16", True), ("fp32", False)):
        rows = [calibrate(Coarse(law), x, sigma=sigma, conditioning_sigma=sigma, batch=32, precision=Precision(name=precision),
                          generator=torch.Generator().manual_seed(1)) for sigma in (0.001, 0.1, 1.0)]
        assert [row.rounded for row in rows] == [expected, False, False]
        assert (rounding_floor(rows) is not None) == expected


def test_ranges_of_data_are_told_apart() -> None:
    images = torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert data_range(images) is not None and data_range(255 * images) is not None
    assert data_range(2 * images - 1) is None
    reference = Reference.fit(2 * images - 1, components=8)
    other = torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    assert sample_range(other, reference) is not None
    assert sample_range(2 * other - 1, reference) is None
    found = spread(Reference.fit(0.3 * images, components=8), sigma_data=0.5)
    assert found is not None and found.words.endswith(f"train with data.sigma_data={0.3 * float(images.std()):.3g}")
    assert spread(reference, sigma_data=0.5) is None


def test_samples_of_a_model_trained_in_another_range_are_seen() -> None:
    wrong = Gaussian(mean=torch.full((2, 8, 8), 0.5), std=torch.full((2, 8, 8), 0.1))  # [0, 1]
    right = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.full((2, 8, 8), 0.2))
    sampler = partial(dpm_solver_pp_2m, grid=LogUniform(sigma_min=0.02, sigma_max=10), steps=40)
    assert "data range" in diagnosed(wrong, sampler, data=right).verdicts
    assert "data range" not in diagnosed(right, sampler).verdicts


def test_a_missing_denoising_step_is_seen_above_a_grey_level_only() -> None:
    for sigma_min, expected in ((0.03, True), (0.004, False)):
        sampler = partial(annealed_langevin, grid=LogUniform(sigma_min=sigma_min, sigma_max=10), steps=60, steps_per_level=8,
                          step_scale=0.3, denoise=False)
        assert ("noise left" in diagnosed(plain(0.3), sampler).verdicts) == expected


def test_a_loss_that_falls_without_guidance_is_said() -> None:
    assert "cannot guide a sampler" in (unguided([1.5, 1.2, 1.0], [-0.01, 0.001]) or "")
    assert unguided([1.5, 1.2, 0.4], [0.1, 0.5]) is None
    assert unguided([1.0, 0.99], [0.0]) is None


def test_samples_too_few_to_judge_by_are_said() -> None:
    law = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.logspace(-2, 0, 128).view(2, 8, 8))
    sampler = partial(dpm_solver_pp_2m, grid=LogUniform(sigma_min=0.02, sigma_max=10), steps=40)
    few, enough = (diagnosed(law, sampler, effort=replace(EFFORT, samples=count)) for count in (2, 16))
    assert few.verdicts == enough.verdicts == ["healthy"]
    assert any(note.startswith("so few samples say little") for note in few.notes)
    assert not any("few samples" in note for note in enough.notes)


def test_too_little_effort_is_refused() -> None:
    with pytest.raises(ValueError, match="samples: 1 is not accepted"):
        type(EFFORT)(samples=1, calibration=32, levels=2, states=4, curvature=2, iterations=12, components=64)
