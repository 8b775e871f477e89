"""What the Metropolis test is worth, held to acceptances computed by hand and to the unadjusted sampler's known bias."""
from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import Gaussian
from hydra import compose, initialize_config_dir
from measured import Energy, Score, work
from torch import Tensor
from torch.testing import assert_close

from ebm.diagnose.reference import Reference
from ebm.evaluate.acceptance import gains, jackknife, run_to_end
from ebm.randomness import image_generators, normal_like, uniform
from ebm.samplers.annealed import annealed_langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.step import Step
from ebm.schedule import Levels, LogUniform, Single
from launch.config.build import build
from launch.config.manual import CONFIGS
from launch.metrics.metropolis import Metropolis

LEVEL = 0.5
TESTED = partial(metropolis_annealed, grid=Single(level=LEVEL), steps=1, denoise=False)
UNADJUSTED = partial(annealed_langevin, grid=Single(level=LEVEL), steps=1, denoise=False)


def law(*, pixels: int, std: float = 0.3) -> Gaussian:
    return Gaussian(mean=torch.zeros(1, 1, pixels), std=torch.full((1, 1, pixels), std))


def start(count: int, pixels: int, *, seed: int) -> tuple[Tensor, list[torch.Generator]]:
    generators = image_generators("cpu", seed, range(count))
    return normal_like(torch.empty(count, 1, 1, pixels, dtype=torch.float64), generators), generators


def test_one_acceptance_by_hand() -> None:
    """min(1, p(y) q(x|y) / p(x) q(y|x)) from the densities themselves, for one move of which all numbers are known."""
    noise, generators = start(40, 3, seed=0)
    a, variance = 0.6 * LEVEL**2, 0.3**2 + LEVEL**2
    end = run_to_end(TESTED(law(pixels=3), noise, steps_per_level=1, step_scale=0.6, generators=generators))
    _, again = start(40, 3, seed=0)
    x = LEVEL * noise
    y = x - a * x / variance + math.sqrt(2 * a) * normal_like(x, again)

    def log_density(z: Tensor, centre: Tensor, spread: float) -> Tensor:
        return torch.distributions.Normal(centre, math.sqrt(spread)).log_prob(z).flatten(1).sum(1)

    ratio = (log_density(y, torch.zeros(1, dtype=torch.float64), variance) + log_density(x, y - a * y / variance, 2 * a)
             - log_density(x, torch.zeros(1, dtype=torch.float64), variance) - log_density(y, x - a * x / variance, 2 * a))
    by_hand = ratio.clamp(max=0).exp()
    assert by_hand.min() < 0.9, "every move is accepted: the test shows nothing"
    assert_close(end.acceptance[:, 0], by_hand, rtol=1e-5, atol=1e-6)
    taken = (uniform(again, dtype=torch.float64) < by_hand).view(-1, 1, 1, 1)
    assert_close(end.x, torch.where(taken, y, x), rtol=1e-5, atol=1e-6)


def test_acceptance_goes_to_one_as_steps_shrink() -> None:
    means = []
    for scale in (1e-3, 0.1, 1.0):
        noise, generators = start(300, 16, seed=1)
        end = run_to_end(TESTED(law(pixels=16), noise, steps_per_level=3, step_scale=scale, generators=generators))
        assert end.levels == (LEVEL,)
        means.append(end.acceptance.mean().item())
    assert means[0] > 0.999
    assert means[0] > means[1] > means[2] > 0


@pytest.mark.parametrize("pixels", [1, 64])
def test_acceptance_in_equilibrium_is_its_expectation(pixels: int) -> None:
    """For N(0, V)^d the log ratio is −(b/4)(‖y‖² − ‖x‖²)/V with b = a/V: its mean over draws of x and n, made without any of
    the sampler's code."""
    std, scale, count = 0.3, 0.8, 3000
    variance = std**2 + LEVEL**2
    b = scale * LEVEL**2 / variance
    draws = torch.Generator().manual_seed(7)
    x, n = (torch.randn(200_000, pixels, generator=draws) for _ in range(2))
    y = x - b * x + math.sqrt(2 * b) * n
    expected = (-b / 4 * (y.square().sum(1) - x.square().sum(1))).clamp(max=0).exp()
    noise, generators = start(count, pixels, seed=2)
    noise = noise * math.sqrt(variance) / LEVEL  # so that it starts at the law itself
    sampler = partial(TESTED, steps_per_level=4, step_scale=scale, generators=generators)
    found = run_to_end(sampler(law(pixels=pixels, std=std), noise)).acceptance
    assert_close(found.mean().item(), expected.mean().item(), rtol=0, atol=4 * expected.std().item() / math.sqrt(count))


def test_levels_are_kept_apart() -> None:
    noise, generators = start(50, 4, seed=3)
    sampler = partial(metropolis_annealed, grid=LogUniform(sigma_min=0.05, sigma_max=2.0), steps=3, steps_per_level=2,
                      step_scale=1.0, denoise=True, generators=generators)
    steps = list(sampler(law(pixels=4), noise))
    end = run_to_end(iter(steps))
    assert end.levels == tuple(LogUniform(sigma_min=0.05, sigma_max=2.0).sigmas(3).tolist())
    tested = [step.acceptance for step in steps if step.acceptance is not None]
    assert_close(end.acceptance, torch.stack([(tested[i] + tested[i + 1]) / 2 for i in (0, 2, 4)], 1))
    noise, generators = start(50, 4, seed=3)
    untested = run_to_end(UNADJUSTED(law(pixels=4), noise, steps_per_level=2, step_scale=0.1, generators=generators))
    assert (untested.levels, untested.acceptance.shape) == ((), (50, 0))

    def none() -> Iterator[Step]:
        yield from ()

    with pytest.raises(ValueError, match="took no step"):
        run_to_end(none())


def test_the_gain_is_the_unadjusted_samplers_bias() -> None:
    """The unadjusted variance is 1/(λ(1 − aλ/2)), Metropolis' 1/λ: a gain of (1 − aλ/2)^−½ − 1 of the law's width."""
    std, scale, pixels, count = 0.3, 1.2, 4, 4000
    curvature = 1 / (std**2 + LEVEL**2)
    half = scale * LEVEL**2 * curvature / 2
    exact = law(pixels=pixels, std=std)
    real = exact.sample(20_000, sigma=0, generator=torch.Generator().manual_seed(5))
    reference = Reference.fit(real, components=2)
    ends = {}
    for name, sampler, moves in (("tested", TESTED, 25), ("free", UNADJUSTED, 12)):
        noise, generators = start(count, pixels, seed=4)
        ends[name] = run_to_end(sampler(exact, noise, steps_per_level=moves, step_scale=scale, generators=generators)).x
    total = count * pixels  # independent numbers, each with a variance known to √(2/total)
    assert_close(ends["tested"].var().item() * curvature, 1.0, rtol=0, atol=4 * math.sqrt(2 / total))
    assert_close(ends["free"].var().item() * curvature, 1 / (1 - half), rtol=0, atol=4 * math.sqrt(2 / total) / (1 - half))
    found = gains(reference, ends["tested"], {"free": ends["free"]}, sigma=LEVEL, groups=16)
    theory = (1 - half) ** -0.5 - 1
    assert theory > 0.2
    assert set(found) == {"adjusted", "free", "gain free"}
    assert_close(found["gain free"].value, found["free"].value - found["adjusted"].value, rtol=1e-12, atol=0)
    # A distance that should be none is sampling error alone, some √(2/total) of which 4 are allowed on either side
    assert_close(found["gain free"].value, theory, rtol=0, atol=2 * 4 * math.sqrt(2 / total))
    assert 0.2 < found["free"].stderr / (math.sqrt(1 / (2 * total)) / math.sqrt(1 - half)) < 3


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = torch.randn(960, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    value, error = jackknife(lambda kept: x[kept].mean()[None], count=960, groups=960)
    assert_close(value, x.mean()[None])
    assert_close(error, x.std()[None] / math.sqrt(960))
    _, grouped = jackknife(lambda kept: x[kept].mean()[None], count=960, groups=32)
    assert_close(grouped, error, rtol=0.5, atol=0)
    with pytest.raises(ValueError, match="groups: 1 is not accepted; it must be 2 to 960"):
        jackknife(lambda kept: x[kept].mean()[None], count=960, groups=1)


def metric(*overrides: str, **settings: Any) -> Metropolis:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        built = build(compose("metric/metropolis", overrides=list(overrides)).metric, key="metric.metropolis")
    small = {"count": 96, "steps": 4, "steps_per_level": 4, "real": 400, "components": 8, "groups": 8}
    return replace(built, **{**small, **settings})


def test_the_metric_on_a_known_law(tmp_path: Path) -> None:
    # at one level, without denoising: the curvature of all directions is 1/(0.25² + 1)
    measure = metric(grid=Levels(levels=[1.0]), steps=1, steps_per_level=19, step_scales=[0.02, 0.8], denoise=False)
    given = work(tmp_path, Energy())
    listed = replace(measure, grid=Levels(levels=[2.0, 1.0]), steps=2)
    assert listed.samplers(given)[1] == measure.samplers(given)[1], "moves of equal cost don't depend on the levels"
    measure.check(given)
    figures = measure(given)
    assert figures is not None
    json.dumps([figures.values, figures.measure, figures.details], allow_nan=False)
    assert figures.pictures["acceptance"].startswith(b"\x89PNG")
    value, details = figures.values, figures.details
    assert details["moves per level"] == {"metropolis": 19, "equal nfe": 20, "equal cost": 30}
    assert details["passes"]["0.8"] == {"metropolis": [40, 20], "equal nfe": [20, 20], "equal cost": [30, 30]}
    assert 0.9 < value["acceptance_0.02"] <= 1
    assert value["acceptance_0.8"] < 0.3
    for name in ("equal_nfe", "equal_cost"):
        gain = value[f"{name}_0.8"] - value["metropolis_0.8"]
        assert value[f"gain_{name}_0.8"] == pytest.approx(gain)
        assert value[f"gain_{name}_0.8_stderr"] > 0
    assert value["real"] < 0.1
    again = measure(given)  # from what was put aside
    assert again is not None
    assert again.values == value


def test_a_direct_score_and_bad_settings_are_refused(tmp_path: Path) -> None:
    given = work(tmp_path, Energy())
    for settings, words in (({"step_scales": []}, "step_scales"), ({"step_scales": [0.1, -1.0]}, "step_scales: -1.0"),
                            ({"groups": 500}, "groups: 500 is not accepted"), ({"steps": 0}, "steps: 0"),
                            ({"count": 3}, "count: 3")):
        with pytest.raises(ValueError, match=words):
            metric(**settings).check(given)
    with pytest.raises(ValueError, match="Score is not accepted; metrics=\\[metropolis\\] needs an energy"):
        metric().check(replace(given, pipeline=replace(given.pipeline, model=Score())))
    assert metric("sampler/grid@metric.grid=loguniform").grid.__class__.__name__ == "LogUniform"


def test_an_acceptance_is_the_mean_over_the_moves_of_its_own_level() -> None:
    x = torch.zeros(2, 1, 1, 1)
    moves = enumerate([(1.0, 0.2), (1.0, 0.4), (1.0, 0.9), (0.5, 0.6), (0.25, None)])
    steps = [Step(x=x, index=index, total=5, sigma=sigma, sigma_after=sigma, drift=x, noise_size=0.0,
                  acceptance=None if share is None else torch.tensor([share, 0.0])) for index, (sigma, share) in moves]
    end = run_to_end(iter(steps))
    assert end.levels == (1.0, 0.5)
    assert_close(end.acceptance, torch.tensor([[0.5, 0.6], [0.0, 0.0]]).double())
