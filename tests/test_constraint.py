"""Constrained sampling and denoising, held to laws whose conditional and posterior moments are known exactly."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from exact import Gaussian, GaussianMixture
from torch import Tensor
from torch.testing import assert_close

from ebm.constraint import BlockMean, ChannelMean, Frozen, KnownPixels, Matched, Measurement, Replaced
from ebm.denoising import denoising
from ebm.energy import DirectScore
from ebm.randomness import generator, image_generators, normal_like
from ebm.samplers.annealed import annealed_langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import heun
from ebm.samplers.step import Step
from ebm.schedule import Karras, LogUniform

Sampler = Callable[..., Iterator[Step]]
COVARIANCE = 0.25 * torch.tensor([[1.0, 0.8, 0.6, 0.3], [0.8, 1.0, 0.5, 0.4], [0.6, 0.5, 1.0, 0.7], [0.3, 0.4, 0.7, 1.0]])
MEAN = torch.tensor([0.3, -0.2, 0.1, 0.4])
MANY, WHOLE = (16, 128, 2, 2), (250, 4, 2, 2)  # of images; a Metropolis test falls on whole ones, and wants them small

FAR, NEAR = Karras(sigma_min=0.01, sigma_max=80, rho=7), LogUniform(sigma_min=0.03, sigma_max=5)
HEUN = partial(heun, grid=FAR, steps=40, churn=0.0, churn_min=0.0, churn_max=math.inf, churn_noise=1.0)
CHURNED = partial(heun, grid=FAR, steps=60, churn=20.0, churn_min=0.0, churn_max=math.inf, churn_noise=1.0)
# As many moves as it takes: below σ = std a move of a = c σ² goes the share c σ²/std² of the way only.
LANGEVIN = partial(annealed_langevin, grid=NEAR, steps=40, steps_per_level=25, step_scale=0.4, denoise=True)
METROPOLIS = partial(metropolis_annealed, grid=NEAR, steps=30, steps_per_level=14, step_scale=0.4, denoise=True)


class Correlated:
    """Images of (C, 2, 2): each channel's four pixels are N(MEAN, COVARIANCE), and N(MEAN, COVARIANCE + σ² 1) at level σ."""

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(COVARIANCE.to(x))
        away = (x.flatten(2) - MEAN.to(x)) @ vectors  # (B, C, 4)
        return (-away / (values + sigma[:, None, None] ** 2) @ vectors.T).view_as(x)

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        away = x - MEAN.to(x).view(2, 2)
        return -0.5 * (away * self.score(x, sigma)).flatten(1).sum(1)


def draw(sampler: Sampler, model: object, shape: tuple[int, ...], *, seed: int) -> Tensor:
    generators = image_generators("cpu", seed, range(shape[0]))
    for step in sampler(model, normal_like(torch.empty(shape), generators), generators=generators):
        pass
    return step.x


def others(count: int) -> list[torch.Generator]:
    return [generator("cpu", 0, "measured", index) for index in range(count)]


def channels(x: Tensor) -> Tensor:
    """(B, C, 2, 2) -> (B · C, 4): all are independent."""
    return x.flatten(2).flatten(0, 1)


def check(samples: Tensor, mean: Tensor, covariance: Tensor, *, bias: float) -> None:
    """Mean and covariance of (B, d) within four standard errors and ``bias`` standard deviations."""
    spread = covariance.diagonal().sqrt()
    error = 4 / math.sqrt(len(samples))
    assert_close((samples.mean(0) - mean) / spread, torch.zeros_like(mean), rtol=0, atol=error + bias,
                 msg=lambda text: f"mean, in standard deviations: {text}")
    relative = torch.cov(samples.T) / torch.outer(spread, spread)
    assert_close(relative, covariance / torch.outer(spread, spread), rtol=0, atol=1.5 * error + 2 * bias,
                 msg=lambda text: f"covariance, in variances: {text}")


SEEN = torch.tensor([1.0, 0.0, 0.0, -0.6]).view(2, 2)
KNOWN = KnownPixels(known=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
FORMS = {
    "matched, Heun": (partial(Matched, noise=0.0, iterations=3, ridge=1e-6), HEUN, 0.02),
    "matched, churned": (partial(Matched, noise=0.0, iterations=3, ridge=1e-6), CHURNED, 0.03),
    "replaced, Langevin": (Replaced, LANGEVIN, 0.05),
    "frozen, Langevin": (Frozen, LANGEVIN, 0.06),
    "frozen, Metropolis": (Frozen, METROPOLIS, 0.06),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_rest_has_its_conditional_law(name: str) -> None:
    constraint, sampler, bias = FORMS[name]
    shape = WHOLE if sampler is METROPOLIS else MANY
    model = constraint(model=Correlated(), measurement=KNOWN, observed=SEEN.expand(shape), generators=others(shape[0]))
    x = channels(draw(sampler, model, shape, seed=0))
    seen, rest = [0, 3], [1, 2]
    gain = COVARIANCE[rest][:, seen] @ torch.linalg.inv(COVARIANCE[seen][:, seen])
    mean = MEAN[rest] + gain @ (torch.tensor([1.0, -0.6]) - MEAN[seen])
    check(x[:, rest], mean, COVARIANCE[rest][:, rest] - gain @ COVARIANCE[seen][:, rest], bias=bias)
    assert_close(x[:, seen], SEEN.flatten()[seen].expand(len(x), 2), rtol=0, atol=1e-5, msg="the end leaves what was observed")


def test_replacement_is_biased_where_nothing_is_drawn_anew() -> None:
    """What `Replaced` says of itself, and why `Matched` is the default: DDNM's D does not know what was observed."""
    model = Replaced(model=Correlated(), measurement=KNOWN, observed=SEEN.expand(MANY), generators=[])
    x = channels(draw(HEUN, model, MANY, seed=0))
    assert x[:, 1].mean() < 0.147 - 0.5 * math.sqrt(0.083)  # the exact conditional mean and variance of the second pixel


def test_matched_knows_of_noise_in_what_was_observed() -> None:
    noise = 0.4
    model = Matched(model=Correlated(), measurement=KNOWN, observed=SEEN.expand(MANY), noise=noise, iterations=4, ridge=0.0,
                    generators=[])
    x = channels(draw(HEUN, model, MANY, seed=1))
    gain = COVARIANCE[:, [0, 3]] @ torch.linalg.inv(COVARIANCE[[0, 3]][:, [0, 3]] + noise**2 * torch.eye(2))
    mean = MEAN + gain @ (torch.tensor([1.0, -0.6]) - MEAN[[0, 3]])
    check(x, mean, COVARIANCE - gain @ COVARIANCE[[0, 3]], bias=0.03)


@pytest.mark.parametrize("measurement", [KnownPixels(known=(torch.arange(48).view(6, 8) % 3 > 0).float()), ChannelMean(),
                                         BlockMean(factor=2)], ids=lambda measurement: type(measurement).__name__)
def test_a_measurement_is_an_orthogonal_projector_and_is_kept(measurement: Measurement) -> None:
    x, y = torch.randn(2, 4, 3, 6, 8, dtype=torch.float64, generator=generator("cpu", 0))
    project = measurement.project
    assert_close(project(project(x)), project(x))
    assert_close((project(x) * y).sum(), (x * project(y)).sum())
    assert 0 < project(x).norm() < x.norm()
    law = Gaussian(mean=torch.zeros(3, 6, 8), std=torch.full((3, 6, 8), 0.5))
    for constraint in (Replaced, Frozen, partial(Matched, noise=0.0, iterations=1, ridge=0.0)):
        model = constraint(model=law, measurement=measurement, observed=project(x), generators=others(4))
        sigma = torch.full((4,), 0.7, dtype=torch.float64)
        denoised = y + 0.49 * model.score(y, sigma)
        assert_close(project(denoised), project(x), msg=f"{model}: its denoised image is not what was observed")


def test_scores_are_gradients_of_their_energies() -> None:
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator("cpu", 1)).requires_grad_()
    sigma = torch.tensor([0.1, 0.5, 3.0], dtype=torch.float64)
    observed = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator("cpu", 2))
    frozen = Frozen(model=Correlated(), measurement=KNOWN, observed=KNOWN.project(observed), generators=others(3))
    for model in (frozen, denoising(Correlated(), observed=observed, sigma=0.4)):
        gradient, = torch.autograd.grad(model.energy(x, sigma).sum(), x)
        assert_close(model.score(x, sigma).detach(), -gradient)


def test_what_needs_an_energy_says_so() -> None:
    score = DirectScore(torch.nn.Identity(), sigma_data=0.5)
    given = {"model": score, "measurement": KNOWN, "observed": torch.zeros(2, 1, 2, 2)}
    for constraint in (Frozen, partial(Matched, noise=0.0, iterations=1, ridge=0.0)):
        with pytest.raises(ValueError, match="model: DirectScore is not accepted; this constraint needs an energy"):
            constraint(**given, generators=image_generators("cpu", 0, range(2)))
    for model in (Replaced(**given, generators=[]), denoising(score, observed=given["observed"], sigma=1.0)):
        with pytest.raises(ValueError, match="needs an energy"):
            METROPOLIS(model, torch.zeros(2, 1, 2, 2), generators=image_generators("cpu", 0, range(2)))
    for name, value in {"iterations": -1, "noise": -1.0, "ridge": math.nan}.items():
        with pytest.raises(ValueError, match=f"{name}: "):
            Matched(**{"noise": 0.0, "iterations": 1, "ridge": 0.0, "generators": [], **given, name: value})


DENOISERS = {"Heun": (HEUN, 0.02), "churned": (CHURNED, 0.03), "Langevin": (LANGEVIN, 0.05), "Metropolis": (METROPOLIS, 0.05)}


@pytest.mark.parametrize("name", DENOISERS)
def test_denoising_draws_from_the_posterior_of_a_gaussian(name: str) -> None:
    sampler, bias = DENOISERS[name]
    sigma, noisy, shape = 0.4, torch.tensor([0.9, -0.7, 0.8, 0.0]).view(2, 2), WHOLE if sampler is METROPOLIS else MANY
    model = denoising(Correlated(), observed=noisy.expand(shape), sigma=sigma)
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(4))
    mean = MEAN + gain @ (noisy.flatten() - MEAN)
    check(channels(draw(sampler, model, shape, seed=2)), mean, COVARIANCE - gain @ COVARIANCE, bias=bias)
    assert_close(model.mean()[0, 0].flatten(), mean, msg="one look at the model is not the posterior mean")


@pytest.mark.parametrize("name", ["Heun", "churned", "Metropolis"])
def test_denoising_weighs_the_components_of_a_mixture(name: str) -> None:
    means = torch.tensor([[-0.5, 0.3], [0.5, -0.3]]).view(2, 1, 1, 2)
    law = GaussianMixture(means=means, stds=torch.tensor([0.15, 0.2]), weights=torch.tensor([0.3, 0.7]))
    sigma, noisy = 0.6, torch.tensor([-0.2, 0.1]).view(1, 1, 1, 2)
    count = 300 if name == "Metropolis" else 1000
    model = denoising(law, observed=noisy.expand(count, 1, 1, 2), sigma=sigma)
    x = draw(DENOISERS[name][0], model, (count, 1, 1, 2), seed=3)
    variances = torch.tensor([0.15, 0.2]).square()
    evidence = (-0.5 * (noisy[0] - means).flatten(1).square().sum(1) / (variances + sigma**2)).exp() / (variances + sigma**2)
    share = (torch.tensor([0.3, 0.7]) * evidence / (torch.tensor([0.3, 0.7]) * evidence).sum())[0].item()
    assert 0.4 < share < 0.7
    drawn = (law.component(x) == 0).float().mean().item()
    assert_close(drawn, share, rtol=0, atol=4 * 0.5 / math.sqrt(count) + 0.02)
    shrink = variances / (variances + sigma**2)
    expected = sum(weight * (mean + factor * (noisy[0] - mean)) for weight, mean, factor in
                   zip((share, 1 - share), means, shrink, strict=True))
    assert_close(model.mean()[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_what_was_observed_is_kept_however_few_the_iterations(iterations: int) -> None:
    """Two unlike pixels take two; after fewer, the observation replaces what they leave."""
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator("cpu", 5))
    observed, sigma = KNOWN.project(SEEN.double().expand_as(x)), torch.full((3,), 0.7, dtype=torch.float64)
    model = Matched(model=Correlated(), measurement=KNOWN, observed=observed, noise=0.0, iterations=iterations, ridge=1e-6,
                    generators=[])
    assert_close(KNOWN.project(x + 0.49 * model.score(x, sigma)), observed)
