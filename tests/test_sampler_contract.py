"""What every sampler keeps whatever the law: its streams, its steps, its caller's gradient mode, its refusals."""
from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from exact import Gaussian
from test_samplers import EVERY, METROPOLIS, gaussian, last, mixture, run
from torch import Tensor
from torch.testing import assert_close

from ebm.randomness import generator, image_generators, normal_like
from ebm.samplers.langevin import langevin
from ebm.schedule import Single


@pytest.mark.parametrize("name", EVERY)
def test_image_depends_on_its_own_generator_only(name: str) -> None:
    model = gaussian(size=4)

    def images(*indices: int) -> Tensor:
        generators = image_generators("cpu", 7, indices)
        noise = normal_like(torch.empty(len(indices), 2, 4, 4), generators)
        return last(EVERY[name](model, noise, generators=generators))

    together = images(0, 1, 2, 3)
    assert_close(images(2), together[2:3])
    assert_close(images(0, 1, 2, 3), together, rtol=0, atol=0)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("name", EVERY)
def test_steps_add_up(name: str) -> None:
    steps = list(run(EVERY[name], gaussian(size=16), (4, 2, 16, 16), seed=8))
    assert [(step.index, step.total) for step in steps] == [(index, len(steps)) for index in range(len(steps))]
    seen = 0
    for before, step in pairwise(steps):
        moved = (step.x != before.x).flatten(1).any(1)  # an image whose proposal was refused stays where it was
        assert moved.all() or step.acceptance is not None
        if moved.any():
            rest = (step.x - before.x - step.drift)[moved]
            # the rest is noise_size · n; five standard errors, for the many moves; 1e-5 for float32 near σ_max
            assert_close(rest.square().mean().sqrt().item(), step.noise_size, rtol=5 / math.sqrt(2 * 512), atol=1e-5)
            seen += 1
    assert seen > len(steps) / 4


def test_clamp_is_kept() -> None:
    sampler = partial(langevin, sigma=1, start=5, steps=5, step_size=0.1, noise_size=None, clamp=0.7)
    for step in run(sampler, gaussian(size=4), (8, 2, 4, 4), seed=9):
        assert_close(step.x.abs().max().item(), 0.7)  # σ = 1 takes some pixel to the wall in every move


@pytest.mark.parametrize("name", EVERY)
def test_gradients_stay_out_of_the_run_and_on_in_the_caller(name: str) -> None:
    class Learned(Gaussian):
        def score(self, x: Tensor, sigma: Tensor) -> Tensor:
            return super().score(x, sigma) * self.scale

        scale = torch.ones((), requires_grad=True)

    law = gaussian(size=2)
    step = next(run(EVERY[name], Learned(mean=law.mean, std=law.std), (2, 2, 2, 2), seed=11))
    assert torch.is_grad_enabled()
    assert not step.x.requires_grad and not step.drift.requires_grad


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("langevin", "sigma", 0),
        ("langevin", "start", -1),
        ("langevin", "steps", 0),
        ("langevin", "step_size", math.nan),
        ("langevin", "noise_size", -0.1),
        ("langevin", "clamp", 0),
        ("gradient descent", "step_size", 0),
        ("annealed", "steps", 1.5),
        ("annealed", "steps_per_level", 0),
        ("annealed", "step_scale", math.inf),
        ("corrected", "steps", 1),
        ("corrected", "corrector_steps", -1),
        ("corrected", "signal_to_noise", 0),
        ("heun", "steps", 0),
        ("heun", "churn", -1),
        ("heun", "churn_min", math.nan),
        ("heun", "churn_max", -1),
        ("heun", "churn_noise", 0),
        ("heun", "grid", Single(level=1)),
        ("multistep", "grid", Single(level=1)),
        ("metropolis", "steps_per_level", 0),
        ("metropolis", "step_scale", 0),
    ],
)
def test_unusable_argument_is_named_at_the_call(name: str, field: str, value: object) -> None:
    noise, generators = torch.zeros(2, 1, 1, 2), image_generators("cpu", 0, range(2))
    with pytest.raises(ValueError, match=f"^{field}: "):
        EVERY[name](mixture(), noise, **{field: value}, generators=generators)


@pytest.mark.parametrize("name", EVERY)
def test_generators_are_counted(name: str) -> None:
    with pytest.raises(ValueError, match=r"^generators: 1 "):
        EVERY[name](mixture(), torch.zeros(2, 1, 1, 2), generators=[generator("cpu", 0)])


def test_metropolis_refuses_a_model_without_energy() -> None:
    class Direct:
        score = staticmethod(mixture().score)

    with pytest.raises(ValueError, match=r"^model: Direct "):
        METROPOLIS(Direct(), torch.zeros(1, 1, 1, 2), generators=[generator("cpu", 0)])
