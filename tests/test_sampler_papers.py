"""Every sampler against its paper's algorithm, written out a second time: moments may forgive a wrong factor, this does not."""
from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from exact import GaussianMixture
from test_samplers import last
from torch import Tensor
from torch.testing import assert_close

from ebm.randomness import image_generators, normal_like, uniform
from ebm.samplers.annealed import annealed_langevin, predictor_corrector
from ebm.samplers.langevin import gradient_descent, langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import dpm_solver_pp_2m, heun
from ebm.schedule import Karras

GRID, STEPS = Karras(sigma_min=0.05, sigma_max=5, rho=3), 7  # its steps are equal neither in σ nor in ln σ
LAW = GaussianMixture(means=torch.tensor([[-1.0, 0.6], [1.0, -0.6]]).view(2, 1, 1, 2).double(),
                      stds=torch.tensor([0.2, 0.3]).double(), weights=torch.tensor([0.3, 0.7]).double())
Draw = Callable[[], Tensor]


def score(x: Tensor, sigma: float) -> Tensor:
    return LAW.score(x, torch.full((len(x),), sigma, dtype=x.dtype))


def denoised(x: Tensor, sigma: float) -> Tensor:
    return x + sigma**2 * score(x, sigma)


def compare(sampler: Callable[..., object], paper: Callable[[Draw], Tensor], **settings: object) -> None:
    """Compares the sampler's final state with the paper's from the same noise."""
    generators = image_generators("cpu", 0, range(5))
    noise = normal_like(torch.empty(5, 1, 1, 2, dtype=torch.float64), generators)
    found = last(sampler(LAW, noise, **settings, generators=generators))  # type: ignore[arg-type]
    again = image_generators("cpu", 0, range(5))
    assert_close(found, paper(lambda: normal_like(noise, again)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", [
    {"churn": 0.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0},
    {"churn": 2.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0},
    {"churn": 2.0, "churn_min": 0.3, "churn_max": 2.0, "churn_noise": 1.003},
    {"churn": 40.0, "churn_min": 0.0, "churn_max": 2.0, "churn_noise": 1.0},
], ids=["none", "everywhere", "in a range", "at its limit"])
def test_heun_is_algorithm_2_of_karras_et_al(settings: dict[str, float]) -> None:
    def paper(draw: Draw) -> Tensor:
        x = GRID.sigma_max * draw()
        for t, after in pairwise([*GRID.sigmas(STEPS).tolist(), 0.0]):
            inside = settings["churn_min"] <= t <= settings["churn_max"]
            gamma = min(settings["churn"] / STEPS, math.sqrt(2) - 1) if inside else 0.0
            raised = t + gamma * t
            if gamma:
                x = x + math.sqrt(raised**2 - t**2) * settings["churn_noise"] * draw()
            slope = (x - denoised(x, raised)) / raised
            ahead = x + (after - raised) * slope
            if after:
                ahead = x + (after - raised) * (slope + (ahead - denoised(ahead, after)) / after) / 2
            x = ahead
        return x

    compare(heun, paper, grid=GRID, steps=STEPS, **settings)


def test_the_multistep_solver_is_algorithm_2_of_lu_et_al() -> None:
    def paper(draw: Draw) -> Tensor:
        x, before = GRID.sigma_max * draw(), None
        levels = [*GRID.sigmas(STEPS).tolist(), 0.0]
        for i, (t, after) in enumerate(pairwise(levels)):
            now = denoised(x, t)
            if before is None or not after:
                target = now
            else:
                r = math.log(levels[i - 1] / t) / math.log(t / after)  # h before / h, in λ = −ln σ
                target = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
            x, before = after / t * x + (1 - after / t) * target, now  # −expm1(−h) = 1 − after/t
        return x

    compare(dpm_solver_pp_2m, paper, grid=GRID, steps=STEPS)


@pytest.mark.parametrize("corrector_steps", [0, 1, 3])
def test_the_corrected_predictor_is_algorithms_2_and_4_of_song_et_al(corrector_steps: int) -> None:
    r = 0.3

    def paper(draw: Draw) -> Tensor:
        x = GRID.sigma_max * draw()
        for sigma, after in pairwise(GRID.sigmas(STEPS).tolist()):
            g = sigma**2 - after**2
            x = x + g * score(x, sigma) + math.sqrt(g) * draw()
            for _ in range(corrector_steps):
                epsilon = 2 * (r * math.sqrt(2) / (math.sqrt(2) / after)) ** 2  # 2 (r ‖z‖/‖s‖)², of their expectations
                x = x + epsilon * score(x, after) + math.sqrt(2 * epsilon) * draw()
        return denoised(x, GRID.sigma_min)

    compare(predictor_corrector, paper, grid=GRID, steps=STEPS, corrector_steps=corrector_steps, signal_to_noise=r,
            denoise=True)


@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin_is_algorithm_1_of_song_and_ermon(denoise: bool) -> None:
    epsilon = 2 * 0.4 * GRID.sigma_min**2  # of which step_scale = ε/(2 σ_min²) = 0.4

    def paper(draw: Draw) -> Tensor:
        x = GRID.sigma_max * draw()
        for sigma in GRID.sigmas(STEPS).tolist():
            alpha = epsilon * sigma**2 / GRID.sigma_min**2
            for _ in range(3):
                x = x + alpha / 2 * score(x, sigma) + math.sqrt(alpha) * draw()
        return denoised(x, GRID.sigma_min) if denoise else x

    compare(annealed_langevin, paper, grid=GRID, steps=STEPS, steps_per_level=3, step_scale=0.4, denoise=denoise)


@pytest.mark.parametrize(("noise_size", "clamp"), [(None, None), (0.05, None), (None, 0.8), (0.0, 0.8)])
def test_langevin_is_a_gradient_step_and_noise(noise_size: float | None, clamp: float | None) -> None:
    def paper(draw: Draw) -> Tensor:
        x = 1.7 * draw()
        b = math.sqrt(2 * 0.02) if noise_size is None else noise_size
        for _ in range(9):
            x = x + 0.02 * score(x, 0.5) + (b * draw() if b else 0)
            x = x if clamp is None else x.clamp(-clamp, clamp)
        return x

    settings = {"sigma": 0.5, "start": 1.7, "steps": 9, "step_size": 0.02, "clamp": clamp}
    compare(langevin, paper, noise_size=noise_size, **settings)
    if noise_size == 0.0:
        compare(gradient_descent, paper, **settings)


def test_metropolis_weighs_each_proposal_against_the_way_back() -> None:
    scale, rejected = 1.5, []

    def paper(draw: Draw) -> Tensor:
        x = GRID.sigma_max * draw()
        for sigma in GRID.sigmas(STEPS).tolist():
            a, level = scale * sigma**2, torch.full((5,), sigma, dtype=torch.float64)

            def log_q(there: Tensor, here: Tensor, a: float = a, sigma: float = sigma) -> Tensor:
                """log q(there | here) up to a constant."""
                return -(there - here - a * score(here, sigma)).square().flatten(1).sum(1) / (4 * a)

            for _ in range(3):
                y = x + a * score(x, sigma) + math.sqrt(2 * a) * draw()
                ratio = LAW.energy(x, level) - LAW.energy(y, level) + log_q(x, y) - log_q(y, x)
                accepted = uniform(streams, dtype=torch.float64) < ratio.exp()
                rejected.append(~accepted)
                x = torch.where(accepted.view(-1, 1, 1, 1), y, x)
        return denoised(x, GRID.sigma_min)

    generators, streams = (image_generators("cpu", 0, range(5)) for _ in range(2))
    noise = normal_like(torch.empty(5, 1, 1, 2, dtype=torch.float64), generators)
    found = last(metropolis_annealed(LAW, noise, grid=GRID, steps=STEPS, steps_per_level=3, step_scale=scale, denoise=True,
                                     generators=generators))
    assert_close(found, paper(lambda: normal_like(noise, streams)), rtol=1e-9, atol=1e-9)
    assert 0.1 < torch.cat(rejected).double().mean() < 0.9
