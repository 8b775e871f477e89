"""The cost of a computation: passes through the network, seconds and, where a GPU reports it, energy."""
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
    """Seconds and joules of a block that has ended; joules are None where the device reports none."""

    seconds: float = 0.0
    joules: float | None = None


@dataclass(kw_only=True)
class Passes:
    """Numbers of forward and backward passes through a network; the score of an energy takes one of each."""

    forward: int = 0
    backward: int = 0

    @classmethod
    @contextmanager
    def counted(cls, network: nn.Module) -> Iterator[Passes]:
        """Counts the passes within the block."""
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
    """Measures the block, and waits for the device before and after, as GPU work is asynchronous."""
    spent = Usage()
    synchronize(device)
    before, start = counter(), time.perf_counter()
    yield spent
    synchronize(device)
    spent.seconds, after = time.perf_counter() - start, counter()
    spent.joules = None if before is None or after is None else after - before


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def joule_counter(device: torch.device) -> tuple[Counter, str]:
    """The counter of the joules that the device has used, and the reason where it reports none."""
    if device.type != "cuda":
        return no_counter, f"a {device.type} reports no energy"
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return no_counter, NEEDS
    return gpu_counter(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def gpu_counter(nvml: Any, uuid: str) -> tuple[Counter, str]:
    """The energy counter of the board with this ``uuid``, by NVML (``nvml``, its Python module), whose numbering may differ.

    It counts millijoules since the driver was loaded (NVML, nvmlDeviceGetTotalEnergyConsumption), on Volta and later and not
    for parts of a GPU (MIG). It is updated every 20 to 100 ms, so that shorter blocks are not measured accurately.
    """
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return no_counter, f"the GPU reports no energy ({error})"

    def joules() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except nvml.NVMLError:
            return None

    return joules, ""


def no_counter() -> None:
    """Counter for devices that report no energy."""


def total(joules: list[float | None]) -> float | None:
    """The sum of the joules of several devices or batches; None if one is missing, as the rest would pass for the whole."""
    told = [one for one in joules if one is not None]
    return sum(told) if joules and len(told) == len(joules) else None
