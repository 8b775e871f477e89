"""How a process fails: bad input in one line, anything else written down in the run's folder, with the stacks of a hang."""
from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from ebm.files import write_atomically
from launch.job.process import leave_verdict, node_name, start_name

if TYPE_CHECKING:
    from ebm.train.distributed import World

BAD_INPUT = 2  # the exit code of a command line that is refused
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class Refused(SystemExit):
    """The exit of a process that has given its reason in one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code)
        self.message = message


@contextlib.contextmanager
def checking(world: World | None = None) -> Iterator[None]:
    """Context of all checks before the work: a ValueError or OSError there is the user's to mend, and ends in one line.

    With a ``world``, an error on any process ends all of them, so no process may wait for another inside.
    """
    fault = ""
    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException) as error:
        fault = missing_value(error) or " ".join(str(error).split()) or repr(error)
    if world is not None:
        fault = next(filter(None, world.all_gather(fault)), "")
    if fault:
        refuse(fault, world=world)


def refuse(message: str, *, code: int = BAD_INPUT, world: World | None = None, alone: bool = False) -> NoReturn:
    """Prints ``message`` on one line and ends this process with an exit code.

    It is printed once: by rank 0 if all of ``world`` end so, by the process itself if it is ``alone`` in this, else by the
    first process of the node.
    """
    if alone or (world.is_main if world is not None else os.environ.get("LOCAL_RANK", "0") == "0"):
        print(f"error: {message}", file=sys.stderr, flush=True)
    leave_verdict("failed")
    raise Refused(code, message)


@contextlib.contextmanager
def recording(world: World, *, key: str = "cuda_graph") -> Iterator[None]:
    """Context in which work that can't be recorded ends this process in one line: this one alone, as another's GPU may have
    more memory. ``key`` is that of a study."""
    from ebm.graph import NotRecordableError  # only here: it imports PyTorch, which a login node does without

    try:
        yield
    except NotRecordableError as error:
        refuse(f"rank {world.rank} on {node_name()}: {error} (in a study, {key}=false)", code=1, alone=True)


def missing_value(error: Exception) -> str:
    """OmegaConf's error about a mandatory value, or a reference to a key that isn't there, as a line that says what is missing;
    "" for any other error."""
    if isinstance(error, InterpolationKeyError):
        missing = re.search(r"'(.*?)'", str(error))
        return f"{error.full_key}: ${{{missing[1] if missing else '…'}}} refers to a key that the config does not have"
    if not isinstance(error, MissingMandatoryValue):
        return ""
    key = error.full_key or str(error).split()[-1]
    return f"{key}: no value is given, and there is no default; add {key}=<value>"


@contextlib.contextmanager
def record_failures(folder: Path, *, key: str = "run") -> Iterator[None]:
    """Context whose failure is written to ``folder``/failure.json, the folder that ``key`` names, by the first process that
    fails.

    A refused command line is not written down: whoever typed it has read why. That of a study's job is, as nobody has. An
    unexpected exception ends the process at once: what it would wait for may never come. It is printed with its traceback,
    unless a folder can't be written.
    """
    try:
        yield
    except Refused as refusal:
        if refusal.code != BAD_INPUT or {"EBM_JOB", "EBM_STUDY"} & os.environ.keys():
            write_failure(folder, refusal.message)
        raise
    except Exception as error:
        text, said = traceback.format_exc(), f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            place = Path(os.fsdecode(error.filename)) if error.filename else folder
            own = place.resolve().is_relative_to(folder.resolve())  # else it may be anyone's, such as a compiler's cache
            said = f"{key}: {place}: {error.strerror}" if own else f"{place}: {error.strerror}"
            print(f"error: {said}" if own else text, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
        import torch  # which a process that only submits is spared

        from ebm.train.distributed import lost_peer

        if not lost_peer(error):  # the lost process has recorded its own reason, or nobody knows it
            broken = isinstance(error, torch.AcceleratorError)  # a GPU that fell off the bus, as likely as a kernel's fault
            leave_verdict(f"avoid {node_name()}" if broken else "failed")
            write_failure(folder, said, text)
        sys.stdout.flush()
        os._exit(1)


def write_failure(folder: Path, error: str, text: str = "") -> None:
    """Writes failure.json unless another process of this start has, or there is neither a run nor a job yet."""
    path = folder / "failure.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text()).get("start") == start_name():
            return
    if not (folder.is_dir() or "EBM_JOB" in os.environ):
        return
    content = {"start": start_name(), "rank": int(os.environ.get("RANK", "0")), "node": node_name(), "error": error,
               "traceback": text, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk, say: the log has it too
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=2).encode())


@contextlib.contextmanager
def watchdog(folder: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """Context with a function that must be called at least every ``seconds``; else the stacks of all threads are written to the
    folder and the process ends.

    Python's faulthandler watches from a C thread, so even a call that never returns to Python is ended.
    """
    with open(folder / f"stacks-rank{os.environ.get('RANK', '0')}.txt", "a", encoding="utf-8") as file:
        armed = -math.inf

        def alive() -> None:
            nonlocal armed
            if time.monotonic() - armed > seconds / 20:  # it starts a thread each time: not at every short step
                faulthandler.dump_traceback_later(seconds, exit=True, file=file)
                armed = time.monotonic()

        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()
