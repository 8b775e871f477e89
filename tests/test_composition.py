"""Sums of energies, held to products of laws that are known exactly."""
from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from exact import Gaussian, GaussianMixture
from test_constraint import Sampler, check, draw
from torch.testing import assert_close

from ebm.composition import compose
from ebm.energy import DirectScore
from ebm.randomness import generator, image_generators
from ebm.samplers.annealed import annealed_langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import heun
from ebm.schedule import Karras, LogUniform

MANY, WHOLE = (16, 64, 1, 2), (250, 4, 1, 2)  # of images; a Metropolis test falls on whole ones, and wants them small
NEAR = LogUniform(sigma_min=0.05, sigma_max=5)
LANGEVIN = partial(annealed_langevin, grid=NEAR, steps=40, steps_per_level=15, step_scale=0.3, denoise=False)
METROPOLIS = partial(metropolis_annealed, grid=NEAR, steps=30, steps_per_level=12, step_scale=0.4, denoise=False)


def gaussian(mean: float, std: float) -> Gaussian:
    return Gaussian(mean=torch.tensor(mean), std=torch.tensor(std))


@pytest.mark.parametrize("sampler", [LANGEVIN, METROPOLIS], ids=["Langevin", "Metropolis"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -0.5), (2.0, 0.5)], ids=str)
def test_a_product_of_gaussians_is_drawn(sampler: Sampler, weights: tuple[float, float]) -> None:
    model = compose([gaussian(-0.3, 0.5), gaussian(0.6, 0.8)], weights=weights)
    precisions = [weight / (std**2 + 0.05**2) for weight, std in zip(weights, (0.5, 0.8), strict=True)]  # at σ_min
    variance = 1 / sum(precisions)
    mean = variance * (precisions[0] * -0.3 + precisions[1] * 0.6)
    x = draw(sampler, model, WHOLE if sampler is METROPOLIS else MANY, seed=0).flatten(0, 2)
    check(x, torch.full((2,), mean), variance * torch.eye(2), bias=0.06)


def test_the_flow_of_the_sum_does_not_lead_to_the_product() -> None:
    """Why a sum is drawn from by moves at each level: the sum of noised energies is not the noised sum's energy."""
    model = compose([gaussian(-0.3, 0.5), gaussian(0.6, 0.8)], weights=[1.0, 1.0])
    flow = partial(heun, grid=Karras(sigma_min=0.01, sigma_max=80, rho=7), steps=40, churn=0.0, churn_min=0.0,
                   churn_max=math.inf, churn_noise=1.0)
    std = draw(flow, model, MANY, seed=0).std().item()
    product = (1 / 0.5**2 + 1 / 0.8**2) ** -0.5
    assert std < 0.8 * product, "the flow is right after all, and the documentation wrong"


@pytest.mark.parametrize("sampler", [LANGEVIN, METROPOLIS], ids=["Langevin", "Metropolis"])
def test_negation_moves_weight_from_what_is_not_wanted(sampler: Sampler) -> None:
    means = torch.tensor([[-0.5, 0.0], [0.5, 0.0]]).view(2, 1, 1, 2)
    law = GaussianMixture(means=means, stds=torch.tensor([0.3, 0.3]), weights=torch.tensor([0.5, 0.5]))
    unwanted = Gaussian(mean=means[0], std=torch.full((1, 1, 2), 0.5))
    model = compose([law, unwanted], weights=[1.0, -0.7])
    count = 300
    x = draw(sampler, model, (count, 1, 1, 2), seed=1)
    # log of the ratio of the two components of p q^-w: Gaussian integrals with V = s² + σ², U = u² + σ² at σ_min
    v, u, w, apart = 0.3**2 + 0.05**2, 0.5**2 + 0.05**2, 0.7, 1.0
    ratio = math.exp(0.5 * w * apart**2 / (u - w * v))  # the second's mean is 1 from q's mean, the first's is q's
    # the pieces of the product overlap where the two components do, so that sides are counted, and not components
    variance, centres = 1 / (1 / v - w / u), [(mean / v + w * 0.5 / u) / (1 / v - w / u) for mean in (-0.5, 0.5)]
    right = sum(share * 0.5 * (1 + math.erf(centre / math.sqrt(2 * variance))) for share, centre in
                zip((1 / (1 + ratio), ratio / (1 + ratio)), centres, strict=True))
    drawn = (x[..., 0] > 0).float().mean().item()
    assert right > 0.75
    assert_close(drawn, right, rtol=0, atol=4 * 0.5 / math.sqrt(count) + 0.03)


def test_score_is_the_gradient_and_needs_every_energy() -> None:
    laws = [gaussian(-0.3, 0.5), gaussian(0.6, 0.8)]
    x = torch.randn(3, 1, 1, 2, dtype=torch.float64, generator=generator("cpu", 0)).requires_grad_()
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    model = compose(laws, weights=[1.0, -0.25])
    gradient, = torch.autograd.grad(model.energy(x, sigma).sum(), x)
    assert_close(model.score(x, sigma).detach(), -gradient)
    half = compose([laws[0], DirectScore(torch.nn.Identity(), sigma_data=0.5)], weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="needs an energy"):
        METROPOLIS(half, torch.zeros(2, 1, 1, 2), generators=image_generators("cpu", 0, range(2)))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, -2.0], [1.0, math.nan], [1.0, 1.0, 1.0]], ids=str)
def test_weights_that_make_no_law_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: "):
        compose([gaussian(0, 1), gaussian(1, 1)], weights=weights)
