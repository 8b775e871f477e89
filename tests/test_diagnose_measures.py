"""Each measurement of the doctor against its closed form."""
from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from exact import Gaussian, GaussianMixture
from models import direct, energy, normal
from torch import Tensor
from torch.testing import assert_close

from ebm.diagnose.calibration import calibrate, trusted_range
from ebm.diagnose.curvature import curvature
from ebm.diagnose.ladder import overlap
from ebm.diagnose.reference import Reference
from ebm.diagnose.trial import try_on_twin
from ebm.precision import Precision
from ebm.samplers.langevin import langevin


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def level(model: object, x: Tensor, sigma: float, **more: object) -> object:
    return calibrate(model, x, **{"sigma": sigma, "conditioning_sigma": sigma, "batch": 64, "precision": Precision(name="fp32"),  # type: ignore
                                  "generator": source(), **more})


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_calibration_of_a_scaled_gaussian_score(sigma: float, scale: float) -> None:
    law = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.full((2, 8, 8), 0.4))

    class Scaled:
        def score(self, x: Tensor, sigma: Tensor) -> Tensor:
            return scale * law.score(x, sigma)

    found = level(Scaled(), law.sample(256, sigma=0, generator=source(1)), sigma)
    best = sigma**2 / (sigma**2 + 0.4**2)
    assert found.slope == pytest.approx(1 / scale, rel=0.05)
    assert found.explained == pytest.approx((2 * scale - scale**2) * best, abs=0.05 * best)
    assert found.direction == pytest.approx(best, rel=0.05)
    assert found.trusted == (scale == 1.0)


def test_the_trusted_range_is_the_widest() -> None:
    law = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.full((2, 8, 8), 0.4))
    x = law.sample(64, sigma=0, generator=source(1))
    rows = [level(law, x, sigma, conditioning_sigma=sigma if 0.1 < sigma < 4 else 10 * sigma)
            for sigma in (0.05, 0.2, 1.0, 3.0, 8.0)]
    assert trusted_range(rows) == (0.2, 3.0)
    assert trusted_range(rows[:1]) is None


@pytest.mark.parametrize("low", [0.01, 0.5])
def test_the_stability_bound_is_right_to_five_percent(low: float) -> None:
    std = torch.linspace(low, 2, 128).view(2, 8, 8)
    law = Gaussian(mean=torch.zeros(2, 8, 8), std=std)
    found = curvature(law, normal(3, 2, 8, 8, seed=0), sigma=0.1, iterations=12, generator=source())
    exact = 1 / (std.double() ** 2 + 0.01)
    assert found.largest == pytest.approx(float(exact.max()), rel=0.05)
    assert found.smallest > 0.999 * float(exact.min())  # Ritz values lie inside the spectrum
    assert found.mean == pytest.approx(float(exact.mean()), rel=0.3)
    noise = torch.randn(4, 2, 8, 8, generator=source())
    for factor, grows in ((0.97, False), (1.03, True)):  # and the bound is one: just below and above it
        steps = list(langevin(law, noise, sigma=0.1, start=1, steps=400, step_size=factor * 2 / found.largest, noise_size=0.0,
                              clamp=None, generators=[source(i) for i in range(4)]))
        assert (steps[-1].x.norm() > 10 * steps[0].x.norm()) == grows


def test_negative_curvature_between_modes_and_an_isotropic_law() -> None:
    means = torch.stack([torch.full((1, 2, 2), -1.0), torch.full((1, 2, 2), 1.0)]).double()
    law = GaussianMixture(means=means, stds=torch.full((2,), 0.3).double(), weights=torch.ones(2).double())
    found = curvature(law, torch.zeros(2, 1, 2, 2, dtype=torch.float64), sigma=0.4, iterations=9, generator=source())
    variance = 0.3**2 + 0.4**2
    assert found.smallest == pytest.approx(1 / variance - 4 / variance**2, rel=0.01)  # of a mixture at its middle
    assert found.largest == pytest.approx(1 / variance, rel=0.01)
    flat = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.full((2, 8, 8), 0.3))
    same = curvature(flat, torch.zeros(2, 2, 8, 8), sigma=0.4, iterations=6, generator=source())
    assert_close([same.largest, same.smallest, same.mean], [1 / variance] * 3, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("model", [partial(energy, "unet", "inner_product"), partial(energy, "cnn", "pooled"),
                                   partial(direct, "unet")], ids=["unet", "cnn", "score"])
def test_the_curvature_of_networks_is_their_hessians(model: partial) -> None:
    net, x = model().requires_grad_(False), normal(1, 2, 8, 8, seed=3)
    found = curvature(net, x, sigma=0.7, iterations=60, generator=source())
    sigma = torch.full((1,), 0.7, dtype=x.dtype)
    jacobian = -torch.autograd.functional.jacobian(lambda y: net.score(y, sigma), x).reshape(128, 128)
    exact = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)
    assert found.largest == pytest.approx(float(exact[-1]), rel=1e-3)
    assert found.smallest == pytest.approx(float(exact[0]), rel=1e-2, abs=1e-6)
    symmetric = bool((jacobian - jacobian.T).abs().max() < 1e-8)
    assert (found.asymmetry < 1e-8) == symmetric


def test_overlap_is_the_share_of_shells() -> None:
    assert overlap(1.0, 3072) == pytest.approx(math.erf(3 / math.sqrt(2)))
    assert overlap(1.5, 3072) < 1e-6
    radii = torch.randn(20_000, 300, generator=source()).norm(dim=1)  # the share of σ_i's shell within 3σ_j of σ_j's
    ratio = 1.1
    inside = (ratio * radii - math.sqrt(300)).abs() < 3 * ratio / math.sqrt(2)
    assert overlap(ratio, 300) == pytest.approx(float(inside.float().mean()), abs=0.03)


def test_the_reference_knows_widths_distance_and_noise() -> None:
    std = torch.cat([torch.full((64,), 0.8), torch.full((64,), 0.1)]).view(2, 8, 8)
    law = Gaussian(mean=torch.full((2, 8, 8), 0.2), std=std)
    reference = Reference.fit(law.sample(1024, sigma=0, generator=source()), components=64)
    assert reference.variances[0] == pytest.approx(0.64, rel=0.2)
    assert reference.variances[-1] == pytest.approx(0.01, rel=0.2)
    fresh, noisy = (law.sample(256, sigma=sigma, generator=source(5)) for sigma in (0.0, 0.5))
    assert reference.distance(fresh, sigma=0.0) < 0.05
    assert reference.distance(noisy, sigma=0.5) < 0.05
    assert reference.distance(noisy, sigma=0.0) > 0.3
    assert reference.noise(noisy) == pytest.approx(0.5, rel=0.05)
    assert reference.distance(0 * fresh + 0.2, sigma=0.0) == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="images: 4 are not accepted"):
        Reference.fit(fresh[:4], components=2)


@pytest.mark.parametrize("count", [2, 16])
def test_chance_alone_takes_one_set_of_images_in_twenty_farther(count: int) -> None:
    law = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.logspace(-1, 0, 128).view(2, 8, 8))
    reference = Reference.fit(images := law.sample(1024, sigma=0, generator=source()), components=64)
    expected = reference.by_chance(images, count=count, generator=source(1))
    fresh = [reference.distance(law.sample(count, sigma=0, generator=source(seed)), sigma=0.0) for seed in range(100, 400)]
    assert 0.02 < sum(distance > expected for distance in fresh) / len(fresh) < 0.1


def test_the_twin_ends_where_theory_says() -> None:
    law = Gaussian(mean=torch.zeros(2, 8, 8), std=torch.full((2, 8, 8), 0.4))
    reference = Reference.fit(law.sample(512, sigma=0, generator=source()), components=16)
    sampler = partial(langevin, sigma=0.3, start=1.0, steps=400, step_size=0.1, noise_size=None, clamp=None)
    trial = try_on_twin(sampler, reference, seed=0)
    inflation = 1 / (1 - 0.1 / (2 * 0.25))  # the unadjusted algorithm's variance over the law's
    assert trial.off[-1] == pytest.approx(math.log(inflation) / 2, abs=0.05)
