"""Weights & Biases beside a run, from the run's side: a process of its own reads what the run writes and passes it on.

The run itself never imports `wandb`, waits for it only at its end and for a set time, and does not notice if it fails.
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ebm.extras import how_to_install
from launch.config.build import plain
from launch.job.faults import Refused
from launch.job.process import job_number, node_name

MODES = ("auto", "online", "offline", "disabled")
ALIASES = {"": "auto", "dryrun": "offline", "run": "online", "shared": "online"}  # W&B's older and other words
SOON = 5.0  # seconds that a run waits which has failed or was asked to stop


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What the config says of W&B; ``mode`` is "disabled" where it isn't installed."""

    mode: str
    project: str
    entity: str | None
    checkpoints: bool
    start_seconds: float
    finish_seconds: float


def tracking_of(cfg: DictConfig) -> Tracking:
    """The config's tracking; raises ValueError for a value that is not accepted."""
    track = cfg.track
    mode, there = ALIASES.get(track.mode, track.mode), importlib.util.find_spec("wandb") is not None
    if mode not in MODES:
        raise ValueError(f"track.mode: {track.mode!r} is not accepted; choose {', '.join(MODES)}")
    if not there and mode in ("online", "offline") and track.mode != os.environ.get("WANDB_MODE"):
        raise ValueError(f"track.mode: {track.mode!r} is not accepted; "
                         + how_to_install("wandb", "wandb", "online and offline tracking"))
    seconds = {name: plain(cfg, f"track.{name}", float, least=0) for name in ("start_seconds", "finish_seconds")}
    return Tracking(mode=mode if there else "disabled", project=plain(cfg, "track.project", str),
                    entity=None if track.entity is None else plain(cfg, "track.entity", str),
                    checkpoints=plain(cfg, "track.checkpoints", bool), **seconds)


@dataclass
class Mirror:
    """The process that mirrors a run, as long as there is one."""

    process: subprocess.Popen[bytes] | None

    def end(self, how: str, *, code: int, error: str = "", records: Sequence[Path] = (), wait: float = SOON) -> None:
        """Says how the run has ended, and waits for W&B at most ``wait`` seconds; later calls say nothing more."""
        process, self.process = self.process, None
        if process is None or process.stdin is None:
            return
        last = {"how": how, "code": code, "error": error, "records": [str(path) for path in records]}
        with contextlib.suppress(OSError):  # it has died: nothing is lost that isn't in metrics.jsonl
            process.stdin.write(json.dumps(last).encode() + b"\n")
            process.stdin.close()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            print(f"note: W&B is not done after {wait:g} s and is left to itself; what it can't upload tools/sync.py --online "
                  "will", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # the work is done, and only the waiting is cut short
            pass


@contextlib.contextmanager
def mirroring(tracking: Tracking, *, folder: Path, name: str, kind: str, config: DictConfig) -> Iterator[Mirror]:
    """Context in which the work in ``folder`` is mirrored as W&B's run ``name``; ``kind`` is its job type. For one process."""
    off = tracking.mode == "disabled"
    mirror = Mirror(None if off else start_mirror(tracking, folder=folder, name=name, kind=kind, config=config))
    try:
        yield mirror
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else code
        said = error.message if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        mirror.end("failed", code=code, error=said)
        raise
    mirror.end("trained", code=0, wait=tracking.finish_seconds)


def publish(tracking: Tracking, record: Path, *, name: str, kind: str, config: DictConfig) -> None:
    """Passes on what a finished piece of work has left, by the JSON file that tells of it."""
    with mirroring(tracking, folder=record.parent, name=name, kind=kind, config=config) as mirror:
        mirror.end("done", code=0, records=[record], wait=tracking.finish_seconds)


def start_mirror(tracking: Tracking, *, folder: Path, name: str, kind: str,
                 config: DictConfig) -> subprocess.Popen[bytes] | None:
    """The mirroring process, told all about the run; None where it can't be started."""
    spec = {**asdict(tracking), "folder": str(folder.resolve()), "name": name, "kind": kind, "overrides": command_overrides(),
            "config": OmegaConf.to_container(config, resolve=True), "pid": os.getpid(),
            "group": os.environ.get("WANDB_RUN_GROUP") or os.environ.get("EBM_STUDY"),
            "about": {"node": node_name(), "job": job_number()}}
    try:  # a session of its own: Ctrl-C and a job's signals are for the run, which says what follows from them
        process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("mirror.py"))], stdin=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec).encode() + b"\n")
        process.stdin.flush()
    except OSError as error:
        print(f"note: no W&B: {error}; metrics.jsonl holds everything", file=sys.stderr, flush=True)
        return None
    # Passed on by us, so that who reads our output to its end need not wait for W&B's as well.
    threading.Thread(target=print_lines, args=(process,), daemon=True).start()
    return process


def print_lines(process: subprocess.Popen[bytes]) -> None:
    """Prints what a process says, on lines of its own."""
    assert process.stderr is not None
    for line in process.stderr:
        print(f"\n{line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)


def command_overrides() -> list[str]:
    """What was asked for on the command line, less where it lies and how it is watched."""
    asked = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [one for one in asked if one.split("=")[0].lstrip("+").split(".")[0] not in ("run", "out", "track", "n", "batch")]
