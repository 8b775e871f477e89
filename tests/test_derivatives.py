"""The written-out derivatives against finite differences and against PyTorch's own, and what is left uncomputed."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ebm.nets import convolution as convolutions
from ebm.nets.convolution import convolution
from ebm.nets.derivatives import input_gradient, joint_gradient
from ebm.nets.group_norm_torch import norm_silu
from ebm.nets.memory_format import concatenate, memory_format_of


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def composite(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 2, eps=1e-5) * weight[:, :, None, None] + bias[:, :, None, None])


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_has_the_derivatives_of_finite_differences(stride: int) -> None:
    torch.manual_seed(0)
    inputs = randn(2, 3, 5, 5), randn(4, 3, 3, 3), randn(4)
    assert torch.autograd.gradgradcheck(lambda *a: convolution(*a, stride=stride, padding=1), inputs)
    assert torch.autograd.gradcheck(lambda *a: convolution(*a, stride=stride, padding=1), inputs)


@pytest.mark.parametrize(("size", "kernel", "stride", "turned"), [
    ((2, 32, 8, 32), (40, 32, 3, 3), 1, True), ((1, 33, 40, 33), (32, 33, 5, 5), 1, True),
    ((1, 32, 32, 32), (32, 32, 3, 3), 2, False), ((1, 32, 32, 16), (32, 32, 3, 3), 1, False),
    ((1, 8, 32, 32), (32, 8, 3, 3), 1, False), ((3, 32, 4, 4), (16, 32, 1, 1), 1, True), ((1, 8, 4, 4), (4, 8, 1, 1), 2, False),
], ids=str)
def test_gradients_of_a_convolution_turned_round_or_not_are_those_of_float64(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: int, turned: bool
) -> None:
    torch.manual_seed(0)
    padding = kernel[2] // 2
    inputs = [torch.randn(shape, requires_grad=True) for shape in (size, kernel, kernel[:1])]
    assert convolutions.turned_round(*inputs[:2], stride, padding) == turned
    g, v = torch.randn_like(convolution(*inputs, stride=stride, padding=padding)), torch.randn(size)
    seen = []
    for dtype, way in ((torch.float32, convolution), (torch.float64, F.conv2d)):
        x, weight, bias, to, along = (one.detach().to(dtype).requires_grad_() for one in (*inputs, g, v))
        y = way(x, weight, bias, stride=stride, padding=padding)
        first = torch.autograd.grad(y, (x, weight, bias), to, create_graph=True)
        second = torch.autograd.grad(first[0], (to, weight), along, retain_graph=True)
        seen.append((*first, *second))
    for name, ours, true in zip(("dx", "dweight", "dbias", "dg", "dweight of the second"), *seen, strict=True):
        assert (ours - true).abs().max() < 1e-5 * true.abs().max(), name
    with torch.no_grad():
        alone = input_gradient(lambda x: (convolution(x, *inputs[1:], stride=stride, padding=padding) * g).sum(), inputs[0])
    y = F.conv2d(*(one.double() for one in inputs), stride=stride, padding=padding)
    assert (convolution(*inputs, stride=stride, padding=padding) - y).abs().max() < 1e-5 * y.abs().max()
    assert (alone - seen[1][0]).abs().max() < 1e-5 * seen[1][0].abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_concatenation_has_the_derivatives_of_finite_differences_in_one_order(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    a, b = (one.detach().contiguous(memory_format=layout).requires_grad_() for one in (randn(2, 3, 4, 4), randn(2, 2, 4, 4)))
    assert torch.equal(concatenate(a, b), torch.cat([a, b], dim=1))
    assert torch.autograd.gradcheck(lambda a, b: concatenate(a, b).pow(3), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: concatenate(a, b).pow(3), (a, b))
    first = torch.autograd.grad(concatenate(a, b).pow(3).sum(), (a, b), create_graph=True)
    second = torch.autograd.grad([one.square().sum() for one in first], (a, b))
    assert [memory_format_of(one) for one in (concatenate(a, b), *first, *second)] == [layout] * 5


def test_norm_silu_has_the_derivatives_of_finite_differences() -> None:
    torch.manual_seed(0)
    inputs = randn(2, 8, 4, 4), randn(2, 8), randn(2, 8)
    assert torch.autograd.gradcheck(lambda *a: norm_silu(*a, groups=2, eps=1e-5), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: norm_silu(*a, groups=2, eps=1e-5), inputs)


def test_norm_silu_is_the_composite_function() -> None:
    torch.manual_seed(0)
    inputs = randn(2, 8, 4, 4), randn(2, 8), randn(2, 8)
    torch.testing.assert_close(norm_silu(*inputs, groups=2, eps=1e-5), composite(*inputs))


@pytest.mark.parametrize("compiling", [False, True], ids=["eager", "compiling"])
def test_a_loss_on_the_gradient_has_the_composites_gradients(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, kernel, weight, bias = torch.randn(2, 3, 4, 4, dtype=torch.float64), randn(8, 3, 3, 3), randn(2, 8), randn(2, 8)
    truth = torch.autograd.grad(composite(F.conv2d(x := x.requires_grad_(), kernel, padding=1), weight, bias).square().sum(), x,
                                create_graph=True)[0]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    ours = input_gradient(
        lambda y: norm_silu(convolution(y, kernel, None, stride=1, padding=1), weight, bias, groups=2, eps=1e-5).square().sum(),
        x.detach())
    torch.testing.assert_close(ours, truth)
    for a, b in zip(*(torch.autograd.grad(one.pow(3).sum(), (kernel, weight, bias)) for one in (ours, truth)), strict=True):
        torch.testing.assert_close(a, b)


def test_an_input_gradient_computes_no_gradients_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    gradients = convolutions.gradients

    def seen(*args: object) -> object:
        masks.append(args[-1])
        return gradients(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(convolutions, "gradients", seen)
    kernel = randn(4, 3, 3, 3)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    input_gradient(lambda y: convolution(y, kernel, None, stride=1, padding=1).square().sum(), x)
    assert masks == [(True, False, False)]


def test_a_joint_gradient_is_that_of_each_input_and_needs_no_convolutions_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kernel, slopes = randn(8, 3, 3, 3), randn(2, 8)
    x, sigma = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)

    def f(y: Tensor, sigma: Tensor) -> Tensor:
        modulation = slopes * sigma[:, None]
        h = convolution(y, kernel, None, stride=1, padding=1)
        return norm_silu(h, 1 + modulation, modulation.sin(), groups=2, eps=1e-5).square().flatten(1).sum(1)

    y, level = x.clone().requires_grad_(), sigma.clone().requires_grad_()
    truth = torch.autograd.grad(f(y, level).sum(), (y, level), create_graph=True)
    masks = []
    gradients = convolutions.gradients
    monkeypatch.setattr(convolutions, "gradients", lambda *args: masks.append(args[-1]) or gradients(*args))
    value, *ours = joint_gradient(f, x, sigma)
    assert masks == [(True, False, False)]
    torch.testing.assert_close((value, *ours), (f(x, sigma), *truth))
    losses = [(one.pow(3).sum() + other.pow(2).sum() + f(x, sigma).sum()) for one, other in (ours, truth)]
    for a, b in zip(*(torch.autograd.grad(loss, (kernel, slopes)) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert not any(one.requires_grad for one in joint_gradient(f, x, sigma))


def test_an_input_gradient_under_no_grad_has_no_graph() -> None:
    with torch.no_grad():
        assert not input_gradient(lambda y: y.square().sum(), torch.ones(2)).requires_grad
    assert input_gradient(lambda y: y.pow(3).sum(), torch.ones(2)).requires_grad


def test_a_third_derivative_is_refused_rather_than_wrong() -> None:
    x = randn(1, 8, 2, 2)
    g, = torch.autograd.grad(norm_silu(x, randn(1, 8), randn(1, 8), groups=2, eps=1e-5).sum(), x, create_graph=True)
    h, = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable|derivative"):
        torch.autograd.grad(h.square().sum(), x)
