"""Noise schedules are the quantile functions of their laws, drawn one to a stratum, and refuse what they can't use."""
from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ebm.schedule import Cosine, Geometric, Karras, Levels, LogNormal, LogUniform, NoiseSchedule, Single

LOW, HIGH = 0.02, 40.0
RANGE = {"sigma_min": LOW, "sigma_max": HIGH}
CONTINUOUS: dict[str, NoiseSchedule] = {
    "loguniform": LogUniform(**RANGE),
    "lognormal": LogNormal(**RANGE, mean=-1.2, std=1.2),
    "karras": Karras(**RANGE, rho=7),
    "cosine": Cosine(**RANGE),
}
LADDER = Geometric(**RANGE, levels=10)
EVERY = {**CONTINUOUS, "geometric": LADDER}


def u_grid(count: int) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


def drawn(schedule: NoiseSchedule, count: int, *, seed: int = 0) -> Tensor:
    return schedule.draw(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_rise_from_the_least_level_to_the_greatest(name: str, dtype: torch.dtype) -> None:
    sigma = EVERY[name].sigma(u_grid(101).to(dtype))
    assert sigma.dtype == dtype
    step = sigma.diff()
    assert (step >= 0).all() if name == "geometric" else (step > 0).all()
    ends = torch.tensor([LOW, HIGH], dtype=dtype)
    assert_close(sigma[[0, -1]], ends, rtol=1e-5 if dtype == torch.float32 else 1e-7, atol=0)


def test_quantiles_keep_the_shape_they_were_asked_for() -> None:
    for schedule in [*EVERY.values(), Single(level=0.5)]:
        assert schedule.sigma(torch.rand(2, 3, generator=torch.Generator().manual_seed(0))).shape == (2, 3)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("count", [1, 7, 64])
def test_draw_has_one_level_in_each_stratum(name: str, count: int) -> None:
    edges = CONTINUOUS[name].sigma(u_grid(count + 1))
    for seed in range(5):
        level = drawn(CONTINUOUS[name], count, seed=seed).sort().values.double()
        assert (level >= edges[:-1] * (1 - 1e-5)).all()
        assert (level <= edges[1:] * (1 + 1e-5)).all()


def test_draw_is_uniform_within_its_stratum_and_at_every_place() -> None:
    schedule, count, draws = LogUniform(**RANGE), 8, 500
    levels = torch.stack([drawn(schedule, count, seed=seed) for seed in range(draws)]).double()
    u = (levels / LOW).log() / math.log(HIGH / LOW)  # (draws, count)
    # five standard errors of the mean and of the variance of a uniform number
    assert_close(u.mean(0), torch.full((count,), 0.5, dtype=u.dtype), rtol=0, atol=5 * (12 * draws) ** -0.5)
    within = (u * count) % 1
    assert_close(within.mean().item(), 0.5, rtol=0, atol=5 * (12 * draws * count) ** -0.5)
    assert_close(within.var().item(), 1 / 12, rtol=5 * (0.8 / (draws * count)) ** 0.5, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_draw(name: str) -> None:
    assert_close(drawn(EVERY[name], 40, seed=3), drawn(EVERY[name], 40, seed=3), rtol=0, atol=0)
    assert not torch.equal(drawn(EVERY[name], 40, seed=3), drawn(EVERY[name], 40, seed=4))


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.4, 1.0), (-3.0, 2.0)])
def test_lognormal_is_the_normal_law_of_ln_sigma_cut_at_both_ends(mean: float, std: float) -> None:
    law = NormalDist(mean, std)
    low, high = law.cdf(math.log(LOW)), law.cdf(math.log(HIGH))
    u = u_grid(41)[1:-1]
    truth = [math.exp(law.inv_cdf(low + q * (high - low))) for q in u.tolist()]
    assert_close(LogNormal(**RANGE, mean=mean, std=std).sigma(u), torch.tensor(truth, dtype=u.dtype), rtol=1e-9, atol=0)


def test_loguniform_is_uniform_in_the_logarithm() -> None:
    truth = [math.exp(math.log(LOW) + i / 10 * (math.log(HIGH) - math.log(LOW))) for i in range(11)]
    assert_close(LogUniform(**RANGE).sigma(u_grid(11)), torch.tensor(truth, dtype=torch.float64))


@pytest.mark.parametrize("rho", [1, 3, 7])
def test_karras_grid_is_the_papers(rho: int) -> None:
    steps = 18
    # Karras et al. 2022, eq. 5, as printed
    truth = [(HIGH ** (1 / rho) + i / (steps - 1) * (LOW ** (1 / rho) - HIGH ** (1 / rho))) ** rho for i in range(steps)]
    assert_close(Karras(**RANGE, rho=rho).sigmas(steps), torch.tensor(truth, dtype=torch.float64))


def test_cosine_is_the_variance_preserving_cosine_law_with_time_uniform() -> None:
    sigma = Cosine(**RANGE).sigma(u_grid(21))
    alpha, noise = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    ends = [math.acos(1 / math.sqrt(1 + level**2)) / (math.pi / 2) for level in (LOW, HIGH)]
    t = torch.linspace(*ends, 21, dtype=torch.float64)
    # Nichol & Dhariwal 2021, eq. 17 with s = 0: ᾱ = cos²(πt/2), where α = √ᾱ and the noise is √(1 − ᾱ)
    assert_close(alpha, (math.pi * t / 2).cos())
    assert_close(noise, (math.pi * t / 2).sin())


def test_ladder_is_drawn_on_its_rungs_equally_often() -> None:
    rungs = torch.tensor([LOW * (HIGH / LOW) ** (i / 9) for i in range(10)])
    for seed in range(5):
        level = drawn(LADDER, 40, seed=seed)
        nearest = (level[:, None] / rungs).log().abs().argmin(1)
        assert_close(level, rungs[nearest], rtol=1e-5, atol=0)
        assert nearest.bincount(minlength=10).tolist() == [4] * 10


def test_ladder_grid_visits_the_rungs_it_was_trained_on() -> None:
    rungs = [LOW * (HIGH / LOW) ** (i / 9) for i in range(10)]
    assert_close(LADDER.sigmas(10), torch.tensor(rungs[::-1], dtype=torch.float64))
    assert_close(LADDER.sigma(u_grid(11)[:-1] + 0.05), torch.tensor(rungs, dtype=torch.float64))
    assert len(set(LADDER.sigmas(25).tolist())) == 25


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grid_falls_from_the_greatest_level_to_the_least(name: str, steps: int) -> None:
    grid = EVERY[name].sigmas(steps)
    assert grid.shape == (steps,)
    assert grid.dtype == torch.float64
    assert all(before > after for before, after in pairwise(grid.tolist()))
    ends = [HIGH, LOW] if steps > 1 else [HIGH, HIGH]
    assert_close(grid[[0, -1]], torch.tensor(ends, dtype=torch.float64), rtol=1e-7, atol=0)


def test_listed_levels_are_drawn_equally_often_and_are_the_grid() -> None:
    truth = [3.0, 0.5, 0.1, 0.02]
    schedule = Levels(levels=[0.5, 0.02, 3, 0.1])
    assert schedule.sigmas(4).tolist() == truth
    assert schedule.sigma(u_grid(9)).tolist() == [0.02, 0.02, 0.1, 0.1, 0.5, 0.5, 3.0, 3.0, 3.0]
    assert schedule.sigma(torch.rand(2, 3)).dtype == torch.float32
    for seed in range(5):
        levels = drawn(schedule, 40, seed=seed)
        assert {round(level, 6): levels.tolist().count(level) for level in levels.tolist()} == dict.fromkeys(truth, 10)
    for steps in (1, 3, 5, 18):
        with pytest.raises(ValueError, match=f"^steps: {steps} is not accepted; each of the 4 listed levels is visited once"):
            schedule.sigmas(steps)
    assert schedule.probes(20) == schedule.probes(4) == truth[::-1]
    assert schedule.probes(2) == [0.02, 3.0]
    assert CONTINUOUS["karras"].probes(5) == CONTINUOUS["karras"].sigmas(5).tolist()[::-1]


def test_single_level_is_all_there_is() -> None:
    schedule = Single(level=0.3)
    assert_close(drawn(schedule, 5), torch.full((5,), 0.3))
    assert_close(schedule.sigmas(3), torch.full((3,), 0.3, dtype=torch.float64))


WITH_RANGE: dict[str, Callable[..., NoiseSchedule]] = {
    "loguniform": LogUniform,
    "lognormal": lambda **fields: LogNormal(**fields, mean=0, std=1),
    "karras": lambda **fields: Karras(**fields, rho=7),
    "cosine": Cosine,
    "geometric": lambda **fields: Geometric(**fields, levels=3),
}


@pytest.mark.parametrize("name", WITH_RANGE)
@pytest.mark.parametrize(
    ("low", "high", "field"),
    [
        (0.0, 1.0, "sigma_min"),
        (-1.0, 1.0, "sigma_min"),
        (math.nan, 1.0, "sigma_min"),
        (0.1, math.inf, "sigma_max"),
        (0.1, math.nan, "sigma_max"),
        (2.0, 1.0, "sigma_max"),
        (1.0, 1.0, "sigma_max"),
    ],
)
def test_bad_range_is_named(name: str, low: float, high: float, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not accepted"):
        WITH_RANGE[name](sigma_min=low, sigma_max=high)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Karras(**RANGE, rho=0), "rho"),
        (lambda: LogNormal(**RANGE, mean=0, std=-1), "std"),
        (lambda: Geometric(**RANGE, levels=1), "levels"),
        (lambda: Single(level=0), "level"),
        (lambda: Levels(levels=[]), "levels"),
        (lambda: Levels(levels=[1, 0.5, 1.0]), "levels"),
        (lambda: Levels(levels=[1, -0.5]), "levels"),
        (lambda: LADDER.sigmas(0), "steps"),
        (lambda: Karras(**RANGE, rho=7).sigmas(0), "steps"),
    ],
)
def test_other_bad_values_are_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not accepted"):
        make()
