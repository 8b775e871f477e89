"""How much of the machine training uses: the U-Net's arithmetic per second against that of bare 3×3 convolutions."""
from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ebm.graph import Recorded
from ebm.nets.memory_format import memory_format_of
from ebm.precision import DTYPES
from tools.bench.measure import Row, Setting, Spread, alternate, at_least, counted, progress, ratio
from tools.bench.subject import config, dataset, noisy, precisions, step, trainer, training

TITLE = "Use of the machine"
NOTE = ("Whole training steps (optimiser and average included) of `model=unet_score`, and on a GPU of `unet_full_score`, "
        "at the default batch. The ceiling is measured here too: forward and backward of a 3×3 convolution by itself, at "
        "each shape that makes at least 5 % of the U-Net's arithmetic, in the same precision, batch, memory format and "
        "threads. \"Weighted\" is each shape's rate in the proportion in which the U-Net uses it; \"fastest shape\" is the "
        "highest of these rates, the stricter ceiling. FLOPs are counted by torch.utils.flop_counter over forward and "
        "backward.")
Shape = tuple[int, int, int, int, int]  # channels in and out, height, width, stride


def rows(setting: Setting) -> list[Row]:
    """The lines of the report, for each number of threads and precision."""
    lines = []
    for threads in setting.threads:
        torch.set_num_threads(threads)
        for precision in precisions(setting.device):
            label = precision + (f", {counted(threads)}" if setting.device.type == "cpu" else "")
            # The small network's pieces don't fill a GPU, be they alone or in training.
            for name in ("unet_score", *(["unet_full_score"] if setting.device.type == "cuda" else [])):
                progress(f"{name}, {label}")
                lines += shares(name, f"{name}, {label}", precision, setting)
    return lines


def shares(name: str, label: str, precision: str, setting: Setting) -> list[Row]:
    """Speed of training and its share of both ceilings."""
    overrides = [f"model={name}", f"precision={precision}", *(["budget.batch=32"] if setting.quick else []),
                 *(["cuda_graph=false"] if setting.compile else [])]
    cfg = config(*overrides, device=setting.device)
    with tempfile.TemporaryDirectory() as folder:
        data = dataset(Path(folder, "shapes.beton"), count=cfg.budget.batch)
        subject = trainer(cfg, Path(folder), train=data, test=None, device=setting.device)
    batch, (x, sigma) = int(cfg.budget.batch), noisy(2, device=setting.device)
    each = flops(step(subject.model, batch=2, precision=precision, device=setting.device)) / 2  # type: ignore[arg-type]
    weights = convolutions(subject.model, x, sigma)
    dtype, layout = DTYPES[precision] or torch.float32, memory_format_of(*(p for p in subject.parameters if p.dim() == 4))
    cases = {"training": training(subject, noisy(batch, device=setting.device)[0])}
    cases |= {str(shape): convolution(shape, like=x.to(dtype, memory_format=layout), batch=batch) for shape in weights}
    if setting.compile:
        subject.model.compile()
    seconds = alternate(cases, setting=setting)
    rates = {shape: [batch * work(shape) / s for s in seconds[str(shape)]] for shape in weights}
    rounds = range(setting.repeats)
    weighted = [1 / sum(share / rates[shape][i] for shape, share in weights.items()) for i in rounds]
    fastest = [max(rate[i] for rate in rates.values()) for i in rounds]
    reached = [batch * each / s for s in seconds["training"]]
    speed = Spread([batch / s for s in seconds["training"]])
    ceilings = {"3×3 convolutions, weighted": percent(reached, weighted), "fastest 3×3 convolution": percent(reached, fastest)}
    return [
        Row(what=f"training, {label}, batch {batch}", measured=f"{speed:,.0f} images/s",
            against=f"{each / 1e9:.2f} GFLOP an image"),
        Row(what=f"training, {label}", measured=f"{Spread([r / 1e9 for r in reached]):,.0f} GFLOP/s",
            against=f"3×3 convolutions: {Spread(weighted).median / 1e9:,.0f} GFLOP/s weighted, "
                    f"{Spread(fastest).median / 1e9:,.0f} at the fastest shape"),
        # The target is a CPU's: on a GPU convolutions are so fast that what lies between them decides.
        *(at_least(f"share, {label}", share, 60, against=ceiling, spec=".0f", unit="%") if setting.device.type == "cpu" else
          Row(what=f"share, {label}", measured=f"{share:.0f} %", against=ceiling) for ceiling, share in ceilings.items()),
    ]


def percent(part: list[float], whole: list[float]) -> Spread:
    """Round by round."""
    return Spread([100 * value for value in ratio(part, whole).values])


def flops(call: Callable[[], None]) -> int:
    """Floating-point operations of one call, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def convolutions(model: nn.Module, x: Tensor, sigma: Tensor) -> dict[Shape, float]:
    """Shapes of the 3×3 convolutions with at least 5 % of their arithmetic, and their shares, which sum to 1."""
    amount: Counter[Shape] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        shape = (layer.in_channels, layer.out_channels, *inputs[0].shape[2:], layer.stride[0])
        amount[shape] += work(shape)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(x, sigma)
    for hook in hooks:
        hook.remove()
    main = {shape: count for shape, count in amount.items() if count >= 0.05 * amount.total()}
    return {shape: count / sum(main.values()) for shape, count in main.items()}


def work(shape: Shape) -> int:
    """Operations of one image's forward and backward (two more of the same size)."""
    before, after, height, width, stride = shape
    return 3 * 2 * 9 * before * after * (height // stride) * (width // stride)


def convolution(shape: Shape, *, batch: int, like: Tensor) -> Callable[[], object]:
    """Forward and backward of one convolution, to its input and its weight, in the precision and memory format of ``like``."""
    before, after, height, width, stride = shape
    x, weight, gradient = (
        torch.randn(size).to(like).to(memory_format=memory_format_of(like)) for size in
        ((batch, before, height, width), (after, before, 3, 3), (batch, after, height // stride, width // stride)))
    x.requires_grad_(), weight.requires_grad_()
    bias = torch.zeros(after).to(like)

    def work() -> Tensor:
        return torch.autograd.grad(F.conv2d(x, weight, bias, stride=stride, padding=1), (x, weight), gradient)[0]

    return Recorded(work, []) if like.is_cuda else work  # as training's step is: launching takes longer than the work
