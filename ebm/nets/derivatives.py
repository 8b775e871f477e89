"""Gradients of a network in its inputs, which a score loss differentiates in turn, and which derivatives that requires."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Wanted:
    """Which derivatives are wanted; globals, since on a GPU another thread runs the backward pass.

    ``parameters``: gradients in a convolution's parameters in this backward pass, since a Python Function can't tell.
    ``coefficients``: gradients in the weight and bias of `norm_silu`, which may depend on the noise level.
    ``second``: second derivatives; where they aren't needed, PyTorch's own kernels take less time than what is written out
    here, but more memory.
    """

    parameters = True
    coefficients = True
    second = True

    @classmethod
    @contextmanager
    def only_inputs(cls, *, coefficients: bool, second: bool) -> Iterator[None]:
        """Context without gradients in parameters, except in coefficients where those are asked for."""
        before = cls.parameters, cls.coefficients, cls.second
        cls.parameters, cls.coefficients, cls.second = False, coefficients, second
        try:
            yield
        finally:
            cls.parameters, cls.coefficients, cls.second = before


def input_gradient(f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """∇f(y), of y's shape, for a scalar f; differentiable in turn where gradients are enabled."""
    if torch.compiler.is_compiling():
        traced: Tensor = torch.func.grad(f)(y)  # the only way that torch.compile can trace
        return traced
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        y = y if y.requires_grad else y.detach().requires_grad_()
        with Wanted.only_inputs(coefficients=False, second=differentiable):
            gradient, = torch.autograd.grad(f(y), y, create_graph=differentiable)
    return gradient


def joint_gradient(f: Callable[[Tensor, Tensor], Tensor], y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f (B,), ∂f/∂y (B, C, H, W) and ∂f/∂σ (B,), all from one backward pass, for an f that gives one number for each image and
    its σ (B,); differentiable in turn where gradients are enabled."""
    if torch.compiler.is_compiling():
        def total(y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            value = f(y, sigma)
            return value.sum(), value

        gradients, value = torch.func.grad(total, argnums=(0, 1), has_aux=True)(y, sigma)
        return value, *gradients
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        y, sigma = (t if t.requires_grad else t.detach().requires_grad_() for t in (y, sigma))
        with Wanted.only_inputs(coefficients=True, second=differentiable):
            value = f(y, sigma)
            along_y, along_sigma = torch.autograd.grad(value.sum(), (y, sigma), create_graph=differentiable,
                                                        materialize_grads=True)  # a network may ignore σ
    return value if differentiable else value.detach(), along_y, along_sigma
