"""Weights & Biases beside a run, the run's side: a separate process reads what the run writes and passes it on.

The run itself never imports `wandb`, waits for it only at its end and for a limited time, and is not affected if it fails.
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
SOON = 5.0  # seconds that a failed or stopped run waits


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The settings of tracking; ``mode`` is "disabled" if W&B isn't installed."""

    mode: str
    project: str
    entity: str | None
    checkpoints: bool
    start_seconds: float
    finish_seconds: float


def tracking_of(cfg: DictConfig) -> Tracking:
    """The tracking that the config asks for; raises ValueError for a value that is not accepted."""
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
    """The process that mirrors a run, None if there is none."""

    process: subprocess.Popen[bytes] | None

    def end(self, how: str, *, code: int, error: str = "", records: Sequence[Path] = (), wait: float = SOON) -> None:
        """Reports how the run has ended, and waits for W&B at most ``wait`` seconds; later calls do nothing."""
        process, self.process = self.process, None
        if process is None or process.stdin is None:
            return
        last = {"how": how, "code": code, "error": error, "records": [str(path) for path in records]}
        with contextlib.suppress(OSError):  # it has died: nothing is lost, metrics.jsonl holds everything
            process.stdin.write(json.dumps(last).encode() + b"\n")
            process.stdin.close()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            print(f"note: W&B is not finished after {wait:g} s and continues in the background; tools/sync.py --online uploads "
                  "what it can't", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # the work is done; only the waiting is cut short
            pass


@contextlib.contextmanager
def mirroring(tracking: Tracking, *, folder: Path, name: str, kind: str, config: DictConfig) -> Iterator[Mirror]:
    """Context in which the work in ``folder`` is mirrored as W&B's run ``name`` of job type ``kind``. For one process only."""
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
    """Publishes the results of finished work by its JSON record."""
    with mirroring(tracking, folder=record.parent, name=name, kind=kind, config=config) as mirror:
        mirror.end("done", code=0, records=[record], wait=tracking.finish_seconds)


def start_mirror(tracking: Tracking, *, folder: Path, name: str, kind: str,
                 config: DictConfig) -> subprocess.Popen[bytes] | None:
    """Starts the mirroring process with a description of the run; None if it can't be started."""
    spec = {**asdict(tracking), "folder": str(folder.resolve()), "name": name, "kind": kind, "overrides": command_overrides(),
            "config": OmegaConf.to_container(config, resolve=True), "pid": os.getpid(),
            "group": os.environ.get("WANDB_RUN_GROUP") or os.environ.get("EBM_STUDY"),
            "about": {"node": node_name(), "job": job_number()}}
    try:  # in a session of its own: Ctrl-C and a job's signals are for the run, which reports how it ends
        process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("mirror.py"))], stdin=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec).encode() + b"\n")
        process.stdin.flush()
    except OSError as error:
        print(f"note: no W&B: {error}; metrics.jsonl holds everything", file=sys.stderr, flush=True)
        return None
    # Forwarded by this process, so that a reader of its output need not also wait for W&B's.
    threading.Thread(target=print_lines, args=(process,), daemon=True).start()
    return process


def print_lines(process: subprocess.Popen[bytes]) -> None:
    """Prints the error output of a process line by line."""
    assert process.stderr is not None
    for line in process.stderr:
        print(f"\n{line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)


def command_overrides() -> list[str]:
    """The overrides on the command line, without those of places, tracking and counts."""
    asked = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [one for one in asked if one.split("=")[0].lstrip("+").split(".")[0] not in ("run", "out", "track", "n", "batch")]
