"""What a computation costs on its device: seconds and, where a GPU tells, joules."""
from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Counter = Callable[[], "float | None"]
NEEDS = "nvidia-ml-py: not installed; joules need pip install -e '.[evaluate]'"


@dataclass(kw_only=True)
class Usage:
    """Seconds and joules of a block that has ended; joules are None where no device told them."""

    seconds: float = 0.0
    joules: float | None = None


@dataclass(kw_only=True)
class Passes:
    """How often a network was called, and how often a gradient was taken through it: an energy's score costs both."""

    forward: int = 0
    backward: int = 0

    @classmethod
    @contextmanager
    def counted(cls, network: nn.Module) -> Iterator[Passes]:
        """Counts within the block."""
        passes = cls()

        def count(_network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            passes.forward += 1
            passes.backward += inputs[0].requires_grad

        handle = network.register_forward_pre_hook(count)
        try:
            yield passes
        finally:
            handle.remove()


@contextmanager
def measure_usage(device: torch.device, counter: Counter) -> Iterator[Usage]:
    """Measures the block: the device's work is waited for on both sides, since a GPU is given work and not waited for."""
    spent = Usage()
    synchronize(device)
    before, start = counter(), time.perf_counter()
    yield spent
    synchronize(device)
    spent.seconds, after = time.perf_counter() - start, counter()
    spent.joules = None if before is None or after is None else after - before


def synchronize(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def joule_counter(device: torch.device) -> tuple[Counter, str]:
    """The counter of all joules that the device has taken, and why it tells none where it doesn't."""
    if device.type != "cuda":
        return no_counter, f"a {device.type} doesn't tell"
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return no_counter, NEEDS
    return gpu_counter(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def gpu_counter(nvml: Any, uuid: str) -> tuple[Counter, str]:
    """The whole board's counter by NVML (``nvml``, its Python module), of the GPU ``uuid``: its number may differ there.

    It counts millijoules since the driver was loaded (NVML, nvmlDeviceGetTotalEnergyConsumption), from Volta on, not for a part
    of a GPU (MIG), and moves every 20 to 100 ms, so that shorter blocks are not told truly.
    """
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return no_counter, f"the GPU doesn't tell ({error})"

    def joules() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except nvml.NVMLError:
            return None

    return joules, ""


def no_counter() -> None:
    """The counter of a device that doesn't tell."""


def total(joules: list[float | None]) -> float | None:
    """The sum of several devices' or batches' joules; None if one of them wasn't told, since the rest would pass for all."""
    told = [one for one in joules if one is not None]
    return sum(told) if joules and len(told) == len(joules) else None
