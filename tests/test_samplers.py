"""Every sampler is held to laws whose samples are known: moments, weights, biases and orders of convergence."""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from exact import Gaussian, GaussianMixture
from torch import Tensor
from torch.testing import assert_close

from ebm.randomness import image_generators, normal_like
from ebm.samplers.annealed import annealed_langevin, predictor_corrector
from ebm.samplers.langevin import gradient_descent, langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import dpm_solver_pp_2m, heun
from ebm.samplers.step import Step
from ebm.schedule import Karras, LogUniform, Single

Sampler = Callable[..., Iterator[Step]]

NEAR = LogUniform(sigma_min=0.02, sigma_max=10)  # for samplers that equilibrate at σ_max
FAR = Karras(sigma_min=0.02, sigma_max=50, rho=7)  # for those that keep what N(0, σ_max²) lacks of the data's law
# denoise=True everywhere: the last level's noise is taken away, so that the law at σ = 0 is what is compared
ANNEALED = partial(annealed_langevin, grid=NEAR, steps=40, steps_per_level=8, step_scale=0.3, denoise=True)
CORRECTED = partial(predictor_corrector, grid=NEAR, steps=80, corrector_steps=1, signal_to_noise=0.3, denoise=True)
HEUN = partial(heun, grid=FAR, steps=40, churn=0, churn_min=0, churn_max=math.inf, churn_noise=1)
CHURNED = partial(heun, grid=FAR, steps=60, churn=20, churn_min=0, churn_max=math.inf, churn_noise=1)
MULTISTEP = partial(dpm_solver_pp_2m, grid=FAR, steps=60)
METROPOLIS = partial(metropolis_annealed, grid=NEAR, steps=40, steps_per_level=4, step_scale=0.8, denoise=True)
# Relative bias allowed in a standard deviation, beyond sampling error. Deterministic solvers: their global error.
# The predictor and the churned solver: one order lower, as noise makes them first order. Langevin: where σ falls below
# the data's std s, moves of a = c σ² contract the variance at the rate c σ²/s² only, and what has not contracted stays.
TO_ZERO = {
    "annealed": (ANNEALED, 0.06),
    "corrected": (CORRECTED, 0.03),
    "heun": (HEUN, 0.005),
    "churned": (CHURNED, 0.03),
    "multistep": (MULTISTEP, 0.005),
    "metropolis": (METROPOLIS, 0.04),
}
AT_ONE = {  # a = 0.05 V for V ≥ 1 gives, by the formula tested below, a variance at most 2.6 % too large: 1.3 % of std
    "langevin": partial(langevin, sigma=1, start=2, steps=150, step_size=0.05, noise_size=None, clamp=None),
    "gradient descent": partial(gradient_descent, sigma=1, start=2, steps=150, step_size=0.05, clamp=None),
}
EVERY = {name: sampler for name, (sampler, _) in TO_ZERO.items()} | AT_ONE


def gaussian(*, size: int) -> Gaussian:
    def plane(*values: float) -> Tensor:
        return torch.tensor(values).view(2, 1, 1).repeat(1, size, size)

    return Gaussian(mean=plane(0.5, -0.2), std=plane(0.3, 0.8))


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.6], [1.0, -0.6]]).view(2, 1, 1, 2)  # 2.3 apart: 3.9 std and more from the border
    return GaussianMixture(means=means, stds=torch.tensor([0.2, 0.3]), weights=torch.tensor([0.3, 0.7]))


def run(sampler: Sampler, model: object, shape: tuple[int, ...], *, seed: int) -> Iterator[Step]:
    generators = image_generators("cpu", seed, range(shape[0]))
    return sampler(model, normal_like(torch.empty(shape), generators), generators=generators)


def last(steps: Iterator[Step]) -> Tensor:
    return deque(steps, maxlen=1)[0].x


def check_moments(samples: Tensor, mean: float, std: float, *, bias: float) -> None:
    """Mean and standard deviation within four standard errors and the relative ``bias`` of ``std``."""
    error = 4 * std / math.sqrt(samples.numel())
    # the noise at σ_max = 50 around 0 instead of the mean 0.5 moves the solvers' mean by 0.5 std/50 = 0.01 std
    assert_close(samples.mean().item(), mean, rtol=0, atol=error + 0.015 * std)
    assert_close(samples.std().item(), std, rtol=0, atol=error / math.sqrt(2) + bias * std)


@pytest.mark.parametrize("name", TO_ZERO)
def test_gaussian_is_recovered(name: str) -> None:
    sampler, bias = TO_ZERO[name]
    # a Metropolis test falls on whole images, and its acceptance with their size; the others take each pixel by itself
    count, size = (2000, 1) if sampler is METROPOLIS else (16, 32)
    x = last(run(sampler, gaussian(size=size), (count, 2, size, size), seed=0))
    for channel, (mean, std) in enumerate([(0.5, 0.3), (-0.2, 0.8)]):
        check_moments(x[:, channel], mean, std, bias=bias)


@pytest.mark.parametrize("name", TO_ZERO)
def test_mixture_is_recovered(name: str) -> None:
    (sampler, bias), law, count = TO_ZERO[name], mixture(), 1500
    x = last(run(sampler, law, (count, 1, 1, 2), seed=1))
    component = law.component(x)
    error = 4 * math.sqrt(0.3 * 0.7 / count)
    # 0.01: N(0, σ_max²) has its border displaced by less than 0.4 · |mean of the data along the axis| / σ_max = 0.02/2
    assert_close((component == 0).float().mean().item(), 0.3, rtol=0, atol=error + 0.01)
    for k in range(2):
        deviation = x[component == k] - law.means[k]  # both pixels have the same law around the mean
        check_moments(deviation, 0.0, law.stds[k].item(), bias=bias)


def test_langevin_recovers_the_noised_gaussian() -> None:
    x = last(run(AT_ONE["langevin"], gaussian(size=32), (16, 2, 32, 32), seed=2))
    for channel, (mean, std) in enumerate([(0.5, math.hypot(0.3, 1)), (-0.2, math.hypot(0.8, 1))]):
        check_moments(x[:, channel], mean, std, bias=0.013)


def test_langevin_recovers_the_noised_mixture() -> None:
    law, count = mixture(), 2_500
    x = last(run(AT_ONE["langevin"], law, (count, 1, 1, 2), seed=2))
    shares = law.shares(x, torch.ones(count))
    for k in range(2):  # at σ = 1 the components overlap, so each image counts for both, by its shares
        share, deviation = shares[:, k], x[:, 0, 0] - law.means[k, 0, 0]
        variance = law.stds[k].item() ** 2 + 1
        for found, expected, bias in [(share, law.weights[k].item(), 0.0), (share * deviation[:, 0], 0.0, 0.0),
                                      (share * deviation[:, 1], 0.0, 0.0),
                                      # at most 2.6 % too large, as said at AT_ONE
                                      (share * deviation.square().mean(1), law.weights[k].item() * variance, 0.026)]:
            error = 4 * found.std().item() / math.sqrt(count)
            assert_close(found.mean().item(), expected, rtol=bias, atol=error)


def test_gradient_descent_ends_at_the_modes() -> None:  # it has no law of its own: which mode is told by where it starts
    law = mixture()
    descend = partial(gradient_descent, sigma=0.1, start=2, steps=400, step_size=0.02, clamp=None)
    x = last(run(descend, law, (200, 1, 1, 2), seed=2))
    component = law.component(x)
    assert 0 < (component == 0).sum() < 200
    assert_close(x, law.means[component], rtol=0, atol=1e-3)


def test_unadjusted_langevin_has_its_known_bias() -> None:
    law, a = gaussian(size=64), 0.5
    sampler = partial(langevin, sigma=0.6, start=1, steps=60, step_size=a, noise_size=None, clamp=None)
    x = last(run(sampler, law, (16, 2, 64, 64), seed=3))
    for channel, std in enumerate([0.3, 0.8]):
        variance = std**2 + 0.6**2  # V, and x − m shrinks by 1 − a/V per move: W = (1 − a/V)² W + 2a at rest
        expected = math.sqrt(variance / (1 - a / (2 * variance)))
        assert expected > 1.13 * math.sqrt(variance)
        check_moments(x[:, channel], [0.5, -0.2][channel], expected, bias=0)


def test_metropolis_has_no_bias_at_that_step() -> None:
    std = math.hypot(0.3, 0.5)
    sampler = partial(metropolis_annealed, grid=Single(level=0.5), steps=1, steps_per_level=50, denoise=False)
    law = Gaussian(mean=torch.full((1, 1, 2), 0.5), std=torch.full((1, 1, 2), 0.3))
    steps = list(run(partial(sampler, step_scale=1.6), law, (2000, 1, 1, 2), seed=4))  # a = 0.4, unadjusted: std × 1.56
    acceptance = torch.stack([step.acceptance for step in steps if step.acceptance is not None])
    assert acceptance.shape == (50, 2000)
    assert 0 < acceptance.min() < acceptance.mean() < acceptance.max() <= 1
    check_moments(steps[-1].x, 0.5, std, bias=0)
    moved = (steps[-1].x != steps[-2].x).flatten(1).any(1).double().mean().item()
    assert_close(moved, acceptance[-1].mean().item(), rtol=0, atol=4 * 0.5 / math.sqrt(2000))


def test_gradient_descent_has_the_rate_of_its_curvature() -> None:
    law, curvature = gaussian(size=1), 1 / (0.3**2 + 0.4**2)
    descend = partial(gradient_descent, sigma=0.4, start=1, steps=60, clamp=None)
    mean = law.mean.expand(4, 2, 1, 1)
    assert_close(last(run(partial(descend, step_size=1 / curvature), law, (4, 2, 1, 1), seed=5)), mean)
    steps = list(run(partial(descend, step_size=2.1 / curvature), law, (4, 2, 1, 1), seed=5))
    before, after = (steps[i].x[:, 0] - 0.5 for i in (10, 15))
    assert_close(after, -(1.1**5) * before, rtol=1e-3, atol=0)  # each move multiplies by 1 − a · curvature = −1.1


@pytest.mark.parametrize(("sampler", "order"), [(HEUN, 2), (MULTISTEP, 2)], ids=["heun", "multistep"])
def test_solver_has_its_order(sampler: Sampler, order: int) -> None:
    law = gaussian(size=1)
    generators = image_generators("cpu", 6, range(8))
    noise = normal_like(torch.empty(8, 2, 1, 1, dtype=torch.float64), generators)
    grid = LogUniform(sigma_min=0.1, sigma_max=5)
    errors = []
    for intervals in (64, 128):
        *_, at_end, _ = sampler(law, noise, grid=grid, steps=intervals + 1, generators=generators)  # before σ → 0
        errors.append((at_end.x - law.flow(5 * noise, start=5, end=0.1)).norm().item())
    assert 0.8 * 2**order < errors[0] / errors[1] < 1.25 * 2**order


def test_noise_size_sets_the_temperature() -> None:
    cold = partial(langevin, sigma=1, start=1, steps=300, step_size=0.02, noise_size=0.1, clamp=None)
    x = last(run(cold, gaussian(size=32), (16, 2, 32, 32), seed=10))
    check_moments(x[:, 0], 0.5, 0.5 * math.hypot(0.3, 1), bias=0.005)  # temperature b²/(2a) = 1/4: half the std


@pytest.mark.parametrize("name", ["annealed", "corrected", "metropolis"])
def test_denoising_ends_at_the_posterior_mean(name: str) -> None:
    law = gaussian(size=2)
    *_, before, end = run(EVERY[name], law, (4, 2, 2, 2), seed=12)
    variance = law.std**2
    expected = (variance * before.x + 0.02**2 * law.mean) / (variance + 0.02**2)  # E[x₀ | x] at the grid's σ_min
    assert_close(end.x, expected, rtol=0, atol=1e-6)  # the move itself is 1e-3
    without = list(run(partial(EVERY[name], denoise=False), law, (4, 2, 2, 2), seed=12))
    assert without[-1].total == end.total - 1
    assert_close(without[-1].x, before.x, rtol=0, atol=0)
