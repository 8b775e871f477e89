"""A study where there is no SLURM: the same jobs as processes of this machine, one for each GPU at a time, or in turn."""
from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from launch.study.point import Point, last_record

if TYPE_CHECKING:
    from launch.study.submit import Study

STUDY = "study"  # the process that starts the others; a job's is known by its number
LOCAL = "local "  # before a job's number in the study's record
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Life:
    """A file that is locked while a process lives, and says which: so it is never believed of one that was killed."""

    path: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Life:
        """That of a study's job, by its number, or of its `STUDY`."""
        return cls(folder / "logs" / f"{name}.pid")

    @contextlib.contextmanager
    def held(self) -> Iterator[TextIO]:
        """Locks it for this process and for whoever inherits the file that is yielded, as long as any of them lives."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "w", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def lasts(self) -> bool:
        """Whether the process lives."""
        try:
            with open(self.path, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks: its number must do
            with contextlib.suppress(OSError, ValueError):
                self.send(0)
                return True
        return False

    def end(self) -> None:
        """Asks the process to save and leave; raises OSError where it lives on another machine."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Sends the process a signal, or with 0 asks whether there is one; raises OSError where that is not here."""
        pid, host = self.path.read_text(encoding="utf-8").split(maxsplit=1)
        if host != socket.gethostname():
            raise OSError(f"--cancel: the study runs on {host}; cancel it there")
        os.kill(int(pid), number)


def life_text(pid: int) -> str:
    """What `Life` says of a process."""
    return f"{pid} {socket.gethostname()}"


def state(folder: Path, point: Point, job: str) -> str:
    """How a point stands by what lies in its folder and, of a study that runs without SLURM, by its processes."""
    if point.done():
        return "COMPLETED"
    life = Life.of(folder, job.removeprefix(LOCAL))
    if life.lasts():
        return "RUNNING"
    if (life.path.exists() or not job.startswith(LOCAL)) and point.reason():  # not an earlier study's
        return "FAILED"
    if not job.startswith(LOCAL):
        return "unknown"
    return "PENDING" if Life.of(folder, STUDY).lasts() else "CANCELLED"


def cancel(folder: Path) -> int:
    """Ends a study that runs without SLURM, as Ctrl-C in its shell does, or what one that was killed has left; how many jobs
    ran. Raises OSError where it runs on another machine."""
    jobs = [life for path in (folder / "logs").glob("*.pid") if path.stem != STUDY and (life := Life(path)).lasts()]
    study = Life.of(folder, STUDY)
    for life in [study] if study.lasts() else jobs:
        life.end()
    return len(jobs)


def run_here(study: Study) -> bool:
    """Runs the points that are not done; says whether all have succeeded.

    Ctrl-C, SIGTERM and a shell that closes end what runs, which saves first, and then this process, by SystemExit.
    """
    import torch  # here alone: a process that submits is spared it

    places: list[int | None] = list(range(torch.cuda.device_count())) or [None]
    waiting = [point for point in study.points if study.jobs[point.folder] != "done"]
    print(f"no sbatch here: {len(waiting)} jobs run on this machine, {len(places)} at a time; "
          f"logs and state: python launch/status.py {os.path.relpath(study.folder)}", flush=True)
    study.jobs |= {point.folder: f"{LOCAL}{number}" for number, point in enumerate(study.points) if point in waiting}
    study.save()
    with (Life.of(study.folder, STUDY).held() as file, catch_stops() as asked,
          tqdm(total=len(waiting), desc="study", unit="job") as bar):
        print(life_text(os.getpid()), end="", file=file, flush=True)
        failed = run_points(study, waiting, places, asked, bar)
    if asked:
        print(f"stopped; what is missing: python launch/status.py {os.path.relpath(study.folder)} --resubmit failed")
        raise SystemExit(128 + asked[0])
    return not failed


@contextlib.contextmanager
def catch_stops() -> Iterator[list[int]]:
    """Context in which signals to stop only lengthen the list."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as nohup has it
    for number in heard:
        signal.signal(number, lambda received, _frame: asked.append(received))
    try:
        yield asked
    finally:
        for number in heard:
            signal.signal(number, before[number])


def run_points(study: Study, waiting: list[Point], places: list[int | None], asked: list[int], bar: Any) -> set[Path]:
    """Starts what waits wherever a place is free, until all is done or ``asked`` to stop; the folders of what has failed."""
    running: dict[int | None, tuple[Point, subprocess.Popen[bytes]]] = {}
    failed: set[Path] = set()
    passed = 0  # of the signals, how many were passed on
    shown = ""
    while running or (waiting and not asked):
        for place, (point, process) in list(running.items()):
            if process.poll() is not None:
                del running[place]
                tell(bar.update)
                if not point.done() and not asked:
                    failed.add(point.folder)
                    tell(bar.write, f"failed: {point.label}: {point.reason() or 'it left no word; see its log'}")
        for place in [place for place in places if place not in running and not asked]:
            ready = next((p for p in waiting if p.of is None or p.of.done() or p.of.folder in failed), None)
            if ready is None:
                break
            waiting.remove(ready)
            if ready.of is not None and not ready.of.done():
                failed.add(ready.folder)
                tell(bar.update)
                continue
            running[place] = (ready, start_point(study, ready, place))
        if len(asked) > passed:
            passed = len(asked)
            for _, process in running.values():  # a shell that closes sends SIGHUP twice: only Ctrl-C may be in a hurry
                process.send_signal(signal.SIGKILL if asked.count(signal.SIGINT) > 1 else signal.SIGTERM)
            tell(bar.write, "stopping: what runs saves first; Ctrl-C again ends it at once")
        if (now := ", ".join(progress_text(point) for point, _ in running.values())) != shown:
            tell(bar.set_postfix_str, shown := now)
        time.sleep(0.3)
    return failed


def tell(say: Callable[..., object], *words: str) -> None:
    """Says something; where nobody reads it, as in a terminal that is closed or a pipe that has ended, no more from here on."""
    try:
        say(*words)
    except OSError:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def start_point(study: Study, point: Point, place: int | None) -> subprocess.Popen[bytes]:
    """A point's process, on one GPU where there is one, with its output in the study's logs, as submitit names them."""
    number = study.jobs[point.folder].removeprefix(LOCAL)
    point.folder.mkdir(parents=True, exist_ok=True)  # where it leaves word if it fails
    gpu = {} if place is None else {"CUDA_VISIBLE_DEVICES": visible_gpu(place)}
    command, log = study.task(point).command, str(study.folder / "logs" / f"{number}_0_log")
    with Life.of(study.folder, number).held() as file, open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        out.write(f"{shlex.join(command)}\n".encode())
        out.flush()
        # A session of its own: Ctrl-C in the shell reaches it through this process alone, once.
        process = subprocess.Popen(command, env={**os.environ, **gpu, "EBM_STUDY": study.folder.name}, stdout=out, stderr=err,
                                   stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[file.fileno()])
        print(life_text(process.pid), end="", file=file, flush=True)
    return process


def visible_gpu(place: int) -> str:
    """A GPU's name for CUDA_VISIBLE_DEVICES, among those that this process may see."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return mine.split(",")[place].strip() if mine else str(place)


def progress_text(point: Point) -> str:
    """A running point in a few words."""
    step = last_record(point.folder / "metrics.jsonl").get("step") if point.kind == "train" else None
    return point.label if step is None else f"{point.label} {step:,} of {point.steps:,}"
