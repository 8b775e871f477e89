"""Every network at a size for tests, with the heads that fit it, and with no parameter left at zero."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebm.energy import DirectScore, Energy, inner_product, pooled, squared_residual
from ebm.nets.cnn import CNN
from ebm.nets.unet import UNet

SIGMA_DATA = 0.6
SHAPE = (2, 8, 8)  # C, H, W

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: CNN(channels=2, width=16, levels=2, sigma_aware=False),
    "cnn_sigma": lambda: CNN(channels=2, width=16, levels=2, sigma_aware=True),
    "unet": lambda: UNet(channels=2, width=16, multipliers=[1, 2], blocks=1, attention=[1], patch=1),
    "unet_patch": lambda: UNet(channels=2, width=32, multipliers=[1, 1], blocks=1, attention=[0], patch=2),
}
UNETS = ["unet", "unet_patch"]
HEADS = {"pooled": pooled, "inner_product": inner_product, "squared_residual": squared_residual}
FITTING = [(network, head) for network in NETWORKS for head in HEADS if head == "pooled" or network in UNETS]


def energy(network: str, head: str, *, seed: int | None = 0) -> Energy:
    """The energy of a network at random parameters (as constructed with ``seed=None``), in float64."""
    return _filled(Energy(NETWORKS[network](), HEADS[head], sigma_data=SIGMA_DATA), seed)


def direct(network: str, *, seed: int | None = 0) -> DirectScore:
    """The direct score of a network, likewise."""
    return _filled(DirectScore(NETWORKS[network](), sigma_data=SIGMA_DATA), seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _filled(model: nn.Module, seed: int | None) -> nn.Module:
    model = model.double()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model
