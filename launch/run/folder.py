"""The folder of one run: its config, checkpoints and metrics, all that resuming, sampling and evaluating need."""
from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ebm.files import write_atomically
from ebm.train.checkpoint import Checkpoints
from launch.job.process import newest_step
from launch.run.identity import difference

COMMAND = "# started with: "  # how the first line of a run's config begins


@dataclass(frozen=True)
class RunFolder:
    """The place of a run on disk."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """One record a line."""
        return self.path / "metrics.jsonl"

    def checkpoints(self, keep: int = 1) -> Checkpoints:
        """The run's checkpoints; ``keep`` matters to the one process that saves."""
        return Checkpoints(self.path / "checkpoints", keep=keep)

    def config(self) -> DictConfig:
        """The config it was trained with; raises FileNotFoundError if there is none."""
        if not self.config_file.exists():
            raise FileNotFoundError(f"run: {self.path} holds no config.yaml; give the folder of a trained run")
        config = OmegaConf.load(self.config_file)
        assert isinstance(config, DictConfig)
        return config

    def precision(self) -> str | None:
        """The precision in which the run was begun, None if it has no checkpoint yet."""
        return str(self.config().precision) if self.config_file.exists() and newest_step(self.path) else None

    def command(self) -> str:
        """The command that last started training here, "" if it is unknown."""
        first = self.config_file.read_text(encoding="utf-8").partition("\n")[0] if self.config_file.exists() else ""
        return first.removeprefix(COMMAND) if first.startswith(COMMAND) else ""

    def claim(self, config: DictConfig, *, steps: int, command: str) -> None:
        """Writes the config of a run of ``steps`` steps, and the ``command`` that starts it, into the folder.

        Raises ValueError if a checkpoint there has another config or a later step.
        """
        if self.config_file.exists() and self.checkpoints().paths():
            differing = difference(self.config(), config)
            if differing:
                raise ValueError(f"run: {self.path} holds a checkpoint of another config: {'; '.join(differing)}; "
                                 "give the old values, choose another run=<folder>, or delete this one"
                                 + (f"; it was last started with: {self.command()}" if self.command() else ""))
            if (made := newest_step(self.path)) > steps:
                raise ValueError(f"budget.images: {config.budget.images} is not accepted; {self.path} has seen "
                                 f"{made * config.budget.batch} already: give more, or choose another run=<folder>")
        self.path.mkdir(parents=True, exist_ok=True)
        header = COMMAND + " ".join(command.splitlines())
        write_atomically(self.config_file, f"{header}\n{OmegaConf.to_yaml(config)}".encode())

    @contextlib.contextmanager
    def held(self, *, wait_seconds: float = 0) -> Iterator[None]:
        """Context in which no other process trains here; raises ValueError, naming the other, if one still does after
        ``wait_seconds``.

        The kernel releases the lock when its holder dies, so no stale lock remains.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a+", encoding="utf-8") as file:
            until = time.monotonic() + wait_seconds
            try:
                while True:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() >= until:
                            raise
                        time.sleep(0.5)
            except BlockingIOError as error:
                file.seek(0)
                raise ValueError(f"run: {self.path} is being trained by {file.read().strip() or 'another process'}; "
                                 "wait for it or choose another run=<folder>") from error
            except OSError as error:  # a file system without locks
                print(f"note: {self.path} can't be locked ({error}); make sure that no other job trains there", file=sys.stderr)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    def checkpoint(self, which: str) -> Path:
        """Path of the checkpoint "newest", "best", or of the given name; raises FileNotFoundError if there is none."""
        checkpoints = self.checkpoints()
        if which == "newest":
            path = checkpoints.newest()
        elif which == "best":
            best = checkpoints.best()
            path = best[0] if best else None
        else:
            path = Path(which) if "/" in which else checkpoints.folder / which
        if path is None or not path.is_file():
            raise FileNotFoundError(f"checkpoint: {which!r} is not in {checkpoints.folder}; "
                                    f"there are {', '.join(p.name for p in checkpoints.paths()) or 'none'}")
        return path
