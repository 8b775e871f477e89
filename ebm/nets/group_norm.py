"""Group norm, with or without SiLU, and its first and second derivatives, each in one pass over memory where there is a kernel.

On a GPU: group_norm_gpu.py, which Triton compiles on first use and keeps in its cache. On a CPU: group_norm.cpp, which
tools/build_kernels.py builds once, when the package is set up; the library lies in the user's cache, so that other copies of
this code find it too, and its name identifies what it was built from and for. Without a kernel PyTorch's own operations do the
same work in some 45 passes.
"""
from __future__ import annotations

import functools
import hashlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from ebm.nets import group_norm_torch
from ebm.nets.derivatives import Wanted

SOURCE = Path(__file__).with_name("group_norm.cpp")
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-mprefer-vector-width=512",
         "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")  # sums in vectors; NaN stays NaN
TYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


def library() -> Path:
    """Path of the built library: in $EBM_KERNELS, by default in the user's cache."""
    ingredients = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), torch.__version__.encode(), platform.machine().encode()]
    name = hashlib.sha256(b"\0".join(ingredients)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebm" / "kernels"
    return Path(os.environ.get("EBM_KERNELS") or cache) / f"norm_silu-{name}.so"


def load() -> bool:
    """Loads the library; returns whether it did, with a warning where the library is there but can't be loaded."""
    if not (path := library()).is_file():
        return False
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warnings.warn(f"{path}: cannot be loaded ({error}); energies train without it, more slowly on a CPU", stacklevel=2)
        return False
    return True


LOADED = load()


@functools.cache  # so that it is tried, and a failure warned of, only once
def on_gpu(dtype: torch.dtype) -> Any:
    """The GPU's kernels, where Triton can compile and run them for this dtype; else None, with a warning."""
    try:
        from ebm.nets import group_norm_gpu as kernels

        x, ones = torch.zeros(1, 1, 1, 1, device="cuda", dtype=dtype), torch.ones(1, 1, device="cuda")
        _, moments = kernels.norm_silu(x, ones, ones, 1, 1.0, True)
        kernels.norm_silu_backward(x, x, ones, ones, moments, x, 1, True)
        kernels.norm_silu_second(x, x, ones, ones, moments, x, None, None, 1, True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton is missing, has no C compiler or doesn't know the GPU: each raises an error of its own
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"Triton does not work here ({why}); energies train without its kernels, more slowly", stacklevel=2)
        return None
    return kernels


def kernels_for(x: Tensor) -> Any:
    """The kernels for x (B, C, H, W): a namespace with norm_silu, norm_silu_backward and norm_silu_second, or None."""
    kind = x.device.type
    if torch.compiler.is_compiling() or x.dtype not in TYPES.get(kind, ()):
        return None
    return on_gpu(x.dtype) if kind == "cuda" else torch.ops.ebm if LOADED else None


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """silu(weight · x̂ + bias) of x (B, C, H, W) normalised over its groups of channels; weight and bias are (B, C)."""
    return skip_and_norm(x, weight, bias, groups=groups, eps=eps, silu=True)[1]


def norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """weight · x̂ + bias of x (B, C, H, W) normalised over its groups of channels; weight and bias are (C,)."""
    return skip_and_norm(x, weight, bias, groups=groups, eps=eps, silu=False)[1]


def skip_and_norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor]:
    """(x, `norm` or `norm_silu` of x): taken together, so that one kernel adds a skip connection's gradient to the norm's."""
    if kernels_for(x) is not None:
        weight, bias = (coefficient.float().expand(len(x), -1) for coefficient in (weight, bias))
        return Norm.apply(x, weight, bias, groups, eps, silu)  # type: ignore[no-any-return]
    if silu:
        return x, group_norm_torch.norm_silu(x, weight, bias, groups=groups, eps=eps)
    return x, F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)


class Norm(Function):
    """x itself, and u = weight · x̂ + bias or silu(u), with coefficients (B, C) in float32, whatever x's dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor]:
        y, moments = kernels_for(x).norm_silu(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.set_materialize_grads(False)
        ctx.settings = groups, silu
        return x, y

    @staticmethod
    def backward(ctx: Any, around: Tensor | None, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return around, None, None, None, None, None
        backward = NormBackward.apply if torch.is_grad_enabled() else kernels_for(g).norm_silu_backward
        dx, dw, db = backward(g, *ctx.saved_tensors, around, *ctx.settings)
        return dx, *((dw, db) if Wanted.coefficients else (None, None)), None, None, None


class NormBackward(Function):
    """Gradients (dx, dweight, dbias) of `Norm` at g (B, C, H, W), dx added to ``around``, the skip connection's gradient."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, around: Tensor | None, groups: int,
        silu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, x, weight, bias, moments)
        ctx.set_materialize_grads(False)
        ctx.settings = groups, silu
        gradients: tuple[Tensor, Tensor, Tensor] = kernels_for(x).norm_silu_backward(
            g, x, weight, bias, moments, around, groups, silu)
        return gradients

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> tuple[Tensor | None, ...]:
        second = NormSecond.apply(*ctx.saved_tensors, vx, vw, vb, *ctx.settings)
        return *second, None, vx if ctx.needs_input_grad[5] else None, None, None


class NormSecond(Function):
    """Gradients of `NormBackward`, (dg, dx, dweight, dbias)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *others: Any) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = kernels_for(g).norm_silu_second(g, *others)
        return gradients

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("group norm's third derivative is not written out")
