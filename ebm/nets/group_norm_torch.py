"""Group norm with SiLU in PyTorch's own operations, with its second derivative written out.

PyTorch derives the second derivative of group_norm operation by operation. A third derivative raises RuntimeError.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from ebm.nets.derivatives import Wanted

aten = torch.ops.aten


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """silu(weight · x̂ + bias) of x (B, C, H, W) normalised over its groups of channels; weight and bias are (B, C)."""
    if torch.compiler.is_compiling():
        normal = F.group_norm(x, groups, eps=eps).to(x.dtype)
        return F.silu(torch.addcmul(bias.to(x.dtype)[:, :, None, None], normal, weight.to(x.dtype)[:, :, None, None]))
    x, weight, bias = x.contiguous(), weight.to(x.dtype), bias.to(x.dtype)
    if not Wanted.second:
        return F.silu(F.group_norm(x.view(1, -1, *x.shape[2:]), len(x) * groups, weight.reshape(-1), bias.reshape(-1), eps)
                      .view_as(x))
    return NormSiLU.apply(x, weight, bias, groups, eps)  # type: ignore[no-any-return]


class Normal:
    """u = weight · x̂ + bias, where x̂ = (x − mean) · rstd over each image's groups of channels, (B, C, H, W).

    PyTorch's kernels take one weight per channel; seen as one image of B·C channels, they take one per image as well.
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> None:
        batch, channels, height, width = x.shape
        self.x, self.per_group, self.pixels = x.view(1, -1, height, width), channels // groups, height * width
        u, self.means, self.rstds = aten.native_group_norm(
            self.x, weight.reshape(-1), bias.reshape(-1), 1, batch * channels, self.pixels, batch * groups, eps)
        self.u: Tensor = u.view_as(x)
        self.mean: Tensor = self.means.view(batch, groups).repeat_interleave(self.per_group, 1)
        self.rstd: Tensor = self.rstds.view(batch, groups).repeat_interleave(self.per_group, 1)

    def backward(self, g: Tensor, weight: Tensor, *, inputs: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ⟨g, u⟩: in x (B, C, H, W), if wanted; in weight, the sums of g · x̂; in bias, of g; (B, C) both."""
        dx, dw, db = aten.native_group_norm_backward(
            g.contiguous().view_as(self.x), self.x, self.means, self.rstds, weight.reshape(-1), 1, weight.numel(),
            self.pixels, self.means.numel(), (inputs, True, True))
        return dx.view_as(g) if inputs else g, dw.view_as(weight), db.view_as(weight)

    def average(self, sums: Tensor) -> Tensor:
        """Means over a group at each of its channels, of the channels' sums over pixels: (B, C) -> (B, C)."""
        groups = sums.view(len(sums), -1, self.per_group).sum(2) / (self.per_group * self.pixels)
        return groups.repeat_interleave(self.per_group, 1)


class NormSiLU(Function):
    """silu(u), with u as in `Normal`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)  # u is computed again: saving it would take half as much memory on top
        ctx.groups, ctx.eps = groups, eps
        return F.silu(Normal(x, weight, bias, groups, eps).u, inplace=True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db = NormSiLUBackward.apply(g, *ctx.saved_tensors, ctx.groups, ctx.eps)
        return dx, *((dw, db) if Wanted.coefficients else (None, None)), None, None


class NormSiLUBackward(Function):
    """Gradients (dx, dweight, dbias) of `NormSiLU` at g (B, C, H, W)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        normal = Normal(x, weight, bias, groups, eps)
        dx, du_x, du_1 = normal.backward(aten.silu_backward(g, normal.u), weight)
        ctx.save_for_backward(g, x, weight, bias, du_x, du_1)
        ctx.set_materialize_grads(False)
        ctx.groups, ctx.eps = groups, eps
        return dx, du_x, du_1

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of ⟨g, silu'(u) t⟩, where t is how u moves as x, weight and bias move along vx, vw and vb.

        t = weight · rstd · (vx − mean(vx) − x̂ mean(vx x̂)) + vw · x̂ + vb. Sums over pixels end in _1, and in _x if
        weighted by x̂; all else is a combination of g, x and vx with coefficients by image and channel.
        """
        g, x, weight, bias, du_x, du_1 = ctx.saved_tensors
        normal = Normal(x, weight, bias, ctx.groups, ctx.eps)
        u, rstd, mean = normal.u, normal.rstd, normal.mean
        vx = torch.zeros_like(x) if vx is None else vx.contiguous()
        vw, vb = (torch.zeros_like(weight) if v is None else v for v in (vw, vb))
        _, vx_x, vx_1 = normal.backward(vx, weight, inputs=False)
        along, level = normal.average(vx_x), normal.average(vx_1)
        on_x = (vw - weight * rstd * along) * rstd
        t = (vx * wide(weight * rstd)).add_(wide(vb - weight * rstd * level - on_x * mean)).addcmul_(x, wide(on_x))
        dg, du = aten.silu_backward(t, u), aten.silu_backward(g, u)
        s = u.sigmoid()
        curved = aten.sigmoid_backward(g, s).mul_(torch.addcmul(u, u, s, value=-2).add_(2)).mul_(t)  # g silu''(u) t
        _, dw, db = normal.backward(curved, weight, inputs=False)
        # ⟨du, t⟩ depends on weight through ⟨du, rstd P(vx)⟩, on x̂ (normal_1 and normal_x: means of the gradient in x̂, that of
        # ⟨curved, u⟩ included) and on rstd.
        moved = rstd * ((du * vx).sum((2, 3)) - level * du_1 - along * du_x)
        on_du, on_vx = vw - rstd * along * weight, -rstd * normal.average(weight * du_x)
        normal_1, normal_x = (normal.average(weight * curved_sum + on_du * du_sum + on_vx * vx_sum)
                              for curved_sum, du_sum, vx_sum in ((db, du_1, vx_1), (dw, du_x, vx_x)))
        on_x = -rstd.square() * (normal_x + normal.average(weight * moved))
        dx = (x * wide(on_x)).add_(wide(-rstd * normal_1 - on_x * mean))  # addcmul is slow where it adds to (B, C, 1, 1)
        dx.addcmul_(curved, wide(rstd * weight)).addcmul_(du, wide(rstd * on_du)).addcmul_(vx, wide(rstd * on_vx))
        return dg, dx, dw + moved, db, None, None


def wide(coefficients: Tensor) -> Tensor:
    """(B, C) -> (B, C, 1, 1)."""
    return coefficients[:, :, None, None]
