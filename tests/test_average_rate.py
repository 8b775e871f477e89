"""Moving averages have the profile they promise; learning rates their values at the points that matter."""
from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ebm.train.ema import Average, Averaging, Halflife, PowerFunction
from ebm.train.rate import Constant, Cosine, InverseSquareRoot, LearningRate


def profile(rule: Averaging, steps: int, *, batch: int) -> Tensor:
    """Weight of each step's parameters in the average after ``steps`` steps, (steps,)."""
    decay = torch.tensor([rule.decay(step, batch) for step in range(1, steps + 1)], dtype=torch.float64)
    kept = torch.cat([decay[1:].flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])
    return (1 - decay) * kept


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.2, 0.25])
def test_power_function_has_its_relative_width(sigma_rel: float) -> None:
    steps = 4000
    weight, time = profile(PowerFunction(sigma_rel=sigma_rel), steps, batch=64), torch.arange(1, steps + 1) / steps
    assert_close(weight.sum().item(), 1.0)
    mean = (weight * time).sum()
    # Karras et al. 2024, section 3.1: the profile's standard deviation, relative to the time of training so far
    width = (weight * (time - mean) ** 2).sum().sqrt().item()
    assert_close(width, sigma_rel, rtol=2e-3, atol=0)


def test_power_function_is_a_power_of_time_at_any_batch() -> None:
    weight = profile(PowerFunction(sigma_rel=0.1), 4000, batch=64)
    assert_close(profile(PowerFunction(sigma_rel=0.1), 4000, batch=1), weight, rtol=0, atol=0)
    gamma = 6.94  # of σ_rel = 0.1, Karras et al. 2024, section 3.1
    assert_close((weight[3999] / weight[1999]).log2().item(), gamma, rtol=2e-3, atol=0)


def test_half_life_halves_a_weight_after_its_images() -> None:
    rule, batch = Halflife(images=1000, rampup=0.5), 10
    weight = profile(rule, 2000, batch=batch)
    assert_close(weight[1999 - 100] / weight[1999], torch.tensor(0.5, dtype=torch.float64))
    assert_close(rule.decay(1000, batch) ** 100, 0.5)


@pytest.mark.parametrize("step", [1, 5, 50])
def test_half_life_is_a_share_of_the_images_seen_at_first(step: int) -> None:
    half_life = 0.2 * step * 10
    assert_close(Halflife(images=1000, rampup=0.2).decay(step, 10) ** (half_life / 10), 0.5)


class Model(nn.Module):
    """Two parameters and a counter that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.bias.fill_(-value)
            self.seen += 1


class Fixed(Averaging):
    def decay(self, step: int, batch: int) -> float:
        return 0.75


def test_average_moves_by_the_share_that_is_not_kept() -> None:
    model = Model()
    model.become(1.0)
    average = Average(model, Fixed())
    model.become(5.0)
    average.update(model, step=1, batch=1)
    assert_close(average.model.weight, torch.full((2, 3), 0.75 * 1 + 0.25 * 5))
    assert_close(average.model.bias, torch.tensor(-2.0))
    assert_close(model.weight.detach(), torch.full((2, 3), 5.0))


def test_average_has_the_weights_of_its_profile() -> None:
    model, rule = Model(), PowerFunction(sigma_rel=0.2)
    average = Average(model, rule)
    for step in range(1, 31):
        model.become(float(step**2))
        average.update(model, step=step, batch=8)
    mean = (profile(rule, 30, batch=8) * torch.arange(1, 31) ** 2).sum().item()
    assert_close(average.model.weight, torch.full((2, 3), mean))


def test_average_has_the_models_own_buffers() -> None:
    model = Model()
    average = Average(model, Fixed())
    model.become(1.0)
    average.update(model, step=1, batch=1)
    assert average.model.seen == model.seen == 1
    model.become(2.0)
    assert average.model.seen == 1  # a copy, not the same memory


@pytest.mark.parametrize("rule", [PowerFunction(sigma_rel=0.1), Halflife(images=1000, rampup=0.05)])
def test_first_step_forgets_the_random_start(rule: Averaging) -> None:
    model = Model()
    model.become(1000.0)
    average = Average(model, rule)
    model.become(3.0)
    average.update(model, step=1, batch=64)
    assert_close(average.model.weight, torch.full((2, 3), 3.0), rtol=1e-3, atol=0)


def test_average_is_for_evaluation_only() -> None:
    model = Model()
    average = Average(model, Fixed())
    assert not average.model.training
    assert model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("rate", "images", "expected"),
    [
        (Constant(peak=2.0, warmup=100), 0, 0.0),
        (Constant(peak=2.0, warmup=100), 50, 1.0),
        (Constant(peak=2.0, warmup=100), 100, 2.0),
        (Constant(peak=2.0, warmup=100), 1000, 2.0),
        (Constant(peak=2.0, warmup=0), 0, 2.0),
        (Cosine(peak=2.0, warmup=0), 0, 2.0),
        (Cosine(peak=2.0, warmup=0), 250, 1 + math.sqrt(0.5)),
        (Cosine(peak=2.0, warmup=100), 500, 1.0),
        (Cosine(peak=2.0, warmup=100), 1000, 0.0),
        (Cosine(peak=2.0, warmup=100), 1100, 0.0),
        (Cosine(peak=2.0, warmup=500), 250, (1 + math.sqrt(0.5)) / 2),
        (InverseSquareRoot(peak=2.0, warmup=0, knee=100), 50, 2.0),
        (InverseSquareRoot(peak=2.0, warmup=0, knee=100), 100, 2.0),
        (InverseSquareRoot(peak=2.0, warmup=0, knee=100), 400, 1.0),
        (InverseSquareRoot(peak=2.0, warmup=800, knee=100), 400, 0.5),
    ],
)
def test_learning_rate_at_its_key_points(rate: LearningRate, images: int, expected: float) -> None:
    assert_close(rate(images, 1000), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: PowerFunction(sigma_rel=0.0), "sigma_rel"),
        (lambda: PowerFunction(sigma_rel=0.28), "sigma_rel"),
        (lambda: PowerFunction(sigma_rel=math.nan), "sigma_rel"),
        (lambda: Halflife(images=0, rampup=0.05), "images"),
        (lambda: Halflife(images=1000, rampup=-1), "rampup"),
        (lambda: Constant(peak=0.0, warmup=1), "peak"),
        (lambda: Cosine(peak=math.nan, warmup=1), "peak"),
        (lambda: Constant(peak=1.0, warmup=-1), "warmup"),
        (lambda: InverseSquareRoot(peak=1.0, warmup=1, knee=0), "knee"),
        (lambda: InverseSquareRoot(peak=1.0, warmup=-1, knee=1), "warmup"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not accepted"):
        make()
