"""Log-likelihoods by the probability-flow ODE against laws whose density is known, and the trace against finite differences."""
from __future__ import annotations

import inspect
import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from exact import Gaussian, GaussianMixture
from models import FITTING, SHAPE, SIGMA_DATA, energy, normal
from omegaconf import OmegaConf
from torch import Tensor

from ebm.data.quantum import dequantised
from ebm.evaluate.likelihood import Flow, bits_per_dim, prior_error, rademacher
from ebm.randomness import generator
from launch.metrics.likelihood import Likelihood, summary

SMALL = (1, 4, 4)
SIGMA_MIN = 0.002
LAWS: dict[str, Gaussian | GaussianMixture] = {
    "gaussian": Gaussian(mean=0.3 * normal(*SMALL, seed=1), std=0.1 + 0.5 * normal(*SMALL, seed=2).abs()),
    "mixture": GaussianMixture(means=0.6 * normal(3, *SMALL, seed=3), stds=torch.tensor([0.1, 0.2, 0.3]).double(),
                               weights=torch.tensor([0.5, 0.3, 0.2]).double()),
}
# Far beyond the data, so that the prior's error, of the order of mean/σ_max in one image, is below what is tested.
FLOW = Flow(sigma_min=SIGMA_MIN, sigma_max=2000.0, tolerance=1e-5)


def drawn(law: Gaussian | GaussianMixture, count: int, *, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Images at σ_min and their −log p."""
    x = law.sample(count, sigma=SIGMA_MIN, generator=generator("cpu", seed, "law"))
    return x, law.energy(x, torch.full((count,), SIGMA_MIN).double()).numpy()


@pytest.mark.parametrize("law", LAWS)
def test_exact_trace_gives_the_laws_own_density(law: str) -> None:
    x, truth = drawn(LAWS[law], 8)
    nll, nfe = FLOW.nll(LAWS[law], x, sigma_data=0.5, probes=None)
    assert nll.shape == (8, 1)
    assert 20 < nfe < 300
    assert np.abs(nll[:, 0] - truth).max() < 1e-3 * np.abs(truth).mean(), f"{law}: off by {nll[:, 0] - truth}"


@pytest.mark.parametrize("law", LAWS)
def test_probes_agree_with_the_law_within_their_stated_error(law: str) -> None:
    x, truth = drawn(LAWS[law], 64)
    signs = rademacher(x, probes=4, seed=0, indices=range(64))
    nll, _ = Flow(sigma_min=SIGMA_MIN, sigma_max=2000.0, tolerance=1e-4).nll(LAWS[law], x, sigma_data=0.5, probes=signs)
    assert nll.shape == (64, 4)
    told = summary(nll, d=16)["bits_per_dim_probes_stderr"] * 16 * math.log(2)
    error = nll.mean() - truth.mean()
    if law == "gaussian":  # its Jacobian is diagonal: a sign squared is 1, and a probe exact
        assert told < 1e-6 and abs(error) < 1e-2
    else:
        assert told < 0.2, "the probes' error is too large to test anything"
        assert abs(error) < 4 * told + 1e-2, f"off by {error}, the stated error is {told}"


def test_the_stated_error_of_probes_is_what_they_scatter_by() -> None:
    x, _ = drawn(LAWS["mixture"], 16)
    flow = Flow(sigma_min=SIGMA_MIN, sigma_max=80.0, tolerance=1e-4)  # the steps depend on the probes too
    runs = [flow.nll(LAWS["mixture"], x, sigma_data=0.5, probes=rademacher(x, probes=2, seed=seed, indices=range(16)))[0]
            for seed in range(12)]
    told = math.sqrt(np.mean([summary(nll, d=16)["bits_per_dim_probes_stderr"] ** 2 for nll in runs]))
    seen = np.std([bits_per_dim(nll.mean(), d=16) for nll in runs], ddof=1)
    assert 0.5 < seen / told < 2, f"means scatter by {seen}, the stated error is {told}"


def test_another_tolerance_moves_the_figure_less_than_it_is_loose() -> None:
    x, truth = drawn(LAWS["mixture"], 8)
    errors, counts = [], []
    for tolerance in (1e-2, 1e-4):
        flow = Flow(sigma_min=SIGMA_MIN, sigma_max=2000.0, tolerance=tolerance)
        nll, nfe = flow.nll(LAWS["mixture"], x, sigma_data=0.5, probes=None)
        errors.append(np.abs(nll[:, 0] - truth).mean())
        counts.append(nfe)
    assert errors[1] < errors[0] / 5
    assert counts[1] > counts[0]


def test_the_prior_error_is_what_a_nearer_end_costs() -> None:
    law = LAWS["gaussian"]
    assert isinstance(law, Gaussian)
    x, truth = drawn(law, 2000)
    near = Flow(sigma_min=SIGMA_MIN, sigma_max=1.5, tolerance=1e-4)
    nll, _ = near.nll(law, x, sigma_data=0.5, probes=torch.ones(1, *x.shape).double())
    told = prior_error(law.mean.flatten().numpy(), law.std.flatten().square().numpy(), sigma_max=1.5, sigma_data=0.5)
    difference = nll[:, 0] - truth
    assert abs(difference.mean() - told) < 4 * difference.std() / math.sqrt(2000) + 1e-2
    assert told > 0.1, "the error is too small to test anything"


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_a_trace_of_an_energys_score_is_its_finite_difference(network: str, head: str) -> None:
    model = energy(network, head).requires_grad_(False)
    sigma, x = torch.full((3,), 0.2).double(), SIGMA_DATA * normal(3, *SHAPE, seed=1)
    v = rademacher(x, probes=1, seed=0, indices=range(3))[0]
    y = x.clone().requires_grad_()
    product, = torch.autograd.grad(model.score(y, sigma), y, v)
    with torch.no_grad():
        difference = (model.score(x + 1e-5 * v, sigma) - model.score(x - 1e-5 * v, sigma)) / 2e-5
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-5 * float(product.abs().max()))


def test_an_energy_of_float32_has_a_likelihood_near_that_in_float64() -> None:
    model = energy("unet", "inner_product", seed=None).requires_grad_(False)  # untrained: N(0, σ_data²)
    x = SIGMA_DATA * normal(4, *SHAPE, seed=1)
    flow = Flow(sigma_min=SIGMA_MIN, sigma_max=80.0, tolerance=1e-5)
    variance = SIGMA_DATA**2 + SIGMA_MIN**2
    truth = 0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-2)):
        nll, nfe = flow.nll(model.to(dtype), x.to(dtype), sigma_data=SIGMA_DATA, probes=torch.ones(1, *x.shape).to(dtype))
        assert np.abs(nll[:, 0] - truth.numpy()).max() < bound
        assert nfe < 40, "a flow that stands still took many steps"


def test_uniform_pixels_cost_eight_bits() -> None:
    nll = -48 * math.log(1 / (256 / 127.5)) * np.ones(3)  # uniform over the 256 quanta from −1 − ½/127.5 on
    np.testing.assert_allclose(bits_per_dim(nll, d=48), 8.0)


def test_dequantised_pixels_stay_nearest_to_their_own_and_depend_on_the_image_alone() -> None:
    pixels = torch.arange(256).view(1, 1, 16, 16).repeat(6, 1, 1, 1)
    x = dequantised(pixels / 127.5 - 1, seed=0, indices=range(6))
    assert (((x + 1) * 127.5).round() - pixels).abs().max() == 0
    noise = (x + 1) * 127.5 - pixels
    assert abs(float(noise.mean())) < 0.04 and abs(float(noise.var()) - 1 / 12) < 0.01
    torch.testing.assert_close(dequantised(pixels[3:5] / 127.5 - 1, seed=0, indices=[3, 4]), x[3:5], rtol=0, atol=0)
    signs = rademacher(x, probes=2, seed=0, indices=range(6))
    assert signs.shape == (2, *x.shape) and {*signs.unique().tolist()} == {-1.0, 1.0}
    assert signs[:, 3:5].equal(rademacher(x[3:5], probes=2, seed=0, indices=[3, 4]))


def test_a_score_that_is_not_finite_is_named_with_its_level() -> None:
    class Broken:
        def score(self, x: Tensor, sigma: Tensor) -> Tensor:
            return torch.where(sigma.view(-1, 1, 1, 1) > 1, torch.nan, -1.0) * x

    with pytest.raises(ValueError, match=r"model: its score is not finite at σ = \d"):
        FLOW.nll(Broken(), torch.ones(1, *SMALL), sigma_data=0.5, probes=None)


@pytest.mark.parametrize(("name", "value"), [("sigma_min", 0.0), ("sigma_max", 0.001), ("tolerance", -1.0)])
def test_unusable_numbers_are_named(name: str, value: float) -> None:
    numbers = {"sigma_min": SIGMA_MIN, "sigma_max": 80.0, "tolerance": 1e-5, name: value}
    with pytest.raises(ValueError, match=name):
        Likelihood(set="train", images=2, batch=2, probes=1, **numbers)


def test_without_scipy_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(ValueError, match=r"^scipy: not installed; likelihoods need pip install -e '\.\[evaluate\]'$"):
        FLOW.nll(LAWS["gaussian"], torch.ones(1, *SMALL), sigma_data=0.5, probes=None)


def test_the_yaml_has_every_setting() -> None:
    given = OmegaConf.load(ROOT / "configs/metric/likelihood.yaml")
    assert {*given} - {"_target_"} == {*inspect.signature(Likelihood).parameters}


def test_every_image_has_probes_of_its_own_in_any_batch() -> None:
    x = torch.zeros(3, 3, 8, 8)
    signs = rademacher(x, probes=2, seed=5, indices=[4, 9, 11])
    assert signs.abs().unique().tolist() == [1]
    each = signs.flatten(0, 1)
    for one in range(6):
        for other in range(one):
            agree = (each[one] == each[other]).float().mean()
            assert abs(float(agree) - 0.5) < 4 * 0.5 / x[0].numel() ** 0.5
    assert torch.equal(rademacher(x[:1], probes=2, seed=5, indices=[9])[:, 0], signs[:, 1])
    assert not torch.equal(rademacher(x[:1], probes=2, seed=6, indices=[9])[:, 0], signs[:, 1])
