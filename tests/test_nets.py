"""The networks' own layers against PyTorch's, and the shapes they promise."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from models import NETWORKS, SHAPE, normal
from torch.nn import functional as F
from torch.testing import assert_close

from ebm.nets import group_norm
from ebm.nets.attention import Attention
from ebm.nets.cnn import CNN
from ebm.nets.layers import GroupNorm, Modulation, NoiseEmbedding
from ebm.nets.unet import UNet


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_scaled_dot_product_attention(heads: int) -> None:
    layer, h = Attention(32, head_width=32 // heads).double(), normal(3, 32, 4, 2, seed=1)
    assert layer.heads == heads
    with torch.no_grad():
        layer.out.weight.copy_(normal(32, 32, 1, 1, seed=2))
        q, k, v = (
            layer.qkv.weight[part, :, 0, 0].matmul(layer.norm(h).flatten(2)).view(3, heads, 32 // heads, 8).transpose(2, 3)
            for part in (slice(0, 32), slice(32, 64), slice(64, 96))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(3, 32, 4, 2)
        assert_close(layer(h), h + layer.out(mixed))


@pytest.mark.parametrize("kernel", [True, False], ids=["with the kernel", "without"])
@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_changes_nothing_but_rounding(name: str, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel and not group_norm.LOADED:
        pytest.skip("the kernel is not built; python tools/build_kernels.py")
    monkeypatch.setattr(group_norm, "LOADED", kernel)
    seen = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = NETWORKS[name]().float().to(memory_format=layout)
        with torch.no_grad():
            for i, parameter in enumerate(network.parameters()):
                parameter.add_(0.1 * normal(*parameter.shape, seed=i).float())
        y = normal(3, *SHAPE, seed=1).float().requires_grad_()
        features = network(y, normal(3, seed=2).float())
        gradient, = torch.autograd.grad(features.square().sum(), y, create_graph=True)
        seen.append([features, gradient, *torch.autograd.grad(gradient.square().sum(), tuple(network.parameters()),
                                                              allow_unused=True, materialize_grads=True)])
    for one, other in zip(*seen, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


def test_attention_refuses_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="width: 96 "):
        Attention(96)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 1), (64, 4)])
def test_group_norm_is_pytorchs_with_sixteen_channels_a_group(channels: int, groups: int) -> None:
    layer, h = GroupNorm(channels).double(), normal(2, channels, 3, 3, seed=1)
    with torch.no_grad():
        layer.weight.copy_(normal(channels, seed=2))
        layer.bias.copy_(normal(channels, seed=3))
    assert_close(layer(h), F.group_norm(h, groups, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_group_norm_leaves_the_precision_of_its_input(dtype: torch.dtype) -> None:
    assert GroupNorm(16)(torch.ones(1, 16, 2, 2, dtype=dtype)).dtype == dtype


def test_group_norm_refuses_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"width: 50 .*multiple of 16"):
        GroupNorm(50)


@pytest.mark.parametrize(("bad", "said"), [
    ({"width": 0}, "width: 0 is not accepted; it must be a whole number of at least 1"),
    ({"blocks": -1}, "blocks: -1 is not accepted"), ({"patch": 0}, "patch: 0 is not accepted"),
    ({"multipliers": []}, r"multipliers: \[\] are not accepted"), ({"multipliers": [1, 0]}, r"multipliers: \[1, 0\]"),
    ({"attention": [2]}, r"attention: \[2\] are not accepted; levels go from 0 to 1"),
])
def test_a_unet_refuses_sizes_that_make_no_network(bad: dict[str, Any], said: str) -> None:
    sizes = {"channels": 3, "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [1], "patch": 2}
    with pytest.raises(ValueError, match=f"^{said}"):
        UNet(**{**sizes, **bad})


def test_modulation_scales_and_shifts_from_the_identity() -> None:
    layer, h, embedding = Modulation(5, 4).double(), normal(2, 4, 3, 3, seed=1), normal(2, 5, seed=2)
    assert_close(layer(h, embedding), h, rtol=0, atol=0)
    with torch.no_grad():
        layer.affine.weight.copy_(normal(8, 5, seed=3))
    scale, shift = (embedding @ layer.affine.weight.T).unflatten(1, (2, 4, 1, 1)).unbind(1)
    assert_close(layer(h, embedding), (1 + scale) * h + shift)


def test_noise_embedding_tells_near_and_far_levels_apart() -> None:
    layer = NoiseEmbedding(64).double()
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.zeros_(parameter)
    c_noise = torch.logspace(-2.7, 1.9, 47, dtype=torch.float64).log() / 4  # σ from 0.002 to 80, a tenth of a decade apart
    angle = c_noise[:, None] * layer.frequencies
    features = torch.cat([angle.cos(), angle.sin()], 1)
    assert torch.pdist(features).min() > 0.1
    assert layer(c_noise).shape == (47, 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_the_promised_shape(name: str) -> None:
    shape = NETWORKS[name]().double()(normal(3, *SHAPE, seed=1), normal(3, seed=2)).shape
    assert shape == ((3, *SHAPE) if name.startswith("unet") else (3, 1, 2, 2))


@pytest.mark.parametrize(
    ("multipliers", "blocks", "attention", "patch"), [([1], 1, [], 1), ([1, 2, 2], 2, [1], 1), ([1, 2], 1, [0, 1], 2)]
)
def test_unet_has_its_skips_and_attention(multipliers: list[int], blocks: int, attention: list[int], patch: int) -> None:
    net = UNet(channels=3, width=16, multipliers=multipliers, blocks=blocks, attention=attention, patch=patch)
    assert net(torch.zeros(2, 3, 16, 8), torch.zeros(2)).shape == (2, 3, 16, 8)
    # every level has ``blocks`` blocks on the way down and one more on the way up; the middle has one
    assert sum(isinstance(m, Attention) for m in net.modules()) == 1 + len(attention) * (2 * blocks + 1)


def test_cnn_width_doubles_at_each_level() -> None:
    net = CNN(channels=3, width=8, levels=3, sigma_aware=False)
    widths = [layer.weight.shape[:2] for layer in [net.stem, *net.down, net.out]]
    assert widths == [(8, 3), (16, 8), (32, 16), (64, 32), (1, 64)]


def test_a_norm_with_coefficients_is_the_norm_then_the_modulation() -> None:
    layer, h = GroupNorm(32).double(), normal(3, 32, 4, 4, seed=1)
    with torch.no_grad():
        layer.weight.copy_(normal(32, seed=2))
        layer.bias.copy_(normal(32, seed=3))
    scale, shift = normal(3, 32, seed=4), normal(3, 32, seed=5)
    wide = (1 + scale)[:, :, None, None], shift[:, :, None, None]
    assert_close(layer.silu(h, scale, shift), F.silu(F.group_norm(h, 2, layer.weight, layer.bias) * wide[0] + wide[1]))
    assert_close(layer.silu(h), F.silu(F.group_norm(h, 2, layer.weight, layer.bias)))


def test_the_frequencies_of_noise_are_those_that_checkpoints_were_trained_with() -> None:
    """They are in no checkpoint, so that others would change every network that was trained before."""
    c_noise = torch.tensor([-1.5, 0.2], dtype=torch.float64)
    angle = c_noise[:, None] * 0.25 * 128 ** (torch.arange(16, dtype=torch.float64) / 15)
    layer, seen = NoiseEmbedding(8).double(), []
    layer.layers.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    layer(c_noise)
    assert_close(seen[0], torch.cat([angle.cos(), angle.sin()], 1), rtol=0, atol=1e-5)
