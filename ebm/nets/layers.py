"""Layers that networks share. All are smooth and differentiable twice, since a score loss differentiates the gradient."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ebm.nets.convolution import convolution
from ebm.nets.group_norm import norm, norm_silu, skip_and_norm


class NoiseEmbedding(nn.Module):
    """c_noise (B,) -> (B, width): Fourier features at fixed frequencies, then two layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # c_noise = ln σ/4 spans about 2.7 for σ in [0.002, 80]: periods from 25 down to 0.2 tell its levels apart.
        self.register_buffer("frequencies", torch.logspace(math.log10(0.25), math.log10(32), 16), persistent=False)
        self.layers = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        embedding: Tensor = self.layers(torch.cat([angle.cos(), angle.sin()], dim=1))
        return embedding


class Modulation(nn.Module):
    """Scales and shifts the channels of h (B, C, H, W) by the noise embedding; starts as the identity."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def coefficients(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, (B, C) each: h -> h + scale · h + shift."""
        scale, shift = self.affine(embedding).chunk(2, dim=1)
        return scale, shift

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(h + shift, h, scale)


class Conv2d(nn.Conv2d):
    """Convolution with one stride and one padding for both sides, whose second derivative is written out."""

    def forward(self, h: Tensor) -> Tensor:
        return convolution(h, self.weight, self.bias, stride=self.stride[0], padding=int(self.padding[0]))


class GroupNorm(nn.GroupNorm):
    """Group normalisation with groups of ``per_group`` channels, in its input's precision where autocast allows it."""

    def __init__(self, channels: int, *, per_group: int = 16) -> None:
        groups = max(1, channels // per_group)
        if channels % groups:
            raise ValueError(f"width: {channels} channels don't divide into {groups} groups; take a multiple of {per_group}")
        super().__init__(groups, channels, eps=1e-5)

    def forward(self, h: Tensor) -> Tensor:
        return norm(h, self.weight, self.bias, groups=self.num_groups, eps=self.eps)

    def skip_and_norm(self, h: Tensor, *, silu: bool) -> tuple[Tensor, Tensor]:
        """(h, normalised h or its SiLU), (B, C, H, W) both: the inputs of a skip connection and of its block."""
        weight, bias = (p.expand(len(h), -1) if silu else p for p in (self.weight, self.bias))
        return skip_and_norm(h, weight, bias, groups=self.num_groups, eps=self.eps, silu=silu)

    def silu(self, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """SiLU of the normalised h (B, C, H, W), first scaled by 1 + scale and shifted by shift, (B, C) each."""
        weight, bias = (p.expand(len(h), -1) for p in (self.weight, self.bias))
        if scale is not None and shift is not None:
            weight, bias = torch.addcmul(weight, weight, scale), torch.addcmul(bias + shift, bias, scale)
        return norm_silu(h, weight, bias, groups=self.num_groups, eps=self.eps)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with its parameters set to zero, so that the branch it ends contributes nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
