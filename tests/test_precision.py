"""Mixed precision runs the network low and leaves the energy in float32; compiling changes nothing."""
from __future__ import annotations

import math

import pytest
import torch
from models import FITTING, SHAPE, SIGMA_DATA, UNETS, direct, energy, normal
from torch import Tensor, nn
from torch.testing import assert_close

from ebm.energy import Energy, pooled
from ebm.nets.cnn import CNN
from ebm.nets.unet import UNet
from ebm.objective import EDM, DenoisingScoreMatching
from ebm.precision import Precision

CPU = torch.device("cpu")
SIGMAS = torch.tensor([0.02, 0.1, 0.5, 3.0, 20.0])
# The network's share of the score, against float32: four units in the last place, for some twenty layers of rounding.
LOW = [("bf16", torch.bfloat16, 4 * 2**-8), ("fp16", torch.float16, 4 * 2**-11)]


def images() -> tuple[Tensor, Tensor]:
    """Clean images and noise, (5, C, H, W) each."""
    clean, noise = (normal(len(SIGMAS), *SHAPE, seed=seed, dtype=torch.float32) for seed in (1, 2))
    return SIGMA_DATA * clean, noise


def dtypes_of_convolutions(model: nn.Module) -> set[torch.dtype]:
    """A set that fills with the types of all later outputs of the model's convolutions."""
    seen: set[torch.dtype] = set()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    return seen


@pytest.mark.parametrize(("network", "head"), [*FITTING, *((name, "direct") for name in UNETS)])
@pytest.mark.parametrize(("name", "dtype", "tolerance"), LOW)
def test_training_runs_low_in_the_network_and_float32_around_it(
    network: str, head: str, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = (direct(network) if head == "direct" else energy(network, head)).float()
    clean, noise = images()
    x = clean + SIGMAS[:, None, None, None] * noise
    exact = model(x, SIGMAS).detach()
    seen = dtypes_of_convolutions(model)
    with Precision(name=name).autocast(CPU):
        loss = DenoisingScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA))(model, clean, SIGMAS, noise)
        score = model(x, SIGMAS).detach()
        assert model.features(x, SIGMAS).dtype == torch.float32  # so that heads add up in float32
    assert seen == {dtype}
    assert head == "direct" or model.energy(x, SIGMAS).dtype == torch.float32
    assert loss.dtype == score.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    gaussian = -x / (SIGMAS**2 + SIGMA_DATA**2)[:, None, None, None]  # holds most of a score, and no rounding of the network
    error = (score - exact).flatten(1).norm(dim=1) / (exact - gaussian).flatten(1).norm(dim=1)
    assert (error < tolerance).all(), error


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_energies_are_computed_in_full_precision_under_autocast(network: str, head: str) -> None:
    model, (x, _) = energy(network, head).float(), images()
    with Precision(name="bf16").autocast(CPU):  # a Metropolis test reads differences that bfloat16 rounds away
        low = model.energy(x, SIGMAS)
    assert_close(low, model.energy(x, SIGMAS), rtol=0, atol=0)


def test_fp32_is_untouched() -> None:
    model, (x, _) = energy("unet", "pooled").float(), images()
    seen = dtypes_of_convolutions(model)
    with Precision(name="fp32").autocast(CPU):
        score = model(x, SIGMAS)
    assert seen == {torch.float32}
    assert_close(score, model(x, SIGMAS), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["float32", "", "BF16"])
def test_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"precision: '{name}'.*fp32, bf16, fp16"):
        Precision(name=name)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_only_fp16_scales_its_loss(name: str) -> None:
    precision = Precision(name=name)
    assert precision.scales == (name == "fp16")
    assert (precision.scaler(CPU).get_scale() > 1) == (name == "fp16")


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("gradient", [0.25, math.nan, math.inf])
def test_update_from_a_gradient_that_is_not_finite_is_skipped(name: str, gradient: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), Precision(name=name).scaler(CPU)
    scaler.scale(gradient * weight[0]).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_close(weight.detach(), torch.tensor([0.75 if math.isfinite(gradient) else 1.0, 1.0, 1.0]))


TINY = {  # every kind of layer but U-Net's change of resolution, in as little to compile as can be
    "cnn": lambda: CNN(channels=2, width=4, levels=1, sigma_aware=True),
    "unet": lambda: UNet(channels=2, width=4, multipliers=[1], blocks=0, attention=[], patch=2),
}


@pytest.mark.parametrize("network", TINY)
def test_compiled_equals_eager_with_its_gradients(network: str) -> None:
    model, (x, noise) = Energy(TINY[network](), pooled, sigma_data=SIGMA_DATA), images()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    objective = DenoisingScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA))

    def run() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        loss = objective(model, x, SIGMAS, noise)
        loss.mean().backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]

    loss, gradients = run()
    # Tracing and differentiating the trace are what an energy's double gradient may break; the default back end's
    # code generation takes a minute of compiling on a busy core and is left out.
    model.compile(backend="aot_eager", fullgraph=True)
    compiled_loss, compiled_gradients = run()
    assert_close(compiled_loss, loss)
    for compiled, eager in zip(compiled_gradients, gradients, strict=True):
        assert_close(compiled, eager, rtol=1e-4, atol=1e-5 * float(eager.abs().max()))
