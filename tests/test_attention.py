"""Attention's written-out derivatives against finite differences and against PyTorch's own."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebm.nets import attention
from ebm.nets.attention import attend


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values: 3 of 4 channels at 5 pixels."""
    torch.manual_seed(0)
    return [torch.randn(3, 4, 5, dtype=dtype, requires_grad=True) for _ in range(3)]


def composite(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bcj,bij->bci", v, torch.einsum("bci,bcj->bij", q, k).softmax(-1))


def test_it_has_the_derivatives_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(attend, inputs())
    assert torch.autograd.gradgradcheck(attend, inputs())


@pytest.mark.parametrize(("dtype", "rounding"), [
    (torch.float32, 1e-5), (torch.float16, 2**-8), (torch.bfloat16, 2**-5),
], ids=str)
@pytest.mark.parametrize("along", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_it_is_the_composite_function_with_its_derivatives(
    along: tuple[int, ...], dtype: torch.dtype, rounding: float
) -> None:
    ours = [one.detach().requires_grad_() for one in inputs(dtype)]
    true = [one.detach().double().requires_grad_() for one in ours]
    g, *directions = (torch.randn(3, 4, 5).to(dtype) for _ in range(4))
    seen = []
    for one, way in ((ours, attend), (true, composite)):
        at = g.to(one[0].dtype).requires_grad_()
        first = torch.autograd.grad(y := way(*one), one, at, create_graph=True)
        second = torch.autograd.grad([first[i] for i in along], (at, *one), [directions[i].to(at.dtype) for i in along],
                                     allow_unused=True, materialize_grads=True)
        seen.append((y, *first, *second))
    for name, a, b in zip(("out", "dq", "dk", "dv", "dg", "dq²", "dk²", "dv²"), *seen, strict=True):
        assert a.dtype == dtype, name
        assert (a.double() - b).abs().max() <= rounding * b.abs().max().clamp(min=1), name


def test_in_half_precision_products_of_large_gradients_stay_finite() -> None:
    torch.manual_seed(0)
    q, k, v, g, vq = (scale * torch.randn(1, 4, 256) for scale in (0.01, 1.0, 1.0, 100.0, 300.0))
    assert ((g.mT @ v).half() * (vq.mT @ k).half()).isinf().any()
    seen = []
    for dtype in (torch.float16, torch.float64):
        one = [value.half().to(dtype).requires_grad_() for value in (q, k, v)]
        dq, = torch.autograd.grad(attend(*one), one[0], g.half().to(dtype), create_graph=True)
        seen.append(torch.autograd.grad(dq, one, vq.half().to(dtype)))
    for name, ours, true in zip("qkv", *seen, strict=True):
        assert (ours.double() - true).abs().max() <= 2**-7 * true.abs().max(), name


def test_gradients_are_the_same_whichever_way_is_taken() -> None:
    q, k, v = inputs()
    y, g = attend(q, k, v), torch.randn(3, 4, 5, dtype=torch.float64)
    alone = torch.autograd.grad(y, (q, k, v), g, retain_graph=True)
    graph = torch.autograd.grad(y, (q, k, v), g, create_graph=True)
    plain = torch.autograd.grad(composite(q, k, v), (q, k, v), g)
    for one, other, third in zip(alone, graph, plain, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, third)
    assert all(one.requires_grad for one in graph)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_softmax_has_the_bits_of_float32s(dtype: torch.dtype) -> None:
    q, k = (2 * torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0)).to(dtype) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32):
        ours = attention.weights(q, k)
    assert ours.dtype == dtype
    assert torch.equal(ours, torch.bmm(q.mT, k).float().softmax(-1).to(dtype))


def test_a_third_derivative_is_refused_rather_than_wrong() -> None:
    q, k, v = inputs()
    dq, = torch.autograd.grad(attend(q, k, v).sum(), q, create_graph=True)
    again, = torch.autograd.grad(dq.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()
