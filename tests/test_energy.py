"""The score is minus the energy's gradient and EDM's formula, for every network and head; every parameter learns."""
from __future__ import annotations

import math

import pytest
import torch
from models import FITTING, NETWORKS, SHAPE, SIGMA_DATA, UNETS, direct, energy, normal
from torch import Tensor, nn
from torch.testing import assert_close

from ebm.energy import DirectScore, Energy, Preconditioned, check_shapes, inner_product, pooled, squared_residual
from ebm.objective import EDM, DenoisingScoreMatching

SIGMAS = torch.tensor([0.02, 0.1, 0.5, 3.0, 20.0], dtype=torch.float64)
EVERY_MODEL = [*FITTING, *((name, "direct") for name in UNETS)]

# Each head's φ as the documentation states it, one image at a time.
PHI = {
    "pooled": lambda y, f: f.sum(),
    "inner_product": lambda y, f: torch.dot(y.flatten(), f.flatten()) / 2,
    "squared_residual": lambda y, f: y.norm() ** 2 / 2 - (y - f).norm() ** 2 / 2,
}


def build(network: str, head: str, *, seed: int | None = 0) -> Preconditioned:
    return direct(network, seed=seed) if head == "direct" else energy(network, head, seed=seed)


def noisy(sigma: Tensor, *, seed: int) -> Tensor:
    """Images as training sees them, (B, C, H, W) for sigma (B,)."""
    clean = SIGMA_DATA * normal(len(sigma), *SHAPE, seed=seed)
    return clean + sigma[:, None, None, None] * normal(len(sigma), *SHAPE, seed=seed + 1)


def edm_score(x: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """(D − x)/σ² with D = c_skip x + c_out F, for F = ``target``: Karras et al. 2022, eq. 3 and 7 and table 1."""
    scores = []
    for image, level, f in zip(x, sigma.tolist(), target, strict=True):
        c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
        c_out = level * SIGMA_DATA / math.sqrt(SIGMA_DATA**2 + level**2)
        scores.append((c_skip * image + c_out * f - image) / level**2)
    return torch.stack(scores)


def network_input(x: Tensor, sigma: Tensor) -> Tensor:
    """c_in x, Karras et al. 2022, table 1."""
    return torch.stack([image / math.sqrt(level**2 + SIGMA_DATA**2) for image, level in zip(x, sigma.tolist(), strict=True)])


def loss(model: Preconditioned, sigma: Tensor, *, seed: int) -> Tensor:
    """Denoising score matching in EDM's weighting on N(0, σ_data²), (B,)."""
    x, noise = (normal(len(sigma), *SHAPE, seed=s).to(sigma.dtype) for s in (seed, seed + 1))
    return DenoisingScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA))(model, SIGMA_DATA * x, sigma, noise)


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_score_is_minus_the_finite_difference_of_the_energy(network: str, head: str) -> None:
    model, x = energy(network, head), noisy(SIGMAS, seed=1)
    with torch.no_grad():
        score = model.score(x, SIGMAS)
        for seed in (3, 4, 5):
            v = normal(*x.shape, seed=seed) / math.sqrt(x[0].numel())
            h = 1e-5 * (SIGMAS**2 + SIGMA_DATA**2).sqrt()[:, None, None, None]  # the scale on which E varies
            difference = (model.energy(x + h * v, SIGMAS) - model.energy(x - h * v, SIGMAS)) / (2 * h.flatten())
            along = (score * v).flatten(1).sum(1)
            # the truncation is h² relative; the rounding 1e-16 E / h against a slope of about E
            assert_close(along, -difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_energy_score_is_edm_with_the_gradient_of_phi(network: str, head: str) -> None:
    model, x = energy(network, head), noisy(SIGMAS, seed=1)
    y = network_input(x, SIGMAS).requires_grad_()
    f = model.network(y, SIGMAS.log() / 4)
    phi = torch.stack([PHI[head](y[i], f[i]) for i in range(len(y))])
    (gradient,) = torch.autograd.grad(phi.sum(), y)
    assert gradient.abs().mean() > 0.01
    assert_close(model.score(x, SIGMAS), edm_score(x, SIGMAS, gradient))
    gaussian = torch.stack([(x[i] ** 2).sum() / (2 * (SIGMAS[i] ** 2 + SIGMA_DATA**2)) for i in range(len(x))])
    assert_close(model.energy(x, SIGMAS), gaussian - SIGMA_DATA / SIGMAS * phi)


@pytest.mark.parametrize("network", UNETS)
def test_direct_score_is_edm_with_the_network_and_has_no_energy(network: str) -> None:
    model, x = direct(network), noisy(SIGMAS, seed=1)
    f = model.network(network_input(x, SIGMAS), SIGMAS.log() / 4)
    assert f.abs().mean() > 0.01
    assert_close(model.score(x, SIGMAS), edm_score(x, SIGMAS, f))
    assert not hasattr(model, "energy")


@pytest.mark.parametrize(("network", "head"), EVERY_MODEL)
def test_every_parameter_gets_a_gradient(network: str, head: str) -> None:
    model = build(network, head)
    loss(model, SIGMAS, seed=1).mean().backward()
    sizes = {name: float(p.grad.norm()) if p.grad is not None else 0.0 for name, p in model.named_parameters()}
    dead = [name for name, size in sizes.items() if not size > 1e-7 * max(sizes.values())]  # rounding is 1e-16
    assert not dead


@pytest.mark.parametrize(("network", "head"), EVERY_MODEL)
def test_forward_is_the_score_of_each_image_alone(network: str, head: str) -> None:
    model, x = build(network, head), noisy(SIGMAS, seed=1)
    together = model(x, SIGMAS)
    alone = torch.cat([model.score(x[i : i + 1], SIGMAS[i : i + 1]) for i in range(len(x))])
    assert_close(together, alone)


@pytest.mark.parametrize(("network", "head"), [model for model in EVERY_MODEL if model[0] in UNETS])
def test_untrained_unet_is_the_best_gaussian_and_can_leave_it(network: str, head: str) -> None:
    model, x = build(network, head, seed=None), noisy(SIGMAS, seed=1)
    assert_close(model.score(x, SIGMAS), -x / (SIGMAS**2 + SIGMA_DATA**2)[:, None, None, None])
    losses = loss(model, SIGMAS.repeat(20), seed=1)
    # its residual is standard normal at every σ, so that the loss is 1; five standard errors
    per_level = losses.view(20, 5).mean(0)
    assert_close(per_level, torch.ones_like(per_level), rtol=0, atol=5 * math.sqrt(2 / (20 * math.prod(SHAPE))))
    losses.mean().backward()
    assert model.network.out.weight.grad.norm() > 1e-3


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_only_the_plain_cnn_ignores_sigma(network: str, head: str) -> None:
    model, y = energy(network, head), normal(2, *SHAPE, seed=1)
    low, high = (model.potential(y, torch.full((2,), level, dtype=torch.float64)) for level in (0.1, 1.0))
    if network == "cnn":
        assert_close(low, high, rtol=0, atol=0)
    else:
        assert (low - high).abs().mean() > 1e-3


@pytest.mark.parametrize(("network", "head"), FITTING)
def test_score_without_grad_equals_score_with_it(network: str, head: str) -> None:
    model, x = energy(network, head), noisy(SIGMAS, seed=1)
    with torch.no_grad():
        without = model.score(x, SIGMAS)
    score = model.score(x, SIGMAS)
    assert not without.requires_grad
    assert score.requires_grad
    assert_close(without, score.detach())  # not to the bit: PyTorch differentiates SiLU in two ways, with a graph and without


METHODS = [("inner_product", name) for name in ("energy", "score", "normalised", "score_and_slope", "forward")] + [
    ("direct", "score"), ("direct", "forward")]


@pytest.mark.parametrize(("head", "method"), METHODS)
def test_one_level_may_be_given_for_all_images(head: str, method: str) -> None:
    call, x = getattr(build("unet", head), method), normal(3, *SHAPE, seed=1)
    expected = call(x, torch.full((3,), 0.5, dtype=torch.float64))
    for sigma in (0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)):
        assert_close(call(x, sigma), expected, rtol=0, atol=0)
    assert_close(call(x[:1], 1), call(x[:1], 1.0), rtol=0, atol=0)


@pytest.mark.parametrize(("head", "method"), METHODS)
def test_what_is_no_level_and_no_image_is_named(head: str, method: str) -> None:
    call, x = getattr(build("unet", head), method), normal(3, *SHAPE, seed=1)
    levels = torch.ones(3, dtype=torch.float64)
    for sigma in (0.0, -1, math.nan):
        with pytest.raises(ValueError, match=f"^sigma: {sigma} is not accepted; it must be a positive number"):
            call(x, sigma)
    for shaped in (levels.view(3, 1, 1, 1), levels[:2], levels[:1], levels.long()):
        with pytest.raises(ValueError, match=r"^sigma: torch\..*\(\d.*\) is not accepted; .* \(3,\), one for each image$"):
            call(x, shaped)
    for images in (x.to(torch.uint8), x[0]):
        with pytest.raises(ValueError, match=r"^x: torch\..*\(.*\) is not accepted; images are floating point \(B, C, H, W\)"):
            call(images, 0.5)


@pytest.mark.parametrize("head", ["inner_product", "direct"])
def test_no_value_in_a_tensor_is_read(head: str) -> None:
    model, x = build("unet", head).float().to("meta"), torch.zeros(2, *SHAPE, device="meta")  # which would raise
    for sigma in (0.5, torch.ones(2, device="meta"), torch.ones((), device="meta"), torch.tensor(0.5)):
        assert model.score(x, sigma).shape == x.shape


@pytest.mark.parametrize("head", [inner_product, squared_residual])
def test_check_refuses_a_cnn_with_a_head_that_needs_images(head: object) -> None:
    with pytest.raises(ValueError, match=r"model: .*\(2, 8, 8\) into \(1, 2, 2\).*choose head=pooled"):
        check_shapes(Energy(NETWORKS["cnn"](), head, sigma_data=SIGMA_DATA), SHAPE)


@pytest.mark.parametrize(("network", "head"), [("cnn_sigma", "pooled"), ("unet", "inner_product"), ("unet", "direct")])
def test_compiled_it_trains_the_same(network: str, head: str) -> None:
    """As `compile=true` does it, but for the compiler's last stage, which writes C++ or Triton and takes minutes."""
    objective, x = DenoisingScoreMatching(weighting=EDM(sigma_data=SIGMA_DATA)), SIGMA_DATA * normal(5, *SHAPE, seed=1)
    seen = []
    for compiled in (False, True):
        model = build(network, head)
        if compiled:
            model.compile(backend="aot_eager")
        losses = objective(model, x, SIGMAS, normal(5, *SHAPE, seed=2))
        losses.mean().backward()
        seen.append([losses.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, true in zip(*seen, strict=True):
        assert_close(ours, true)


def test_check_refuses_a_cnn_as_a_direct_score() -> None:
    with pytest.raises(ValueError, match="U-Net"):
        check_shapes(DirectScore(NETWORKS["cnn"](), sigma_data=SIGMA_DATA), SHAPE)


@pytest.mark.parametrize(("network", "head"), EVERY_MODEL)
def test_check_accepts_what_fits_and_changes_nothing(network: str, head: str) -> None:
    model = build(network, head).float()
    before = {name: p.clone() for name, p in model.named_parameters()}
    check_shapes(model, SHAPE)
    assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("network", "shape"), [("unet", (2, 8, 7)), ("unet", (2, 9, 8)), ("unet_patch", (2, 6, 8))])
def test_unet_refuses_sides_that_do_not_divide(network: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"image size: .*divide by {4 if network == 'unet_patch' else 2}"):
        check_shapes(energy(network, "pooled").float(), shape)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan, math.inf])
def test_bad_sigma_data_is_named(sigma_data: float) -> None:
    with pytest.raises(ValueError, match="sigma_data"):
        Energy(nn.Identity(), pooled, sigma_data=sigma_data)
