"""Self-attention over pixels, with its second derivative written out: fused kernels have none, and PyTorch would derive it
operation by operation. A third derivative raises RuntimeError."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ebm.nets.layers import Conv2d, GroupNorm, zero
from ebm.nets.memory_format import memory_format_of

aten = torch.ops.aten


class Attention(nn.Module):
    """Self-attention over pixels with a residual, h (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, head_width: int = 64) -> None:
        super().__init__()
        if channels % min(head_width, channels):
            raise ValueError(f"width: {channels} channels don't divide into attention heads of {head_width}")
        self.heads = max(1, channels // head_width)
        self.norm = GroupNorm(channels)
        self.qkv = Conv2d(channels, 3 * channels, 1, bias=False)  # a bias on keys has no gradient through softmax
        self.out = zero(Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        h, normal = self.norm.skip_and_norm(h, silu=False)
        qkv = self.qkv(normal).view(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = (part.flatten(0, 1) for part in qkv.unbind(1))  # each (B · heads, channels/heads, H · W)
        q = q / math.sqrt(q.shape[1])  # before the product, which might overflow in float16
        mixed = attend(q, k, v).view(h.shape).contiguous(memory_format=memory_format_of(h))
        out: Tensor = h + self.out(mixed)
        return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """v softmax(qᵀk)ᵀ, of queries, keys and values (B, C, N) each: at every query, the mean of v under its weights."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return torch.bmm(v, weights(q, k).mT)
    return Attend.apply(q, k, v)  # type: ignore[no-any-return]


def weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(qᵀk) over the keys, (B, N, N), in q's dtype: its kernels add up in float32 by themselves, so copying to float32
    and back, as autocast does, would gain nothing."""
    p: Tensor = aten._softmax(torch.bmm(q.mT, k), -1, False)
    return p


class Attend(Function):
    """out = v Pᵀ with P = softmax(qᵀk)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = weights(q, k)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(v, p.mT)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        backward = AttendBackward.apply if torch.is_grad_enabled() else gradients
        return backward(g.contiguous(), *ctx.saved_tensors)


class AttendBackward(Function):
    """Gradients (dq, dk, dv) of `Attend` at g (B, C, N), themselves differentiable; P counts as a function of q and k."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, q, k, v, p)
        return gradients(g, q, k, v, p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vq: Tensor, vk: Tensor, vv: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ⟨vq, dq⟩ + ⟨vk, dk⟩ + ⟨vv, dv⟩ = ⟨t, s⟩ + ⟨vv, g P⟩, with s the gradient in qᵀk.

        s = P ∘ (a − ⟨a⟩), where ⟨·⟩ is a row's mean under P, and a = gᵀv the gradient in P.
        """
        g, q, k, v, p = ctx.saved_tensors
        a, t = torch.bmm(g.mT, v), torch.baddbmm(torch.bmm(vq.mT, k), q.mT, vk)
        on_a, s = through(t, p), through(a, p)
        # Both s and g P depend on P. Constants along a row don't matter, so t and a may be centred.
        wide = torch.float32 if p.dtype == torch.float16 else p.dtype  # t carries the loss scale, and t · a that of a as well
        a, t, weight = a.to(wide), t.to(wide), p.to(wide)
        on_p = torch.bmm(g.mT, vv).to(wide).addcmul_(centred(t, weight), centred(a, weight))
        on_qk = through(on_p, weight).to(p.dtype)
        dg = torch.baddbmm(torch.bmm(v, on_a.mT), vv, p.mT)
        dq = torch.baddbmm(torch.bmm(k, on_qk.mT), vk, s.mT)
        dk = torch.baddbmm(torch.bmm(q, on_qk), vq, s)
        return dg, dq, dk, torch.bmm(g, on_a), None


def gradients(g: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) at g, without a graph."""
    s = through(torch.bmm(g.mT, v), p)
    return torch.bmm(k, s.mT), torch.bmm(q, s), torch.bmm(g, p)


def through(on_p: Tensor, p: Tensor) -> Tensor:
    """A gradient in P carried back through the softmax: P ∘ (on_p − ⟨on_p⟩)."""
    s: Tensor = aten._softmax_backward_data(on_p, p, -1, p.dtype)
    return s


def centred(values: Tensor, p: Tensor) -> Tensor:
    """values − ⟨values⟩, (B, N, N)."""
    return values - (values * p).sum(-1, keepdim=True)
