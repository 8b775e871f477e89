"""The GPU's kernels: in Triton's interpreter against float64, through its compiler, and, where there is a GPU, on it."""
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ebm.nets
from ebm.energy import Energy, inner_product
from ebm.graph import Recorded
from ebm.nets import group_norm
from ebm.nets.unet import UNet
from ebm.objective import EDM, DenoisingScoreMatching
from ebm.precision import Precision
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import heun
from ebm.schedule import Karras, LogUniform
from ebm.train.budget import Budget
from ebm.train.distributed import World
from ebm.train.ema import Average, PowerFunction
from ebm.train.rate import Constant
from ebm.train.trainer import Trainer
from launch.drawing.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with PyTorch for GPUs alone")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN as `ebm.train.distributed.join` sets it up."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@triton
def test_the_kernels_have_the_derivatives_of_float64() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "tests/interpreted.py"], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) > 100
    wrong = [one for one in told if not (one["off"] <= one["allowed"] and one["laid"])]  # NaN is wrong too
    assert not wrong, wrong[:5]


# What launches of the kernels pass, as the compiler is told it: pointers to numbers and to coefficients, and whole numbers.
GIVEN = {"forward": "x w i w i y m e i", "backward": "x x w i w i m {x} x w w i", "second": "x x x w i w i m {w} {w} x x w w i"}
TYPES = {"w": "*fp32", "m": "*fp32", "i": "i32", "e": "fp32"}


@triton
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("kernel", "numbers", "options", "silu"), [
    ("forward", "*bf16", True, True), ("backward", "*fp16", True, False), ("backward", "*bf16", False, True),
    ("second", "*bf16", False, False), ("second", "*fp32", True, True),
])
def test_the_kernels_compile_without_a_gpu(
    kernel: str, numbers: str, options: bool, silu: bool, last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without what is optional: the gradient that comes around a norm, directions of the coefficients."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ebm.nets import group_norm_gpu, group_norm_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function, (rows, block) = getattr(group_norm_triton, kernel), (64, 16) if last else (16, 128)
    constants: dict[str, Any] = {"P": 256, "PER_GROUP": 16, "GROUPS": rows // 16, "LAST": last, "SILU": silu, "ROWS": rows,
                                 "BLOCK": block}
    kinds = GIVEN[kernel].format(**({"x": "x", "w": "w"} if options else {"x": "-", "w": "-"})).split()
    signature = {name: {**TYPES, "x": numbers, "y": numbers, "-": "constexpr"}[kind]
                 for name, kind in zip(function.arg_names, kinds, strict=False)}
    constants |= dict.fromkeys(name for name, kind in signature.items() if kind == "constexpr")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature={name: signature[name] for name in function.arg_names}, constexprs=constants)
    built = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, **group_norm_gpu.OPTIONS})
    assert len(built.asm["cubin"]) > 1000


def test_where_triton_does_not_work_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ebm.nets, "group_norm_gpu", raising=False)
    monkeypatch.setitem(sys.modules, "ebm.nets.group_norm_gpu", None)  # importing it raises ImportError
    with pytest.warns(UserWarning, match=r"Triton does not work here \((Import|ModuleNotFound)Error.*energies train without"):
        assert group_norm.on_gpu.__wrapped__(torch.float32) is None


def network() -> tuple[nn.Module, list[Tensor]]:
    """A small U-Net on the GPU, off its start, and images with noise levels."""
    torch.manual_seed(0)
    net = UNet(channels=3, width=64, multipliers=[1, 2], blocks=1, attention=[1], patch=1).cuda()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net, [torch.randn(8, 3, 16, 16, device="cuda"), torch.randn(8, device="cuda")]


def second_order(net: nn.Module, y: Tensor, c_noise: Tensor) -> Tensor:
    """As training does: the gradients of a function of a gradient."""
    y = y.detach().requires_grad_()
    gradient, = torch.autograd.grad((net(y, c_noise) * y).sum(), y, create_graph=True)
    loss = gradient.square().flatten(1).mean(1)
    loss.mean().backward()
    return loss.detach()


@gpu
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_on_a_gpu_the_network_has_the_gradients_of_float64(layout: torch.memory_format) -> None:
    seen = []
    for dtype in (torch.float32, torch.float64):
        net, inputs = network()
        net = net.to(dtype).to(memory_format=layout)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            loss = second_order(net, *(one.to(dtype) for one in inputs))
        seen.append([loss, *(one.grad for one in net.parameters())])
    for ours, true in zip(*seen, strict=True):
        assert (ours.double() - true).norm() <= 1e-4 * true.norm()
    assert group_norm.on_gpu(torch.float32) is not None


@gpu
def test_a_recorded_step_has_the_bits_of_one_that_is_not() -> None:
    net, inputs = network()
    parameters = list(net.parameters())
    recorded = Recorded(lambda *inputs: second_order(net, *inputs), parameters)
    for step in range(6):
        fresh = [one + step for one in inputs]
        ours = [recorded(*fresh).clone(), *(one.grad.clone() for one in parameters)]
        net.zero_grad()
        true = [second_order(net, *fresh), *(one.grad for one in parameters)]
        assert all(torch.equal(one, other) for one, other in zip(ours, true, strict=True)), step
        net.zero_grad()
    assert recorded.graph is not None


@gpu
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_recorded_training_has_the_bits_of_one_that_is_not(precision: str, pieces: int) -> None:
    device, seen = torch.device("cuda"), []
    for cuda_graph in (True, False):
        torch.manual_seed(0)
        model = Energy(network()[0], inner_product, sigma_data=0.5).cuda()
        trainer = Trainer(
            model=model, averages=[Average(model, PowerFunction(sigma_rel=0.1))],
            objective=DenoisingScoreMatching(weighting=EDM(sigma_data=0.5)), schedule=LogUniform(sigma_min=0.1, sigma_max=10.0),
            optimizer=torch.optim.Adam(model.parameters(), fused=True), rate=Constant(peak=1e-3, warmup=0),
            budget=Budget(images=64, batch=8, micro_batch=8 // pieces, clip=0.1), precision=Precision(name=precision), seed=0,
            world=World(rank=0, size=1, device=device), cuda_graph=cuda_graph)
        source = torch.Generator().manual_seed(0)
        assert trainer.fit(iter([torch.rand(8, 3, 16, 16, generator=source).to(device) * 2 - 1 for _ in range(9)]))
        seen.append([*trainer.model.parameters(), *trainer.averages[0].model.parameters()])
        assert isinstance(trainer.differentiate, Recorded) == cuda_graph
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sampler", [
    partial(heun, steps=6, churn=10, churn_min=0, churn_max=50, churn_noise=1),
    partial(metropolis_annealed, steps=3, steps_per_level=4, step_scale=0.1, denoise=True)], ids=["heun", "metropolis"])
def test_recorded_scores_draw_the_images_of_those_that_are_not(sampler: Any, precision: str) -> None:
    torch.manual_seed(0)
    pipeline = Pipeline(
        model=Energy(network()[0], inner_product, sigma_data=0.5).cuda(), shape=(3, 16, 16), seed=0, cuda_graph=False,
        sampler=partial(sampler, grid=Karras(sigma_min=0.02, sigma_max=5, rho=7)), precision=Precision(name=precision),
        device=torch.device("cuda"))
    fast = replace(pipeline, cuda_graph=True)
    for part in (range(4), range(4, 8), range(8, 10)):
        one, other = pipeline.draw(part), fast.draw(part)
        assert torch.equal(one.pixels, other.pixels)
        assert (one.forward, one.backward, one.not_finite) == (other.forward, other.backward, 0)
    assert fast.recorded.replayed.backward > 0


@gpu
def test_what_cannot_be_recorded_says_so_and_what_to_do() -> None:
    work = """
import torch
from ebm.graph import NotRecordableError, Recorded
weight = torch.ones(3, device="cuda", requires_grad=True)
def work(x):
    loss = weight * x * float(x.sum())  # reads a number back
    loss.sum().backward()
    return loss.detach()
recorded = Recorded(work, [weight])
for step in range(4):
    try:
        recorded(torch.ones(3, device="cuda"))
    except NotRecordableError as error:
        print(step, error)
    weight.grad = None
"""
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("3 cuda_graph: this model can't be recorded ("), done.stderr
    assert done.stdout.strip().endswith("start again with cuda_graph=false")
