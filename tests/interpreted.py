"""The GPU's kernels without a GPU: `TRITON_INTERPRET=1 python tests/interpreted.py` runs them in Triton's interpreter and
prints a line of JSON for each result: what it is, how far it is from float64, and how far it may be."""
from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from test_group_norm import NAMES, case, results

from ebm.nets import group_norm

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-11}  # the interpreter cuts bfloat16 off
# Neighbouring groups worked out together and alone, groups whose size is no power of two, several steps along the pixels.
SHAPES = [((2, 64, 3, 3), 4), ((1, 32, 9, 5), 2), ((2, 12, 5, 7), 3), ((1, 5, 3, 3), 1), ((1, 2, 40, 33), 2)]


def main() -> None:
    from ebm.nets import group_norm_gpu as kernels

    group_norm.kernels_for = lambda x: None if x.dtype == torch.float64 else kernels
    for (shape, groups), dtype, last, along in [
        *itertools.product(SHAPES, [torch.float32], [False, True], ["xwb"]),
        *itertools.product(SHAPES[:1], [torch.bfloat16, torch.float16], [False, True], ["xwb"]),
        *itertools.product(SHAPES[:1], [torch.float32], [True], ["x", "w", "b"]),
    ]:
        one, layout = case(shape, dtype), torch.channels_last if last else torch.contiguous_format
        truth = results(one.to(torch.float64, torch.float64), groups, along=along)
        one = one._replace(**{name: laid(getattr(one, name), layout) for name in ("x", "g", "vx")})
        for name, got, true in zip(NAMES, results(one, groups, along=along), truth, strict=True):
            told = {"what": f"{name} {shape} {dtype} {layout} {along}", "off": float((got.double() - true).abs().max()),
                    "allowed": ROUNDING[dtype if got.dim() == 4 else torch.float32] * float(true.abs().max()),
                    "laid": got.dim() < 4 or got.is_contiguous(memory_format=layout)}
            print(json.dumps(told))
    for (shape, groups), last, silu in itertools.product(SHAPES, [False, True], [False, True]):
        seen, layout = [], torch.channels_last if last else torch.contiguous_format
        one = case(shape, torch.float32)
        for kind in (one.to(torch.float64, torch.float64),
                     one._replace(**{name: laid(getattr(one, name), layout) for name in ("x", "g", "vx")})):
            weight, bias = (kind.weight, kind.bias) if silu else (kind.weight[0], kind.bias[0])
            same, y = group_norm.skip_and_norm(kind.x, weight, bias, groups=groups, eps=1e-5, silu=silu)
            dx, = torch.autograd.grad((y * kind.g + same.square() * kind.vx).sum(), kind.x, create_graph=True)
            seen.append([y, dx, *torch.autograd.grad(dx.pow(2).sum(), (kind.x, kind.g, kind.vx, kind.weight))])
        for name, true, got in zip(("y", "dx", "dx of the second", "dg", "dv", "dweight"), *seen, strict=True):
            off, allowed = float((got.double() - true).detach().abs().max()), 1e-5 * float(true.abs().max())
            print(json.dumps({"what": f"{name} beside {shape} {layout} silu={silu}", "laid": True, "off": off,
                              "allowed": allowed}))


def laid(x: Tensor, layout: torch.memory_format) -> Tensor:
    """x in another order, as a leaf."""
    return x.detach().contiguous(memory_format=layout).requires_grad_()


if __name__ == "__main__":
    main()
