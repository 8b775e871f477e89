"""Checks of every node before the first step; a node that fails one is named and avoided."""
from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig

from ebm.data import Dataset
from ebm.train.distributed import MissingPeersError, World, join
from launch.config.settings import setting
from launch.job.faults import checking
from launch.job.process import leave_verdict, node_name

PROBE = 4 << 20  # bytes written to measure the speed of the run's disk
GRACE = 5.0  # seconds for rank 0 to report which processes are missing, before others report only that some are


class NodeFaultError(OSError):
    """Nodes that are not fit for the run."""


@contextlib.contextmanager
def processes(cfg: DictConfig) -> Iterator[World]:
    """Context of the process group of ``cfg``; bad settings, and processes that don't find each other, end in one line."""
    with contextlib.ExitStack() as stack:
        with checking(), meeting(cfg.device):
            seconds = {name: setting(cfg, name) for name in ("timeout_seconds", "peers_seconds")}
            world = stack.enter_context(join(device=cfg.device, **seconds))
        yield world


@contextlib.contextmanager
def meeting(device: str) -> Iterator[None]:
    """Context in which the processes find each other.

    On a cluster it avoids the nodes of processes that don't come, and a node on which PyTorch doesn't find the GPUs that SLURM
    has allocated, if ``device`` may use them. Raises NodeFaultError or OSError.
    """
    given, wanted = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if given and device != "cpu" and shutil.which("nvidia-smi"):
        count = torch.cuda.device_count()
        one_each = count == 1 and "SLURM_STEP_GPUS" in os.environ  # each process sees its own alone
        if count < min(given, wanted) and not one_each:
            leave_verdict(f"avoid {node_name()}")
            raise NodeFaultError(f"node {node_name()}: SLURM gives this job {given} GPUs, but PyTorch finds {count}; "
                                 "device=cpu needs none")
    try:
        yield
    except MissingPeersError as error:
        nodes, here = os.environ.get("EBM_NODES", "").split(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        missing = sorted({nodes[rank // here] for rank in error.ranks if rank // here < len(nodes)})
        if os.environ["RANK"] != "0":  # this may be the node that can't be reached: rank 0, if there, reports first
            time.sleep(GRACE)
            leave_verdict("again")
        elif missing:  # it knows who has come
            # If none of several others has come, the node that is cut off is this one.
            leave_verdict(f"avoid {' '.join([node_name()] if 1 < len(nodes) - 1 == len(missing) else missing)}")
        where = f" (node {', '.join(missing)}; seen from node {node_name()})" if missing else ""
        raise OSError(f"peers_seconds: {error}{where}") from error


def check_devices(world: World, *, memory_gb: float) -> None:
    """Raises NodeFaultError on every process if any device computes wrongly or has less than ``memory_gb`` free."""
    check_everywhere(world, lambda: check_device(world.device, memory_gb))


def check_node(world: World, *, folder: Path, disk_gb: float, write_mb_s: float) -> None:
    """Raises NodeFaultError on every process if any finds less than ``disk_gb`` free in the run's folder, writes it more slowly
    than ``write_mb_s``, or gets a wrong sum over the processes."""
    check_everywhere(world, lambda: check_disk(folder, disk_gb, write_mb_s))
    if int(world.all_reduce(torch.ones((), device=world.device))) != world.size:  # over the network of the gradients
        raise NodeFaultError(f"node {node_name()}: a sum over all processes is wrong")


def check_data(world: World, data: Path) -> None:
    """Raises NodeFaultError if a process of a study's job can't open the data: submitting the study has opened it, so the node
    is at fault."""
    if "EBM_JOB" in os.environ:
        check_everywhere(world, lambda: Dataset.open(data))


def check_everywhere(world: World, *checks: Callable[[], object]) -> None:
    """Runs the checks on every process; if any raises on any, all raise NodeFaultError, and the nodes at fault are avoided."""
    fault = ""
    try:
        for check in checks:
            check()
    except (OSError, RuntimeError, ValueError) as error:
        fault = " ".join(str(error).split()) or repr(error)
    found = [(where, what) for where, what in world.all_gather((node_name(), fault)) if what]
    if found:
        leave_verdict("avoid " + " ".join(sorted({where for where, _ in found})))
        raise NodeFaultError("; ".join(sorted({f"node {where}: {what}" for where, what in found})))


def check_device(device: torch.device, memory_gb: float) -> None:
    """Raises RuntimeError if the device computes wrongly, OSError if too little of its memory is free."""
    if float(torch.ones(8, device=device).sum()) != 8:
        raise RuntimeError(f"{device} computes wrongly")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        if free < memory_gb:
            raise OSError(f"{device} has {free:.1f} GB of free memory; preflight.memory_gb requires {memory_gb}")


def check_disk(folder: Path, disk_gb: float, write_mb_s: float) -> None:
    """Raises OSError if the folder can't be written, is too slow, or has too little free space."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free, began = shutil.disk_usage(folder).free / 2**30, time.perf_counter()
        if free >= disk_gb:
            write_probe(folder / f".probe-{node_name()}-{os.getpid()}")
    except OSError as error:
        raise OSError(f"{folder} can't be written: {error.strerror or error}") from error
    if free < disk_gb:
        raise OSError(f"{folder} has {free:.2f} GB of free space; preflight.disk_gb requires {disk_gb}")
    speed = PROBE / 1e6 / (time.perf_counter() - began)
    if speed < write_mb_s:
        raise OSError(f"{folder} is written at {speed:.2f} MB/s; preflight.write_mb_s requires {write_mb_s}")


def write_probe(path: Path) -> None:
    """Writes a file to the disk and deletes it."""
    try:
        with open(path, "wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
