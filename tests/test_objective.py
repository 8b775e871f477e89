"""Denoising score matching is least at the true score, has its known value there, and finds it by training."""
from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exact import Gaussian, GaussianMixture
from torch import Tensor
from torch.testing import assert_close

from ebm.energy import Energy, inner_product
from ebm.nets.unet import UNet
from ebm.objective import EDM, DenoisingScoreMatching, MinSNR, ScoreFn, SigmaSquared, Weighting
from ebm.randomness import generator
from ebm.schedule import LogNormal, LogUniform

SHAPE = (1, 4, 4)
LEVELS = [0.05, 0.3, 1.0, 4.0, 20.0]
WEIGHTINGS: dict[str, Weighting] = {"sigma_squared": SigmaSquared(), "edm": EDM(sigma_data=0.6), "min_snr": MinSNR(gamma=5.0)}
BARS = torch.where(torch.arange(4) < 2, 1.0, -1.0).expand(SHAPE)
LAWS: dict[str, Gaussian | GaussianMixture] = {
    "gaussian": Gaussian(mean=0.3 * BARS, std=torch.full(SHAPE, 0.5)),
    "mixture": GaussianMixture(
        means=torch.stack([0.6 * BARS, -0.6 * BARS.mT]), stds=torch.tensor([0.2, 0.3]), weights=torch.tensor([0.7, 0.3])
    ),
}
# Each takes the true score away from the truth, by about a tenth of its own size or of the noise's.
PERTURBATIONS: dict[str, Callable[[ScoreFn], ScoreFn]] = {
    "too long": lambda score: lambda x, sigma: 1.1 * score(x, sigma),
    "too short": lambda score: lambda x, sigma: 0.9 * score(x, sigma),
    "shifted up": lambda score: lambda x, sigma: score(x, sigma) + 0.1 / sigma[:, None, None, None],
    "shifted down": lambda score: lambda x, sigma: score(x, sigma) - 0.1 / sigma[:, None, None, None],
    "of more noise": lambda score: lambda x, sigma: score(x, 1.2 * sigma),
    "of less noise": lambda score: lambda x, sigma: score(x, 0.8 * sigma),
    "rotated": lambda score: lambda x, sigma: score(x.roll(1, 3), sigma),
}


def normal(count: int, *, seed: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=generator("cpu", seed, "noise"))


def data(law: Gaussian | GaussianMixture, count: int, *, seed: int) -> Tensor:
    return law.sample(count, sigma=0.0, generator=generator("cpu", seed, "data"))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_loss_is_least_at_the_true_score(law: str, weighting: str, perturbation: str) -> None:
    objective, truth = DenoisingScoreMatching(weighting=WEIGHTINGS[weighting]), LAWS[law].score
    sigma = LogUniform(sigma_min=0.05, sigma_max=10).draw(2000, generator=generator("cpu", 1))
    x, noise = data(LAWS[law], 2000, seed=1), normal(2000, seed=1)
    # the same images and noise for both, so that the difference is far more certain than either
    excess = objective(PERTURBATIONS[perturbation](truth), x, sigma, noise) - objective(truth, x, sigma, noise)
    assert excess.mean() > 4 * excess.std() / math.sqrt(len(excess))


@pytest.mark.parametrize("level", LEVELS)
def test_gaussians_irreducible_loss(level: float) -> None:
    std, count = 0.5, 4000
    sigma = torch.full((count,), level)
    objective = DenoisingScoreMatching(weighting=SigmaSquared())
    loss = objective(LAWS["gaussian"].score, data(LAWS["gaussian"], count, seed=2), sigma, normal(count, seed=2))
    # σ·score + n = n std²/(std² + σ²) − (x₀ − mean) σ/(std² + σ²), of variance std²/(std² + σ²)
    known = std**2 / (std**2 + level**2)
    assert_close(loss.mean().item(), known, rtol=0, atol=5 * loss.std().item() / math.sqrt(count))
    assert loss.std() < 0.5 * known  # so that the standard error above means something


@pytest.mark.parametrize("level", LEVELS)
def test_edm_loss_of_the_best_gaussian_score_is_one_at_every_level(level: float) -> None:
    count, law = 4000, Gaussian(mean=torch.zeros(SHAPE), std=torch.full(SHAPE, 0.6))
    objective = DenoisingScoreMatching(weighting=EDM(sigma_data=0.6))
    loss = objective(law.score, data(law, count, seed=3), torch.full((count,), level), normal(count, seed=3))
    assert_close(loss.mean().item(), 1.0, rtol=0, atol=5 * math.sqrt(2 / (16 * count)))


# λ(σ) on ‖D(x) − x₀‖² of the denoiser D = x + σ² score, as each paper prints it
ON_THE_DENOISER: dict[str, Callable[[float], float]] = {
    "sigma_squared": lambda sigma: sigma**2 / sigma**4,  # σ² on ‖score + n/σ‖² = ‖D − x₀‖²/σ⁴
    "edm": lambda sigma: (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2,
    "min_snr": lambda sigma: min(1 / sigma**2, 5.0),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weighting_is_the_papers_on_the_denoisers_error(name: str) -> None:
    sigma = torch.tensor([0.05, 0.3, 0.44, 0.45, 1.0, 20.0], dtype=torch.float64)  # 1/σ² = 5 between 0.44 and 0.45
    clean, noise = data(LAWS["gaussian"], 6, seed=4).double(), normal(6, seed=4).double()

    def wrong(x: Tensor, sigma: Tensor) -> Tensor:
        return x.sin() - 0.3

    loss = DenoisingScoreMatching(weighting=WEIGHTINGS[name])(wrong, clean, sigma, noise)
    assert loss.shape == (6,)
    for i, level in enumerate(sigma.tolist()):
        x = clean[i] + level * noise[i]
        denoised = x + level**2 * wrong(x, sigma)
        assert_close(loss[i], ON_THE_DENOISER[name](level) * (denoised - clean[i]).square().sum() / 16)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_weighting_is_named(value: float) -> None:
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(sigma_data=value)
    with pytest.raises(ValueError, match="gamma"):
        MinSNR(gamma=value)


def score_error(score: ScoreFn, law: GaussianMixture, level: float) -> float:
    """‖score − truth‖/‖truth‖ over images at one level."""
    sigma = torch.full((500,), level)
    x = law.sample(500, sigma=level, generator=generator("cpu", 5))
    with torch.no_grad():
        return float((score(x, sigma) - law.score(x, sigma)).norm() / law.score(x, sigma).norm())


def test_training_an_energy_finds_the_score_of_a_mixture() -> None:
    law, sigma_data, steps = LAWS["mixture"], 0.64, 200
    objective = DenoisingScoreMatching(weighting=EDM(sigma_data=sigma_data))
    schedule = LogNormal(sigma_min=0.02, sigma_max=20, mean=-0.5, std=1.2)
    bounds = {0.1: 0.35, 0.3: 0.2, 1.0: 0.12, 3.0: 0.04}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Energy(
            UNet(channels=1, width=16, multipliers=[1], blocks=1, attention=[], patch=2), inner_product, sigma_data=sigma_data
        )
    untrained = {level: score_error(model.score, law, level) for level in bounds}
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, step / 20) * (1 - step / steps)
        sigma = schedule.draw(64, generator=generator("cpu", 6, step))
        optimizer.zero_grad()
        objective(model, data(law, 64, seed=step), sigma, normal(64, seed=step)).mean().backward()
        optimizer.step()
    for level, bound in bounds.items():
        error = score_error(model.score, law, level)
        assert error < bound, f"σ = {level}"
        assert error < untrained[level] / 3, f"σ = {level}"
