"""The fused CPU kernel against the written-out derivatives in float64, which have tests of their own, and its building."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ebm.nets import group_norm
from ebm.nets.group_norm import norm, norm_silu
from ebm.nets.layers import GroupNorm

ROOT = Path(__file__).resolve().parents[1]
built = pytest.mark.skipif(not group_norm.LOADED, reason="the kernel is not built; python tools/build_kernels.py")
SHAPES = [  # of x, and groups: rows that fill vectors and that don't, one group and several, one pixel
    ((2, 32, 16, 16), 2), ((3, 12, 5, 7), 3), ((1, 5, 3, 3), 1), ((2, 64, 8, 8), 4), ((2, 16, 1, 1), 1), ((1, 2, 40, 33), 2),
]


class Case(NamedTuple):
    """A point, and directions along which its gradients are taken."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    g: Tensor
    vx: Tensor
    vw: Tensor
    vb: Tensor

    def to(self, numbers: torch.dtype, coefficients: torch.dtype) -> Case:
        return Case(*(one.detach().to(numbers if one.dim() == 4 else coefficients).requires_grad_() for one in self))


def case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """Numbers that the type can hold."""
    torch.manual_seed(0)
    x, g, vx = (torch.randn(shape) for _ in range(3))
    weight, bias, vw, vb = (torch.randn(shape[:2]) for _ in range(4))
    return Case(2 * x + 1, 1 + weight, bias, g, vx, vw, vb).to(dtype, torch.float32)


def results(one: Case, groups: int, *, along: str = "xwb") -> list[Tensor]:
    """silu(u), its three gradients, and the gradients in g, x, weight and bias of their products with the directions."""
    y = norm_silu(one.x, one.weight, one.bias, groups=groups, eps=1e-5)
    first = torch.autograd.grad(y, (one.x, one.weight, one.bias), one.g, create_graph=True)
    chosen = [(d, v) for d, v, name in zip(first, (one.vx, one.vw, one.vb), "xwb", strict=True) if name in along]
    second = torch.autograd.grad([d for d, _ in chosen], (one.g, one.x, one.weight, one.bias), [v for _, v in chosen],
                                 allow_unused=True, materialize_grads=True)
    return [y.detach(), *(d.detach() for d in first), *second]


NAMES = ["y", "dx", "dweight", "dbias", "dg of the second", "dx of the second", "dweight of the second", "dbias of the second"]


@built
@pytest.mark.parametrize("along", ["xwb", "x", "w", "b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_the_kernel_has_the_derivatives_of_float64(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, along: str
) -> None:
    one = case(shape, dtype)
    truth = results(one.to(torch.float64, torch.float64), groups, along=along)
    for name, ours, true in zip(NAMES, results(one, groups, along=along), truth, strict=True):
        assert ours.dtype == (dtype if ours.dim() == 4 else torch.float32), name
        rounding = 2**-8 if ours.dtype == torch.bfloat16 else 1e-5
        error = (ours.double() - true).abs().max()
        assert error <= rounding * true.abs().max(), f"{name}: {error:.2e} off, of {true.abs().max():.2e}"


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_norm_alone_has_the_derivatives_of_float64(dtype: torch.dtype) -> None:
    one = case((3, 12, 5, 7), dtype)
    seen = []
    for kind in (one, one.to(torch.float64, torch.float64)):
        weight, bias = (value[0].detach().requires_grad_() for value in (kind.weight, kind.bias))
        y = norm(kind.x, weight, bias, groups=3, eps=1e-5)
        dx, db = torch.autograd.grad(y, (kind.x, bias), kind.g, create_graph=True)
        dg, dxx, dw = torch.autograd.grad(dx, (kind.g, kind.x, weight), kind.vx)
        seen.append((y, dx, dg, dxx, dw, db))
    for name, ours, true in zip(("y", "dx", "dg", "dx of the second", "dweight", "dbias"), *seen, strict=True):
        rounding = 2**-8 if ours.dtype == torch.bfloat16 else 1e-5
        assert ((ours.double() - true).abs().max() <= rounding * true.abs().max()), name


@built
def test_what_is_not_contiguous_is_read_rightly() -> None:
    one = case((3, 12, 8, 4), torch.float32)
    other = Case(*(torch.stack([value, value], dim=-1)[..., 0].detach().requires_grad_() for value in one))
    assert not any(value.is_contiguous() for value in other)
    for name, a, b in zip(NAMES, results(one, 3), results(other, 3), strict=True):
        assert torch.equal(a, b), name
    y = norm_silu(one.x.to(memory_format=torch.channels_last), one.weight[:1].expand(3, -1), one.bias[:1].expand(3, -1),
                  groups=3, eps=1e-5)
    truth = norm_silu(one.x.double(), one.weight[:1].double().expand(3, -1), one.bias[:1].double().expand(3, -1),
                      groups=3, eps=1e-5)
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@built
def test_bits_are_the_same_whatever_the_threads(threads: None) -> None:
    one = case((8, 64, 16, 16), torch.float32)
    seen = []
    for count in (1, 1, 2, 3):
        torch.set_num_threads(count)
        seen.append(results(one, 4))
    for name, first, *others in zip(NAMES, *seen, strict=True):
        assert all(torch.equal(first, other) for other in others), name


@built
@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e5])
def test_large_and_small_numbers_are_normalised(scale: float) -> None:
    one = case((2, 16, 6, 6), torch.float32)
    far = one._replace(x=(scale * one.x + 5 * scale).detach().requires_grad_(),
                       weight=(30 * one.weight).detach().requires_grad_())  # |u| > 88, where exp(-u) leaves float32
    for name, ours, true in zip(NAMES, results(far, 1), results(far.to(torch.float64, torch.float64), 1), strict=True):
        assert ((ours.double() - true).abs().max() <= 1e-4 * true.abs().max()), name


@built
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_in_its_image(bad: float) -> None:
    one = case((2, 16, 4, 4), torch.float32)
    x = one.x.detach().clone()
    x[0, 3, 1, 1] = bad
    for name, ours in zip(NAMES, results(one._replace(x=x.requires_grad_()), 1), strict=True):
        assert ours[0].isnan().all(), name
        assert ours[1].isfinite().all(), name


@built
def test_an_empty_batch_has_empty_derivatives() -> None:
    assert [tuple(one.shape) for one in results(case((0, 8, 4, 4), torch.float32), 2)][:3] == [(0, 8, 4, 4)] * 2 + [(0, 8)]


@built
def test_a_third_derivative_is_refused_by_the_kernel_too() -> None:
    one = case((1, 8, 2, 2), torch.float32)
    g, = torch.autograd.grad(norm_silu(one.x, one.weight, one.bias, groups=2, eps=1e-5).sum(), one.x, create_graph=True)
    h, = torch.autograd.grad(g.square().sum(), one.x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative|differentiable"):
        torch.autograd.grad(h.square().sum(), one.x)


@built
def test_wrong_inputs_are_refused() -> None:
    x, weight = torch.zeros(2, 8, 4, 4), torch.zeros(2, 8)
    for wrong in ((x[0], weight, weight, 2), (x, weight, weight, 3), (x.double(), weight, weight, 2),
                  (x, weight[:1], weight, 2), (x, weight, weight.double(), 2)):
        with pytest.raises(RuntimeError, match="norm_silu"):
            torch.ops.ebm.norm_silu(*wrong, 1e-5, True)


def test_what_the_kernel_does_not_know_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_norm.kernels_for(torch.zeros(1, 8, 2, 2, dtype=torch.float64)) is None
    assert group_norm.kernels_for(torch.zeros(1, 8, 2, 2, device="meta")) is None
    one = case((2, 8, 4, 4), torch.float32)
    before = results(one, 2)
    monkeypatch.setattr(group_norm, "LOADED", False)
    for name, a, b in zip(NAMES, before, results(one, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_network_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(group_norm, "kernels_for", lambda x: asked.append(x))
    layer, h = GroupNorm(16), torch.zeros(1, 16, 2, 2)
    layer(h), layer.silu(h), layer.skip_and_norm(h, silu=True)
    assert [one is h for one in asked] == [True] * 3


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("silu", [True, False])
def test_what_goes_around_the_norm_is_added_to_its_gradients(silu: bool, dtype: torch.dtype) -> None:
    one, seen = case((3, 12, 5, 7), dtype), []
    for kind in (one, one.to(torch.float64, torch.float64)):
        weight, bias = (kind.weight, kind.bias) if silu else (kind.weight[0], kind.bias[0])
        same, y = group_norm.skip_and_norm(kind.x, weight, bias, groups=3, eps=1e-5, silu=silu)
        assert torch.equal(same, kind.x)
        product = y * kind.g + same.square() * kind.vx  # the residual's way is not linear, so both have second derivatives
        dx, = torch.autograd.grad(product.sum(), kind.x, create_graph=True)
        dxx, dg, dv, dw = torch.autograd.grad(dx.pow(2).sum(), (kind.x, kind.g, kind.vx, kind.weight))
        seen.append((dx, dxx, dg, dv, dw, *torch.autograd.grad(same.sum(), kind.x)))
    for name, ours, true in zip(("dx", "dx of the second", "dg", "dv", "dweight", "dx of x alone"), *seen, strict=True):
        rounding = 2**-5 if dtype == torch.bfloat16 else 1e-5
        assert (ours.double() - true).abs().max() <= rounding * true.abs().max(), name


@built
@pytest.mark.parametrize("silu", [True, False])
def test_gradients_are_the_same_whether_or_not_they_are_differentiated_in_turn(silu: bool) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(2, 32, 4, 4, requires_grad=True), torch.randn(2, 32, 4, 4)
    weight, bias = (torch.randn(2, 32, requires_grad=True) for _ in range(2))
    _, y = group_norm.Norm.apply(x, weight, bias, 2, 1e-5, silu)
    alone = torch.autograd.grad(y, (x, weight, bias), g, retain_graph=True)
    graph = torch.autograd.grad(y, (x, weight, bias), g, create_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(alone, graph, strict=True))
    assert all(one.requires_grad for one in graph)
    assert not any(one.requires_grad for one in alone)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, from the checkout."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def test_the_library_is_named_after_what_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = group_norm.library()
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert group_norm.library() != before


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    done = run("tools/build_kernels.py", EBM_KERNELS=str(tmp_path), CXX="no-such-compiler")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "no-such-compiler" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    compiler = tmp_path / "fails"
    compiler.write_text("#!/bin/sh\necho 'x.h:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = run("tools/build_kernels.py", EBM_KERNELS=str(tmp_path / "kernels"), CXX=str(compiler))
    assert done.returncode == 1
    assert "error: no such thing" in done.stderr
    assert not (tmp_path / "kernels").exists()


def test_where_it_is_not_built_nothing_is_said_or_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBM_KERNELS", str(tmp_path))
    assert not group_norm.load()
    assert not list(tmp_path.iterdir())


def test_one_that_does_not_load_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBM_KERNELS", str(tmp_path))
    group_norm.library().write_bytes(b"not a library")
    with pytest.warns(UserWarning, match="cannot be loaded"):
        assert not group_norm.load()
