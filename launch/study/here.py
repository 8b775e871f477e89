"""A study without SLURM: the same jobs as processes on this machine, one per GPU at a time, or one after another."""
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

from launch.job.faults import write_failure
from launch.study.cluster import available
from launch.study.point import Point, as_point, counted, error_line, last_record

if TYPE_CHECKING:
    from launch.study.submit import Study

STUDY = "study"  # the name of the process that starts the others; a job's is its number
LOCAL = "local "  # before a job's number in the study's record
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Life:
    """A file with the id of a process that keeps it locked while it lives, so that a killed one is never taken for alive."""

    path: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Life:
        """The file of a study's job, by its number, or of its `STUDY` process."""
        return cls(folder / "logs" / f"{name}.pid")

    @contextlib.contextmanager
    def held(self) -> Iterator[TextIO]:
        """Locks it for this process and all that inherit the yielded file, as long as any of them lives."""
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
        except OSError:  # a file system without locks: its id must do
            with contextlib.suppress(OSError, ValueError):
                self.send(0)
                return True
        return False

    def end(self) -> None:
        """Asks the process to save and exit; raises OSError if it runs on another machine."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Sends the process a signal, or with 0 checks that it exists; raises OSError if it runs on another machine."""
        pid, host = self.path.read_text(encoding="utf-8").split(maxsplit=1)
        if host != socket.gethostname():
            raise OSError(f"--cancel: the study runs on {host}; cancel it there")
        os.kill(int(pid), number)


def life_text(pid: int) -> str:
    """The content of the file of a process."""
    return f"{pid} {socket.gethostname()}"


def state(folder: Path, point: Point, job: str) -> str:
    """The state of a point: from its folder and, for a study that runs without SLURM, from its processes."""
    if point.done():
        return "COMPLETED"
    life = Life.of(folder, job.removeprefix(LOCAL))
    if life.lasts():
        return "RUNNING"
    if (life.path.exists() or not job.startswith(LOCAL)) and point.reason():  # and the failure is not an earlier study's
        return "FAILED"
    if not job.startswith(LOCAL):
        return "unknown"
    return "PENDING" if Life.of(folder, STUDY).lasts() else "CANCELLED"


def cancel(folder: Path, points: list[dict[str, Any]]) -> int:
    """Ends a study that runs without SLURM, as Ctrl-C in its shell does, or the jobs that a killed one has left; of how many
    points of the study's record.

    Raises OSError if it runs on another machine.
    """
    alive = [one for one in points if one["job"].startswith(LOCAL)
             and state(folder, as_point(one), one["job"]) in ("RUNNING", "PENDING")]
    jobs = [life for path in (folder / "logs").glob("*.pid") if path.stem != STUDY and (life := Life(path)).lasts()]
    study = Life.of(folder, STUDY)
    for life in [study] if study.lasts() else jobs:
        life.end()
    return len(alive)


def run_here(study: Study) -> bool:
    """Runs the points that are not done; whether all have succeeded.

    Ctrl-C, SIGTERM and the closing of the shell end the running jobs, which save first, and then this process, by SystemExit.
    """
    places, waiting = find_places(), waiting_points(study)
    print(f"{headline('running', waiting, places)}; state and logs: python launch/status.py {os.path.relpath(study.folder)}",
          flush=True)
    study.jobs |= {point.folder: f"{LOCAL}{number}" for number, point in enumerate(study.points) if point in waiting}
    study.save()
    with (Life.of(study.folder, STUDY).held() as file, catch_stops() as asked,
          tqdm(total=len(waiting), desc="study", unit="job") as bar):
        print(life_text(os.getpid()), end="", file=file, flush=True)
        failed = run_points(study, waiting, places, asked, bar)
    if asked:
        print(f"stopped; to resume: python launch/status.py {os.path.relpath(study.folder)} --resubmit failed")
        raise SystemExit(128 + asked[0])
    return not failed


def plan_here(study: Study) -> str:
    """What `run_here` would do: the jobs, and how many at a time."""
    waiting = waiting_points(study)
    lines = [f"{'point':<60} {'kind':<7} {'job':<5} after"]
    for point in study.points:
        after = point.of.label if point.of in waiting and point in waiting else ""
        lines.append(f"{point.title:<60.60} {point.kind:<7} {'' if point in waiting else 'done':<5} {after}".rstrip())
    lines += [f"{study.cfg.report}: after all of these have ended"] if study.cfg.report else []
    return "\n".join([*lines, "", headline("would run", waiting, find_places())])


def waiting_points(study: Study) -> list[Point]:
    """The points that are not done."""
    return [point for point in study.points if study.jobs[point.folder] != "done"]


def find_places() -> list[int | None]:
    """The GPUs on each of which one job runs at a time, or one place without a GPU."""
    import torch  # only here: a process that submits does without it

    return list(range(torch.cuda.device_count())) or [None]


def headline(verb: str, waiting: list[Point], places: list[int | None]) -> str:
    """How many jobs run on this machine, and why here."""
    why = "cluster=here" if available() else "no sbatch found"
    return f"{why}: {verb} {counted(len(waiting), 'job')} on this machine, {len(places)} at a time"


@contextlib.contextmanager
def catch_stops() -> Iterator[list[int]]:
    """Context in which signals to stop are only added to the list."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as under nohup
    for number in heard:
        signal.signal(number, lambda received, _frame: asked.append(received))
    try:
        yield asked
    finally:
        for number in heard:
            signal.signal(number, before[number])


def run_points(study: Study, waiting: list[Point], places: list[int | None], asked: list[int], bar: Any) -> set[Path]:
    """Starts waiting points on free places until all are done or it is ``asked`` to stop; the folders of those that failed."""
    running: dict[int | None, tuple[Point, subprocess.Popen[bytes]]] = {}
    failed: set[Path] = set()
    passed = 0  # signals that were passed on
    shown = ""
    while running or (waiting and not asked):
        for place, (point, process) in list(running.items()):
            if process.poll() is not None:
                del running[place]
                tell(bar.update)
                if not point.done() and not asked:
                    failed.add(point.folder)
                    if not point.reason():
                        write_failure(point.folder, failure(study, point, process.returncode))
                    tell(bar.write, f"failed: {point.label}: {point.reason()}")
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
            for _, process in running.values():  # a closing shell sends SIGHUP twice: only a second Ctrl-C kills
                process.send_signal(signal.SIGKILL if asked.count(signal.SIGINT) > 1 else signal.SIGTERM)
            tell(bar.write, "stopping: running jobs save first; Ctrl-C again ends them at once")
        if (now := ", ".join(progress_text(point) for point, _ in running.values())) != shown:
            tell(bar.set_postfix_str, shown := now)
        time.sleep(0.3)
    return failed


def tell(say: Callable[..., object], *words: str) -> None:
    """Prints by ``say``; if nobody reads it, as after a terminal was closed or a pipe has ended, all output ends here."""
    try:
        say(*words)
    except OSError:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def start_point(study: Study, point: Point, place: int | None) -> subprocess.Popen[bytes]:
    """Starts a point's process, on one GPU if there is one, with its output in the study's logs, named as by submitit."""
    number = study.jobs[point.folder].removeprefix(LOCAL)
    point.folder.mkdir(parents=True, exist_ok=True)  # it records a failure here
    for old in (point.folder / "failure.json", *point.folder.glob("stacks-rank*.txt")):  # an earlier start's
        old.unlink(missing_ok=True)
    gpu = {} if place is None else {"CUDA_VISIBLE_DEVICES": visible_gpu(place)}
    command, log = study.task(point).command, str(study.folder / "logs" / f"{number}_0_log")
    with Life.of(study.folder, number).held() as file, open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        out.write(f"{shlex.join(command)}\n".encode())
        out.flush()
        # In a session of its own: Ctrl-C in the shell reaches it only through this process, once.
        process = subprocess.Popen(command, env={**os.environ, **gpu, "EBM_STUDY": study.folder.name}, stdout=out, stderr=err,
                                   stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[file.fileno()])
        print(life_text(process.pid), end="", file=file, flush=True)
    return process


def failure(study: Study, point: Point, code: int) -> str:
    """Why a job failed that has recorded no reason itself, as when its config could not be composed, or it was killed."""
    number = study.jobs[point.folder].removeprefix(LOCAL)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"no results, exit code {code}; see its log"
    return error_line(study.folder / "logs" / f"{number}_0_log.err") or how


def visible_gpu(place: int) -> str:
    """A GPU's name for CUDA_VISIBLE_DEVICES, among those visible to this process."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return mine.split(",")[place].strip() if mine else str(place)


def progress_text(point: Point) -> str:
    """The label and the progress of a running point."""
    step = last_record(point.folder / "metrics.jsonl").get("step") if point.kind == "train" else None
    return point.label if step is None else f"{point.label} {step:,} of {point.steps:,}"
