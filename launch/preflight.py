"""Before the first step, on every process: is this node fit for the run? One that isn't is named and avoided."""
from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch

from ebm.data import Dataset
from ebm.train.distributed import World
from launch.job import node, verdict

PROBE = 4 << 20  # bytes written to measure the speed of the run's disk


class NodeFaultError(OSError):
    """Nodes that can't do the run's work."""


def preflight(world: World, *, folder: Path, data: Path, memory_gb: float, disk_gb: float, write_mb_s: float) -> None:
    """Raises NodeFaultError on every process, naming node and fault, where any process finds one.

    ``memory_gb`` of the device and ``disk_gb`` of the run's folder must be free, and ``write_mb_s`` written per second.
    """
    fault = ""
    try:
        check_device(world.device, memory_gb)
        check_disk(folder, disk_gb, write_mb_s)
        if "EBM_JOB" in os.environ:  # the study was refused where nobody can read its data, so it is this node that can't
            Dataset.open(data)
    except (OSError, RuntimeError, ValueError) as error:
        fault = " ".join(str(error).split()) or repr(error)
    found = [(where, what) for where, what in world.everyone((node(), fault)) if what]
    if found:
        verdict("avoid " + " ".join(sorted({where for where, _ in found})))
        raise NodeFaultError("; ".join(sorted({f"node {where}: {what}" for where, what in found})))
    if int(world.sum(torch.ones((), device=world.device))) != world.size:  # over the network of the gradients
        raise NodeFaultError(f"node {node()}: a sum over all processes is wrong")


def check_device(device: torch.device, memory_gb: float) -> None:
    """Raises RuntimeError where the device doesn't compute, OSError where too little of its memory is free."""
    if float(torch.ones(8, device=device).sum()) != 8:
        raise RuntimeError(f"{device} computes wrongly")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        if free < memory_gb:
            raise OSError(f"{device} has {free:.1f} GB of free memory, preflight.memory_gb asks for {memory_gb}")


def check_disk(folder: Path, disk_gb: float, write_mb_s: float) -> None:
    """Raises OSError where the folder can't be written, or not fast enough, or has too little room."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 2**30
    if free < disk_gb:
        raise OSError(f"{folder} has {free:.2f} GB of free space, preflight.disk_gb asks for {disk_gb}")
    probe, began = folder / f".probe-{node()}-{os.getpid()}", time.perf_counter()
    try:
        with open(probe, "wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    speed = PROBE / 1e6 / (time.perf_counter() - began)
    if speed < write_mb_s:
        raise OSError(f"{folder} is written at {speed:.2f} MB/s, preflight.write_mb_s asks for {write_mb_s}")
