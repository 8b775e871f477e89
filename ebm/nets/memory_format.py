"""How images lie in memory, channels first or last, and a concatenation whose derivatives keep that layout."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def memory_format_of(*tensors: Tensor) -> torch.memory_format:
    """Channels last where one of the tensors (four axes each) is, as PyTorch chooses for a convolution of them."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in tensors)
    return torch.channels_last if last else torch.contiguous_format


def concatenate(a: Tensor, b: Tensor) -> Tensor:
    """The channels of a and b together, (B, C, H, W) and (B, C', H, W) -> (B, C + C', H, W)."""
    return torch.cat([a, b], dim=1) if torch.compiler.is_compiling() else Concatenate.apply(a, b)


class Concatenate(Function):
    """torch.cat, for whose second derivative PyTorch would add up parts padded with zeros, in a layout of its own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.channels = a.shape[1], b.shape[1]
        return torch.cat([a, b], dim=1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        # Copied once here, not again in each gradient computed from them.
        return tuple(part.contiguous(memory_format=memory_format_of(g)) for part in g.split(ctx.channels, dim=1))
