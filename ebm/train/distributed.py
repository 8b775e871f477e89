"""The processes of one run: which one this is, what they exchange, and how they find each other."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers; ``device`` is where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, in place, same shape."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of ``tensors`` by its mean over all processes, in a single all-reduce."""
        if self.size > 1:
            flat = _flatten_dense_tensors(tensors)
            dist.all_reduce(flat)
            torch._foreach_copy_(list(tensors), list(_unflatten_dense_tensors(flat.div_(self.size), tensors)))

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of ``tensors`` by rank 0's."""
        if self.size > 1:
            flat = _flatten_dense_tensors([tensor.detach() for tensor in tensors])
            dist.broadcast(flat, 0)
            torch._foreach_copy_(list(tensors), list(_unflatten_dense_tensors(flat, tensors)))

    def broadcast_object(self, value: T) -> T:
        """Rank 0's ``value`` (small), on every process."""
        return self.all_gather(value)[0]

    def all_gather(self, value: T) -> list[T]:
        """Every process's ``value`` (small), in order of rank, on every process."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Returns once every process has called it."""
        self.all_gather(None)  # NCCL's own barrier only queues on the GPU

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model wrapped so that its gradients are means over the processes; itself where there is only one."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def gather(self, values: T) -> list[T]:
        """Every process's ``values`` (on the CPU), in order of rank, on rank 0; empty elsewhere."""
        if self.size == 1:
            return [values]
        gathered: list[T] = [values] * self.size
        dist.gather_object(values, gathered if self.is_main else None)
        return gathered if self.is_main else []


class MissingPeersError(OSError):
    """Processes that did not join in time; ``ranks`` lists them."""

    def __init__(self, ranks: list[int], seconds: float) -> None:
        super().__init__(f"rank {', '.join(map(str, ranks))} did not join within {seconds:g} s")
        self.ranks = ranks


def wait_for_peers(rank: int, size: int, *, seconds: float) -> Any:
    """The store at which every process has reported; raises MissingPeersError naming those that haven't in ``seconds``.

    Without this a process group waits for a missing peer and doesn't say which one it is.
    """
    wait = timedelta(seconds=seconds)
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun has made one
            store = next(rendezvous("env://", timeout=wait))[0]
        else:  # ours does not wait for everyone itself, as it could not say who is missing
            store = dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, rank == 0, wait, wait_for_workers=False)
    except dist.DistError as error:  # nobody answers where rank 0 should
        raise MissingPeersError([0], seconds) from error
    names = [f"here/{other}" for other in range(size)]
    store.set(names[rank], "yes")
    try:
        store.wait(names, wait)
    except dist.DistError as error:
        raise MissingPeersError([other for other, name in enumerate(names) if not store.check([name])], seconds) from error
    return store


@contextlib.contextmanager
def join(*, device: str, timeout_seconds: float, peers_seconds: float) -> Iterator[World]:
    """Joins the process group that RANK, WORLD_SIZE and LOCAL_RANK describe (one process where they are unset).

    ``device`` is "cuda", "cpu" or "auto". Raises ValueError for any other, or for more processes than GPUs, and
    MissingPeersError where not all processes join within ``peers_seconds``.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in
                         (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    own_device = choose_device(device, local)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)  # before NCCL and FFCV, which take the current device
        # Some of cuDNN's algorithms add up in no fixed order; without them a resumed run ends with the bits of one that wasn't
        # stopped, and training takes no longer (docs/bench.md).
        torch.backends.cudnn.deterministic = True
    elif int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:  # torchrun would leave each process one thread
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
    if size > 1:
        backend = "nccl" if own_device.type == "cuda" else "gloo"
        store = wait_for_peers(rank, size, seconds=peers_seconds)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds))
    yield World(rank=rank, size=size, device=own_device)
    if size > 1:  # not after a fault: it would wait for processes that may never answer
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int) -> torch.device:
    """The device of a process: its own GPU, or the CPU; raises ValueError on every process where one of them has none."""
    check_device_name(device)
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    # One visible GPU per process is how some clusters bind them; otherwise GPU number = local rank.
    count = torch.cuda.device_count()
    if count == 1 and os.environ.get("SLURM_STEP_GPUS"):
        return torch.device("cuda", 0)
    processes = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if processes > count:
        raise ValueError(f"device: {device!r} is not accepted; {processes} processes on this node need as many GPUs, and "
                         f"{count} are visible; start fewer processes or choose device=cpu")
    return torch.device("cuda", local_rank)


def check_device_name(device: str) -> None:
    """Raises ValueError unless it is auto, cuda or cpu."""
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device: {device!r} is not accepted; choose auto, cuda or cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def lost_peer(error: BaseException) -> bool:
    """Whether an exception means that another process is gone or silent, so that the fault is there, not here."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


class Lagged:
    """A step's numbers, read one step later, so that nobody waits for the device to finish the step in progress."""

    def __init__(self) -> None:
        self._waiting: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, step: int, values: Tensor) -> tuple[int, list[float]] | None:
        """Stores this step's numbers and returns the previous step and its numbers, or None where there are none unread."""
        previous = self.latest()
        host, event = values.to("cpu", non_blocking=True), None
        if values.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._waiting = (step, host, event)
        return previous

    def latest(self) -> tuple[int, list[float]] | None:
        """The step and the numbers stored last, waiting for them, or None where they have been read already."""
        if self._waiting is None:
            return None
        (step, host, event), self._waiting = self._waiting, None
        if event is not None:
            event.synchronize()
        return step, host.tolist()
