"""Densities read off an energy: exact where the energy is, within one per cent of a law after training, and useless without
the slope's loss."""
from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from exact import Gaussian, GaussianMixture
from models import direct, energy, normal
from omegaconf import OmegaConf
from torch import Tensor

from ebm.energy import Energy, inner_product
from ebm.evaluate.density import Normalised, agreement, anchors, energies, entropy, gaps, spectrum
from ebm.evaluate.likelihood import Flow, bits_per_dim, rademacher
from ebm.nets.unet import UNet
from ebm.objective import EDM, DenoisingScoreMatching, DualScoreMatching
from ebm.randomness import generator
from ebm.schedule import LogUniform
from launch.metrics.density import Density

SHAPE, D = (1, 4, 4), 16
BARS = torch.where(torch.arange(4) < 2, 1.0, -1.0).expand(SHAPE)
LAW = GaussianMixture(means=torch.stack([0.6 * BARS, -0.6 * BARS.mT]), stds=torch.tensor([0.2, 0.3]),
                      weights=torch.tensor([0.7, 0.3]))
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.64, 0.02, 20.0
OBJECTIVES = {"dual": DualScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA), slope_weight=2.0, sigma_data=SIGMA_DATA),
              "dsm": DenoisingScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA))}


@pytest.fixture(scope="module")
def trained() -> dict[str, Energy]:
    """A small energy trained on the law for some seconds by each objective, from the same parameters and noise."""
    return {name: fitted(objective, steps=300 if name == "dual" else 60) for name, objective in OBJECTIVES.items()}


def fitted(objective: DenoisingScoreMatching, *, steps: int) -> Energy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Energy(UNet(channels=1, width=16, multipliers=[1], blocks=1, attention=[], patch=2), inner_product,
                       sigma_data=SIGMA_DATA)
    schedule = LogUniform(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, step / 20) * (1 - step / steps)
        sigma = schedule.draw(256, generator=generator("cpu", 6, step))
        x = LAW.sample(256, sigma=0.0, generator=generator("cpu", 7, step))
        noise = torch.randn(x.shape, generator=generator("cpu", 8, step))
        optimizer.zero_grad()
        objective(model, x, sigma, noise).mean().backward()
        optimizer.step()
    return model.requires_grad_(False)


def normaliser(model: Any, law: Any = LAW, *, count: int = 1000) -> Normalised:
    """The constant and the correction, from images of the law."""
    x = law.sample(count, sigma=0.0, generator=generator("cpu", 2))
    generators = [generator("cpu", 3, i) for i in range(count)]
    return Normalised.fit(
        anchors=anchors(model, x, sigma=SIGMA_MAX, generators=generators), sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX,
        gaps=gaps(model, x, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, levels=24, generators=generators),
        entropy=entropy(spectrum(x.flatten(1).double().numpy()), d=x[0].numel(), sigma=SIGMA_MAX))


def drawn(count: int, law: Any = LAW) -> tuple[Tensor, np.ndarray]:
    """Images at σ_min and their −log p."""
    x = law.sample(count, sigma=SIGMA_MIN, generator=generator("cpu", 1))
    return x, law.energy(x, torch.full((count,), SIGMA_MIN).to(x)).double().numpy()


def test_bits_in_one_pass_are_within_one_per_cent_of_the_laws_and_of_the_odes(trained: dict[str, Energy]) -> None:
    x, nll = drawn(1000)
    truth = bits_per_dim(nll.mean(), d=D)
    fit, read = normaliser(trained["dual"]), energies(trained["dual"], x, sigma=SIGMA_MIN)
    assert abs(bits_per_dim(read.mean() + fit.constant, d=D) / truth - 1) < 0.01
    assert abs(bits_per_dim(read.mean() + fit.constant + fit.gap, d=D) / truth - 1) < 0.01
    agreed = agreement(nll, read + fit.constant)
    assert agreed["correlation"] > 0.9 and agreed["difference_std"] < 2, agreed
    signs = rademacher(x[:200], probes=2, seed=0, indices=range(200))
    flow = Flow(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, tolerance=1e-2)
    ode, _ = flow.nll(trained["dual"], x[:200], sigma_data=SIGMA_DATA, probes=signs)
    assert abs(bits_per_dim(ode.mean(), d=D) / bits_per_dim(read[:200].mean() + fit.constant, d=D) - 1) < 0.01
    # what the test can see: an energy that has learnt nothing errs by far more
    untrained = Energy(UNet(channels=1, width=16, multipliers=[1], blocks=1, attention=[], patch=2), inner_product,
                       sigma_data=SIGMA_DATA)
    assert bits_per_dim(energies(untrained, x, sigma=SIGMA_MIN).mean(), d=D) / truth - 1 > 0.05


def test_without_the_slopes_loss_the_bits_mean_nothing_and_the_slopes_gap_says_so(trained: dict[str, Energy]) -> None:
    x, nll = drawn(1000)
    truth = bits_per_dim(nll.mean(), d=D)
    fit, read = normaliser(trained["dsm"]), energies(trained["dsm"], x, sigma=SIGMA_MIN)
    assert abs(bits_per_dim(read.mean() + fit.constant, d=D) / truth - 1) > 0.05
    assert abs(fit.gap) > 20 * fit.gap_stderr
    dual = normaliser(trained["dual"])
    assert abs(dual.gap) < 1


def test_the_constant_and_the_slope_of_an_exact_energy() -> None:
    """N(0, σ_data²), which an untrained energy is: nothing to add and no gap at any level."""
    model = energy("unet", "inner_product", seed=None)
    law = Gaussian(mean=torch.zeros(2, 8, 8).double(), std=torch.full((2, 8, 8), model.sigma_data, dtype=torch.float64))
    fit = normaliser(model, law, count=100)
    assert abs(fit.constant) < 4 * fit.constant_stderr + 0.01
    assert fit.constant_stderr < 0.1
    assert abs(fit.gap) < 4 * fit.gap_stderr
    assert (np.abs(fit.by_level) < 5 * fit.by_level_stderr).all()
    x, nll = drawn(10, law)
    np.testing.assert_allclose(energies(model, x, sigma=SIGMA_MIN), nll)


def test_the_gap_is_what_a_function_of_sigma_costs() -> None:
    class Shifted:
        """The exact energy of a Gaussian, plus 3 ln²(σ/σ_max)."""

        law = Gaussian(mean=torch.zeros(2, 8, 8).double(), std=torch.full((2, 8, 8), 0.5, dtype=torch.float64))

        def normalised(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.law.energy(x, sigma) + 3 * (sigma / SIGMA_MAX).log() ** 2

        def score_and_slope(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            level = sigma.clone().requires_grad_()
            with torch.enable_grad():
                along, = torch.autograd.grad(self.normalised(x, level).sum(), level)
            return self.law.score(x, sigma), sigma * along

    fit = normaliser(Shifted(), Shifted.law)
    wrong = 3 * math.log(SIGMA_MIN / SIGMA_MAX) ** 2
    assert abs(fit.gap + wrong) < 4 * fit.gap_stderr
    assert fit.gap_stderr < 0.1 * wrong
    middles = np.linspace(math.log(SIGMA_MIN), math.log(SIGMA_MAX), 49)[1::2] - math.log(SIGMA_MAX)
    assert (np.abs(fit.by_level - 6 * middles) < 5 * fit.by_level_stderr + 0.2).all()


@pytest.mark.parametrize("count", [8, 4000])
def test_entropy_is_the_gaussians_whether_images_are_few_or_many(count: int) -> None:
    scales = np.linspace(0.1, 2, 16)
    x = normal(count, 16, seed=1).numpy() * scales
    covariance = np.cov(x.T) + 0.3**2 * np.eye(16)
    truth = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
    assert abs(entropy(spectrum(x), d=16, sigma=0.3) - truth) < 1e-8
    with pytest.raises(ValueError, match="at least 2"):
        spectrum(x[:1])


def test_agreement_is_of_the_same_images() -> None:
    one = normal(50, seed=1).numpy()
    found = agreement(one, one + 2)
    assert found == pytest.approx({"difference": 2, "difference_stderr": 0, "difference_std": 0, "correlation": 1}, abs=1e-9)
    with pytest.raises(ValueError, match="must be of the same images"):
        agreement(one, one[1:])


def metric(**settings: Any) -> Density:
    given = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/metric/density.yaml"))
    assert isinstance(given, dict)
    given.pop("_target_")
    return Density(**{**given, "images": 5, "anchors": 5, **settings})


def work(model: Any, objective: str = "ebm.objective.DualScoreMatching", held_out: int | None = 10) -> Any:
    """As much of `launch.metrics.evaluation.Work` as a check reads."""
    schedule = {"_target_": "ebm.schedule.LogUniform", "sigma_min": 0.002, "sigma_max": 80.0}
    return SimpleNamespace(
        pipeline=SimpleNamespace(model=model, seed=0), train=SimpleNamespace(count=20),
        held_out=held_out and SimpleNamespace(count=held_out),
        run_config=OmegaConf.create({"objective": {"_target_": objective}, "schedule": schedule}))


def test_what_is_no_density_is_refused_in_one_line() -> None:
    model = energy("unet", "inner_product")
    metric().check(work(model))
    with pytest.raises(ValueError, match=r"^metric\.density: a run trained by DenoisingScoreMatching is not accepted; .*dual$"):
        metric().check(work(model, "ebm.objective.DenoisingScoreMatching"))
    with pytest.raises(ValueError, match=r"metric\.density"):
        metric().check(work(direct("unet")))
    for settings, words in (({"images": 11}, r"^images: 11 .* 2 to 10"), ({"anchors": 21}, r"^anchors: 21 .*20"),
                            ({"sigma_min": 0.001}, r"^sigma_min: 0\.001 .* from 0\.002 to 80"), ({"batch": 0}, "^batch"),
                            ({"set": "tset"}, "^set: .*choose held_out or train"), ({"levels": 0}, "^levels")):
        with pytest.raises(ValueError, match=words):
            metric(**settings).check(work(model))
    with pytest.raises(ValueError, match="the run has none"):
        metric().check(work(model, held_out=None))


def test_the_yaml_has_every_setting() -> None:
    given = OmegaConf.load(ROOT / "configs/metric/density.yaml")
    assert {*given} - {"_target_"} == {*inspect.signature(Density).parameters}
