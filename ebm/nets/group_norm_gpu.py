"""Group norm, with or without SiLU, and its first and second derivatives on a GPU, with the arguments of group_norm.cpp.

Images may be contiguous or channels last, and the results lie in memory as they do. The kernels are in group_norm_triton.py.
"""
from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ebm.nets.group_norm_triton import backward, forward, second
from ebm.nets.memory_format import memory_format_of

LINE = 64  # channels that fill a cache line in half precision
# How many numbers a program works on at once, and each of its threads: the fastest on an H200 (docs/bench.md).
SIZES = {torch.channels_last: (1024, 4), torch.contiguous_format: (2048, 8)}
# Fused multiply-add, as in the measurements; Triton 3.9 warns where it is left to the default, which is going to change.
OPTIONS = {"enable_fp_fusion": True}


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor]:
    """u = weight · x̂ + bias of x (B, C, H, W) or silu(u), and each group's mean and 1/std; weight and bias are (B, C)."""
    x = x.contiguous(memory_format=memory_format_of(x))
    y, moments = torch.empty_like(x), x.new_empty(len(x) * groups, 2, dtype=torch.float32)
    launch(forward, x, groups, silu, x, *coefficients(weight, bias), y, moments, eps)
    return y, moments


def norm_silu_backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, around: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ⟨g, `norm_silu`⟩ in x (added to ``around``), weight and bias."""
    x, g, others = alike(x, g, around)
    dx, dw, db = torch.empty_like(x), *sums(x)
    launch(backward, x, groups, silu, g, x, *coefficients(weight, bias), moments, others, dx, dw, db)
    return dx, dw, db


def norm_silu_second(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, vx: Tensor | None, vw: Tensor | None,
    vb: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in g, x, weight and bias of the products of `norm_silu_backward`'s results with vx, vw and vb."""
    x, g, v = alike(x, g, torch.zeros_like(x) if vx is None else vx)
    dg, dx, dw, db = torch.empty_like(x), torch.empty_like(x), *sums(x)
    vw, vb = (None if v is None else v.contiguous() for v in (vw, vb))
    launch(second, x, groups, silu, g, x, v, *coefficients(weight, bias), moments, vw, vb, dg, dx, dw, db)
    return dg, dx, dw, db


def alike(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """x and others of its shape, all in x's memory format."""
    return tuple(None if tensor is None else tensor.contiguous(memory_format=memory_format_of(x)) for tensor in (x, *others))


def coefficients(weight: Tensor, bias: Tensor) -> tuple[Tensor, int, Tensor, int]:
    """Weight and bias, (B, C) each, with their strides from image to image: 0 where all images share them."""
    weight, bias = (tensor if tensor.stride(1) == 1 else tensor.contiguous() for tensor in (weight, bias))
    return weight, weight.stride(0), bias, bias.stride(0)


def sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the gradients in weight and bias, (B, C) each."""
    return x.new_empty(x.shape[:2], dtype=torch.float32), x.new_empty(x.shape[:2], dtype=torch.float32)


def launch(kernel: Any, x: Tensor, groups: int, silu: bool, *arguments: Any) -> None:
    """Runs the kernel on every group of x."""
    batch, channels, height, width = x.shape
    per_group, pixels, last = channels // groups, height * width, memory_format_of(x) == torch.channels_last
    rows, at_once = triton.next_power_of_2(per_group), 1
    while last and rows == per_group * at_once and rows < LINE and groups % (2 * at_once) == 0:
        rows, at_once = 2 * rows, 2 * at_once
    numbers, each = SIZES[memory_format_of(x)]
    block = min(triton.next_power_of_2(pixels), max(1, numbers // rows))
    if batch:
        with torch.cuda.device_of(x):
            kernel[(batch * groups // at_once,)](
                *arguments, channels, P=pixels, PER_GROUP=per_group, GROUPS=at_once, LAST=last, SILU=silu, ROWS=rows,
                BLOCK=block, num_warps=max(1, min(32, rows * block // (32 * each))), **OPTIONS)
