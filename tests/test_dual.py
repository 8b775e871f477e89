"""Dual score matching: the slope in σ against finite differences, the loss against laws whose slope is known, and training."""
from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command, final_state
from exact import Gaussian, GaussianMixture
from models import FITTING, NETWORKS, SHAPE, SIGMA_DATA, direct, energy, normal
from torch import Tensor

from ebm.energy import knows_sigma
from ebm.objective import EDM, DenoisingScoreMatching, DualScoreMatching
from ebm.randomness import generator
from ebm.schedule import LogUniform

LEVELS = torch.tensor([0.02, 0.1, 0.5, 3.0, 20.0], dtype=torch.float64)
D = math.prod(SHAPE)
DUAL = DualScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA), slope_weight=10.0, sigma_data=SIGMA_DATA)
LAWS: dict[str, Gaussian | GaussianMixture] = {
    "gaussian": Gaussian(mean=torch.zeros(SHAPE).double(), std=torch.full(SHAPE, SIGMA_DATA, dtype=torch.float64)),
    "mixture": GaussianMixture(means=0.5 * normal(3, *SHAPE, seed=1), stds=torch.tensor([0.1, 0.2, 0.3]).double(),
                               weights=torch.tensor([0.5, 0.3, 0.2]).double()),
}
Dual = Callable[..., tuple[Tensor, Tensor]]
# Each takes the slope alone away from the truth; a third of the noise's spread of √(2d), where it is a shift.
PERTURBATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "too steep": lambda slope, sigma: 1.2 * slope,
    "too flat": lambda slope, sigma: 0.8 * slope,
    "shifted up": lambda slope, sigma: slope + 4 * sigma.clamp(max=1),
    "shifted down": lambda slope, sigma: slope - 4 * sigma.clamp(max=1),
}


def noisy(sigma: Tensor) -> Tensor:
    """Images as training sees them, (B, C, H, W)."""
    return SIGMA_DATA * normal(len(sigma), *SHAPE, seed=1) + sigma[:, None, None, None] * normal(len(sigma), *SHAPE, seed=2)


def told(law: Gaussian | GaussianMixture, change: Callable[[Tensor, Tensor], Tensor] = lambda slope, sigma: slope) -> Dual:
    """A law as a model: its score, and the slope of its energy."""
    def dual(x: Tensor, sigma: Tensor, *, slope: bool) -> tuple[Tensor, Tensor]:
        level = sigma.clone().requires_grad_()
        along, = torch.autograd.grad(law.energy(x, level).sum(), level)
        return law.score(x, sigma), change(sigma * along, sigma)

    return dual


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "no_grad"])
@pytest.mark.parametrize(("network", "head"), FITTING)
def test_slope_is_the_finite_difference_of_the_normalised_energy(network: str, head: str, gradients: bool) -> None:
    model, x, h = energy(network, head), noisy(LEVELS), 1e-5
    with torch.set_grad_enabled(gradients):
        score, slope = model(x, LEVELS, slope=True)
    assert slope.requires_grad is gradients and score.requires_grad is gradients
    with torch.no_grad():
        up, down = (model.normalised(x, LEVELS * math.exp(step)) for step in (h, -h))
        torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(score, model.score(x, LEVELS))


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_gradients_of_the_loss_are_pytorchs_own_and_finite_differences(
    network: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, noise = energy(network, head), normal(len(LEVELS), *SHAPE, seed=3)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss() -> Tensor:
        return DUAL(model, SIGMA_DATA * normal(len(LEVELS), *SHAPE, seed=1), LEVELS, noise).sum()

    ours = torch.autograd.grad(loss(), parameters)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)  # none of the derivatives that are written out
        for name, one, other in zip(names, ours, torch.autograd.grad(loss(), parameters), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9 * float(other.norm()),
                                       msg=lambda m, n=name: f"{n}: {m}")
    before = [p.detach().clone() for p in parameters]
    directions = [p.norm() * normal(*p.shape, seed=10 + i) / math.sqrt(p.numel()) for i, p in enumerate(before)]
    values = []
    for h in (1e-6, -1e-6):
        for parameter, start, v in zip(parameters, before, directions, strict=True):
            parameter.data.copy_(start + h * v)
        values.append(float(loss().detach()))
    along = sum(float((gradient * v).sum()) for gradient, v in zip(ours, directions, strict=True))
    difference, rounding = (values[0] - values[1]) / 2e-6, 1e-15 * abs(values[0]) / 1e-6
    assert abs(along - difference) < 1e-4 * abs(difference) + 100 * rounding


def test_an_untrained_energy_is_the_normalised_gaussian() -> None:
    model, x = energy("unet", "inner_product", seed=None), noisy(LEVELS)
    torch.testing.assert_close(model.normalised(x, LEVELS), LAWS["gaussian"].energy(x, LEVELS))
    torch.testing.assert_close(model.score_and_slope(x, LEVELS)[1], told(LAWS["gaussian"])(x, LEVELS, slope=True)[1])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_loss_is_least_at_the_true_slope(law: str, perturbation: str) -> None:
    count = 1000
    sigma = LogUniform(sigma_min=0.05, sigma_max=10).draw(count, generator=generator("cpu", 1)).double()
    x, noise = LAWS[law].sample(count, sigma=0.0, generator=generator("cpu", 2)), normal(count, *SHAPE, seed=3)
    excess = (DUAL(told(LAWS[law], PERTURBATIONS[perturbation]), x, sigma, noise) - DUAL(told(LAWS[law]), x, sigma, noise))
    assert excess.mean() > 4 * excess.std() / math.sqrt(count)


@pytest.mark.parametrize("level", [0.02, 0.3, 1.0, 4.0])
def test_irreducible_loss_of_a_gaussians_slope(level: float) -> None:
    count, sigma = 4000, torch.full((4000,), level).double()
    law = LAWS["gaussian"]
    x, noise = law.sample(count, sigma=0.0, generator=generator("cpu", 4)), normal(count, *SHAPE, seed=5)
    slope = DUAL(told(law), x, sigma, noise) - DenoisingScoreMatching(weighting=DUAL.weighting)(law.score, x, sigma, noise)
    # n given x is normal with mean σx/v and variance σ_data²/v, v = σ² + σ_data²: the variance of ‖n‖² given x
    v = level**2 + SIGMA_DATA**2
    variance = 2 * D * SIGMA_DATA**2 * (SIGMA_DATA**2 + 2 * level**2) / v**2
    known = 10 * (level / SIGMA_DATA) * variance / (2 * D) / D
    assert abs(float(slope.mean()) - known) < 5 * float(slope.std()) / math.sqrt(count)
    assert slope.std() < 3 * known


def test_at_sigma_data_half_the_weight_is_the_papers_loss() -> None:
    """Which is (t/d)² (∂E/∂t − d/(2t) + ‖x − x₀‖²/(2t²))² in t = σ²."""
    sigma = torch.full((3,), SIGMA_DATA, dtype=torch.float64)
    clean, noise = SIGMA_DATA * normal(3, *SHAPE, seed=1), normal(3, *SHAPE, seed=2)
    score, steep = normal(3, *SHAPE, seed=3), 20 * normal(3, seed=4)
    half = DualScoreMatching(weighting=DUAL.weighting, slope_weight=0.5, sigma_data=SIGMA_DATA)
    whole = half(lambda x, sigma, *, slope: (score, steep), clean, sigma, noise)
    spatial = DenoisingScoreMatching(weighting=DUAL.weighting)(lambda x, sigma: score, clean, sigma, noise)
    t, x = SIGMA_DATA**2, clean + SIGMA_DATA * noise
    paper = (t / D) ** 2 * (steep / (2 * t) - D / (2 * t) + (x - clean).square().flatten(1).sum(1) / (2 * t**2)) ** 2
    torch.testing.assert_close(whole - spatial, paper)


def test_mixed_precision_leaves_the_slope_in_float32_and_nearly_as_it_is() -> None:
    model, sigma = energy("unet", "inner_product").float(), LEVELS[1:].float()
    x = noisy(LEVELS[1:]).float()
    exact = model.score_and_slope(x, sigma)[1]
    with torch.autocast("cpu", torch.bfloat16):
        score, slope = model(x, sigma, slope=True)
    assert slope.dtype == score.dtype == torch.float32
    assert (slope - exact).abs().max() < 0.05 * SIGMA_DATA / sigma.min() * math.sqrt(D)


def test_a_compiled_step_traces_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = energy("unet", "inner_product"), noisy(LEVELS)
    eager = model(x, LEVELS, slope=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for ours, theirs in zip(model(x, LEVELS, slope=True), eager, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_knows_sigma_is_found_without_computing(network: str) -> None:
    model = energy(network, "pooled", seed=None)
    assert knows_sigma(model, SHAPE) is (network != "cnn")


def test_models_without_an_energy_or_without_sigma_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="objective: DualScoreMatching is not accepted for a DirectScore, which has no energy"):
        DUAL.check(direct("unet"), SHAPE)
    x, sigma = torch.zeros(1, *SHAPE).double(), torch.ones(1).double()
    with pytest.raises(ValueError, match="which has no energy; choose objective=dsm"):
        DUAL(direct("unet"), x, sigma, x)
    with pytest.raises(ValueError, match="objective: DualScoreMatching is not accepted for a network that ignores σ"):
        DUAL.check(energy("cnn", "pooled"), SHAPE)
    DUAL.check(energy("cnn_sigma", "pooled"), SHAPE)


@pytest.mark.parametrize("name", ["slope_weight", "sigma_data"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bad_numbers_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        DualScoreMatching(weighting=DUAL.weighting, **{"slope_weight": 1.0, "sigma_data": 0.5, name: value})


def test_two_processes_train_the_parameters_of_one_with_its_share_cut_in_pieces(
    tiny: list[str], command: Command, tmp_path: Path
) -> None:
    overrides = [*tiny, "model=cnn_sigma", "objective=dual", "budget.images=32"]
    command("train", *overrides, f"run={tmp_path / 'one'}", "budget.micro_batch=2")
    command("train", *overrides, f"run={tmp_path / 'two'}", processes=2)
    one, two = (final_state(tmp_path / name) for name in ("one", "two"))
    for name, value in one.items():
        if name.startswith(".model"):
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
