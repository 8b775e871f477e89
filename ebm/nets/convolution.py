"""Convolution with its second derivative written out: score losses differentiate gradients.

In the second derivative PyTorch computes a weight's gradient as another convolution, whose kernel is as large as the image.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from ebm.nets.derivatives import Wanted
from ebm.nets.memory_format import memory_format_of

aten = torch.ops.aten
Mask = tuple[bool, bool, bool]


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int) -> Tensor:
    """2-D convolution of x (B, C, H, W) with weight (C', C, k, k) and bias (C',), as torch.nn.functional.conv2d."""
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias, stride, padding)
    if not torch.is_grad_enabled():
        return value(x, weight, bias, stride, padding)
    x, weight, bias = lowered(x, weight, bias)
    if not Wanted.second and not worthwhile(x, weight, stride, padding):
        return value(x, weight, bias, stride, padding)
    return Convolution.apply(x, weight, bias, stride, padding)  # type: ignore[no-any-return]


def lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in autocast's precision, where it is on: a Function saves its inputs as they are."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # asking about meta tensors would raise: they have no autocast
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class Convolution(Function):
    """y = x * weight + bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.stride, ctx.padding = bias is not None, stride, padding
        return value(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed, parameters = ctx.needs_input_grad, Wanted.parameters
        mask = (needed[0], needed[1] and parameters, ctx.bias and needed[2] and parameters)
        # Where g is a slice, from torch.cat, it is copied once here, not again in each gradient of this gradient.
        g = g.contiguous(memory_format=memory_format_of(x, weight))
        return *convolution_gradients(g, x, weight, ctx.stride, ctx.padding, mask), None, None


class ConvolutionBackward(Function):
    """Gradients (dx, dweight, dbias) of a convolution at g (B, C', H', W'), where the mask asks for them."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: Mask
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.stride, ctx.padding = stride, padding
        return gradients(g, x, weight, stride, padding, mask)

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        dg = dx = dw = None
        if ctx.needs_input_grad[0]:
            dg = torch.zeros_like(g) if vx is None else convolution(vx, weight, None, stride=ctx.stride, padding=ctx.padding)
            dg = dg if vw is None else dg + convolution(x, vw, None, stride=ctx.stride, padding=ctx.padding)
            dg = dg if vb is None else dg + vb[:, None, None]
        if vw is not None and ctx.needs_input_grad[1]:
            dx = convolution_gradients(g, x, vw, ctx.stride, ctx.padding, (True, False, False))[0]
        if vx is not None and ctx.needs_input_grad[2]:
            dw = convolution_gradients(g, vx, weight, ctx.stride, ctx.padding, (False, True, False))[1]
        return dg, dx, dw, None, None, None


def convolution_gradients(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: Mask
) -> tuple[Tensor | None, ...]:
    """Gradients of a convolution, which are differentiable in turn where gradients are enabled."""
    backward = ConvolutionBackward.apply if torch.is_grad_enabled() else gradients  # a Function takes time even without a graph
    return backward(g, x, weight, stride, padding, mask)


def gradients(g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: Mask) -> tuple[Tensor | None, ...]:
    """A convolution's gradients, without a graph."""
    if mask[0] and turned_round(x, weight, stride, padding):
        turned = weight.transpose(0, 1) if weight.shape[2] == 1 else weight.flip(2, 3).transpose(0, 1)
        dx = value(g, turned, None, stride, padding)
        return dx, *gradients(g, x, weight, stride, padding, (False, *mask[1:]))[1:]
    if not any(mask):
        return None, None, None
    result: tuple[Tensor | None, ...] = aten.convolution_backward(
        g, x, weight, [weight.shape[0]], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask)
    return tuple(gradient if wanted else None for gradient, wanted in zip(result, mask, strict=True))


def value(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """The convolution itself; where a graph is built, its gradients are PyTorch's own."""
    if not pointwise(x, weight, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding)
    columns, matrix = x.flatten(2), weight.flatten(1).contiguous().expand(len(x), -1, -1)
    y = torch.bmm(matrix, columns) if bias is None else torch.baddbmm(bias[:, None], matrix, columns)
    return y.view(len(x), -1, *x.shape[2:])


def pointwise(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the convolution is computed as one matrix product per image: oneDNN's kernel takes up to five times as long.

    But in half precision PyTorch copies the matrix for every image, so it must not be larger than the image itself.
    """
    if x.device.type != "cpu" or weight.shape[2:] != (1, 1) or stride != 1 or padding or not x.is_contiguous():
        return False
    after, before = weight.shape[:2]
    return x.element_size() > 2 or after * before <= (after + before) * x.shape[2] * x.shape[3]


def worthwhile(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the gradients written here are faster than PyTorch's own of `value` by more than a Python Function costs."""
    flipped = turned_round(x, weight, stride, padding)
    return flipped and not (x.element_size() > 2 and pointwise(x, weight, stride, padding))


def turned_round(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the gradient in x is computed as a convolution with the kernel turned round, which is the same sum.

    oneDNN takes 13 to 20 % less time for it, in float32 from 32 pixels a side and 32 channels on; below that it saves nothing.
    """
    large = x.dtype == torch.float32 and x.shape[3] >= 32 and min(weight.shape[:2]) >= 32
    same = stride == 1 and weight.shape[2] == 2 * padding + 1
    return pointwise(x, weight, stride, padding) or (x.device.type == "cpu" and same and large)
