"""The exact laws are themselves held to be densities whose score is their gradient."""
from __future__ import annotations

import pytest
import torch
from exact import Gaussian, GaussianMixture
from torch import Tensor
from torch.testing import assert_close

from ebm.randomness import generator


def gaussian() -> Gaussian:
    mean = torch.tensor([0.5, -0.3], dtype=torch.float64).view(1, 1, 2)
    return Gaussian(mean=mean, std=torch.tensor([0.4, 0.9], dtype=torch.float64).view(1, 1, 2))


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.2], [0.8, 1.1], [0.3, -0.9]], dtype=torch.float64).view(3, 1, 1, 2)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return GaussianMixture(means=means, stds=torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64), weights=weights)


def points() -> tuple[Tensor, Tensor]:
    g = generator("cpu", 0, "points")
    x = 2 * torch.randn(16, 1, 1, 2, generator=g, dtype=torch.float64)
    return x, torch.rand(16, generator=g, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("law", [gaussian(), mixture()])
def test_score_is_minus_the_gradient_of_the_energy(law: Gaussian | GaussianMixture) -> None:
    x, sigma = points()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(law.energy(x, sigma).sum(), x)
    assert_close(law.score(x, sigma), -gradient)


@pytest.mark.parametrize("law", [gaussian(), mixture()])
def test_score_is_minus_the_finite_difference_of_the_energy(law: Gaussian | GaussianMixture) -> None:
    x, sigma = points()
    for pixel in range(2):
        nudge = torch.zeros_like(x)
        nudge[..., pixel] = 1e-5  # central differences: error 1e-10 from the third derivative, 1e-11 from rounding
        slope = (law.energy(x + nudge, sigma) - law.energy(x - nudge, sigma)) / 2e-5
        assert_close(law.score(x, sigma)[:, 0, 0, pixel], -slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("law", [gaussian(), mixture()])
def test_energy_is_a_normalised_negative_log_density(law: Gaussian | GaussianMixture) -> None:
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)  # the sum is exact to rounding for laws this smooth
    x = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    density = (-law.energy(x, torch.full((len(x),), 0.3, dtype=torch.float64))).exp()
    assert_close(density.sum() * (axis[1] - axis[0]) ** 2, torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("law", [gaussian(), mixture()])
def test_samples_obey_the_identities_of_the_score(law: Gaussian | GaussianMixture) -> None:
    count, sigma = 100_000, 0.3
    levels = torch.full((count,), sigma, dtype=torch.float64)
    x = law.sample(count, sigma=sigma, generator=generator("cpu", 0, "samples"))
    scores = law.score(x, levels)
    # E s = 0 and, by parts, E[x · s] = −(number of pixels); standard errors below 3/√count, four of them
    assert_close(scores.mean(0), torch.zeros_like(scores[0]), rtol=0, atol=0.05)
    assert_close((x * scores).flatten(1).sum(1).mean(), torch.tensor(-2.0, dtype=torch.float64), rtol=0, atol=0.05)


def test_single_precision_is_kept() -> None:
    x, sigma = (t.float() for t in points())
    for law in (gaussian(), mixture()):
        assert law.energy(x, sigma).dtype == law.score(x, sigma).dtype == torch.float32


def test_flow_follows_the_score() -> None:
    x, _ = points()
    law, sigma, h = gaussian(), 0.7, 1e-5
    speed = (law.flow(x, start=sigma, end=sigma + h) - law.flow(x, start=sigma, end=sigma - h)) / (2 * h)
    assert_close(speed, -sigma * law.score(x, torch.full((len(x),), sigma)), rtol=1e-6, atol=1e-8)
