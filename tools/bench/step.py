"""What an energy costs: its training step and its score against the same U-Net as a direct score."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ebm.precision import Precision
from tools.bench.measure import Row, Setting, Spread, alternate, at_most, counted, fresh, progress, ratio
from tools.bench.subject import model, noisy, precisions, recorded, step

TITLE = "The cost of an energy"
NOTE = ("`model=unet` against `model=unet_score`, and `unet_full` against `unet_full_score`: one network and one "
        "preconditioning, as energy and as direct score; a step is forward and backward of the denoising loss. In forward "
        "passes a step costs 6 against 3 and ∇E 2 against 1, so 2.0 is the floor of all time ratios. Memory is the peak of a "
        "step of `unet` above what stood before it: {method}. On a GPU both sides are recorded as CUDA graphs, as training's "
        "step and sampling's scores are.")
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc reads it when a process starts
METHOD = {
    "cpu": "resident memory of a fresh process (VmHWM in /proc, with MALLOC_MMAP_THRESHOLD_=65536, so that what is freed "
           "leaves the process), after a first step with one image",
    "cuda": "torch.cuda.max_memory_allocated in a fresh process, after a first step with one image",
}


def rows(setting: Setting) -> list[Row]:
    """The lines of the report, for each number of threads and precision."""
    batch = 32 if setting.device.type == "cpu" else 256
    lines = []
    for threads in setting.threads:
        torch.set_num_threads(threads)
        for name, images in (("unet", batch), ("unet_full", batch // 4)):
            for precision in precisions(setting.device):
                label = f"{name}, {precision}, batch {images}"
                label += f", {counted(threads)}" if setting.device.type == "cpu" else ""
                progress(label)
                lines += times(name, label, images, precision, setting)
    for precision in precisions(setting.device):
        progress(f"memory, {precision}")
        energy, score = (fresh(peak, name, batch, precision, setting, environment=ENVIRONMENT)
                         for name in ("unet", "unet_score"))
        lines.append(at_most(f"peak memory of a step, {precision}, batch {batch}", Spread([energy / score]), 2.2,
                             against=f"direct score ({energy / 1e6:,.0f} MB against {score / 1e6:,.0f} MB)"))
    return lines


def times(name: str, label: str, batch: int, precision: str, setting: Setting) -> list[Row]:
    """Time ratios of step and score."""
    options = {"batch": batch, "precision": precision, "device": setting.device}
    energy, score = (model(one, device=setting.device, compiled=setting.compile) for one in (name, f"{name}_score"))
    seconds = alternate({
        "energy step": step(energy, **options), "score step": step(score, **options),  # type: ignore[arg-type]
        "∇E": evaluation(energy, **options), "forward": evaluation(score, **options),  # type: ignore[arg-type]
    }, setting=setting)
    each = {name: batch / Spread(values).median for name, values in seconds.items()}
    return [
        at_most(f"energy step, {label}", ratio(seconds["energy step"], seconds["score step"]), 2.2,
                against=f"direct score's step ({each['energy step']:,.0f} against {each['score step']:,.0f} images/s)"),
        at_most(f"∇E, {label}", ratio(seconds["∇E"], seconds["forward"]), 2.1,
                against=f"one forward pass ({each['∇E']:,.0f} against {each['forward']:,.0f} images/s)"),
    ]


def evaluation(model: torch.nn.Module, *, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """The model's score without gradients: ∇E of an energy, one forward pass of a direct score; on a GPU recorded as a CUDA
    graph, as a step is, since launching it takes longer than the work."""
    mode, inputs = Precision(name=precision), noisy(batch, device=device)

    def work(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad(), mode.autocast(device):
            score: Tensor = model(x, sigma)
        return score

    score = recorded(work, model, [])

    def once() -> None:
        score(*inputs)

    return once


def peak(name: str, batch: int, precision: str, setting: Setting) -> int:
    """Bytes that one training step holds at its peak above what stood before it."""
    torch.set_num_threads(setting.threads[-1])
    subject = model(name, device=setting.device, compiled=setting.compile)
    options = {"precision": precision, "device": setting.device}
    step(subject, batch=1, **options)()  # type: ignore[arg-type]
    once = step(subject, batch=batch, **options)  # type: ignore[arg-type]
    before = reset(setting.device)
    once()
    setting.wait()
    return highest(setting.device) - before


def reset(device: torch.device) -> int:
    """Bytes held now, from which the peak is counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return status("VmRSS")


def highest(device: torch.device) -> int:
    """Most bytes held since `reset`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status("VmHWM")


def status(key: str) -> int:
    """A size in this process's status, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
