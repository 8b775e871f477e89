"""How much arithmetic a training step takes and how much a GPU could do, for the share of its peak that a run reaches."""
from __future__ import annotations

import re

import torch

from ebm.energy import Energy, Preconditioned, on_meta

# Dense half-precision peaks in FLOP/s, from NVIDIA's data sheets; the first key that occurs in the GPU's name counts.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "A30": 165e12, "L40S": 362e12,
         "L4": 121e12, "V100": 125e12, "T4": 65e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


def flop_per_image(model: Preconditioned, shape: tuple[int, int, int]) -> float:
    """Floating-point operations of a training step on one image of ``shape`` (C, H, W): forward passes × 3, × 6 for an energy.

    An energy's step differentiates a gradient: two passes for the score, and twice that again for the parameters.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes a tenth of a second, for runs on a known GPU alone

    y = torch.zeros(1, *shape, device="meta")
    network = on_meta(model.network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(y, y[:, 0, 0, 0])
    return float(counter.get_total_flops()) * (6 if isinstance(model, Energy) else 3)


def peak_of(device: torch.device, *, precision: str) -> float | None:
    """The device's dense peak in FLOP/s; None where it isn't known, as in fp32, for which PyTorch has several algorithms."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if re.search(rf"\b{key}\b", name)), None)
