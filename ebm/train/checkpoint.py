"""Checkpoints that no kill can damage: written to a temporary file, named by their hash and moved into place atomically."""
from __future__ import annotations

import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ebm.accepted import whole
from ebm.files import write_atomically

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")
State = dict[str, Any]


class DamagedCheckpointError(ValueError):
    """A checkpoint's bytes don't have the hash in its name, or can't be read."""


def load(path: Path, device: torch.device | str = "cpu") -> State:
    """The state saved in ``path``; raises DamagedCheckpointError if it is not what was written, ValueError if the file's name
    has no hash to check it by."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: not a checkpoint's name, step-<9 digits>-<16 digits of its hash>.pt, which is needed to "
                         "check its content")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:16] != match[2]:
        raise DamagedCheckpointError(f"{path}: damaged, its content doesn't match the hash in its name")
    state: State = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state


class Checkpoints:
    """The checkpoints of one run: the last ``keep`` and the best by held-out loss."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        whole(1, keep=keep)
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        return sorted((path for path in self.folder.glob("step-*.pt") if NAME.fullmatch(path.name)), reverse=True)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes the state after ``step`` steps and deletes what is no longer kept; raises OSError, leaving the others intact.

        Others of that step or later ones are deleted too: they were damaged, so that the run had to start before them.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        write_atomically(path, content)  # even over a file of that name, whose content may be damaged
        for other in self.paths():
            if other != path and other.name >= f"step-{step:09d}":
                other.unlink(missing_ok=True)
        self._prune()
        return path

    def mark_best(self, path: Path, loss: float) -> bool:
        """Keeps ``path`` until there is a better one if its held-out loss is finite and the lowest so far; returns whether it
        is."""
        best = self.best()
        if not math.isfinite(loss) or (best is not None and best[1] <= loss):
            return False
        write_atomically(self.folder / "best.json", json.dumps({"file": path.name, "loss": loss}).encode())
        self._prune()
        return True

    def best(self) -> tuple[Path, float] | None:
        """The best checkpoint and its held-out loss."""
        file = self.folder / "best.json"
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        path = self.folder / content["file"]
        return (path, float(content["loss"])) if path.exists() else None

    def newest(self) -> Path | None:
        """The newest intact checkpoint, with a warning for each newer one that is damaged; None where there is none."""
        for path in self.paths():
            try:
                load(path, "meta")
            except (DamagedCheckpointError, OSError) as fault:
                warnings.warn(f"{fault}; going back to the one before it", stacklevel=2)
            else:
                return path
        if self.paths():
            warnings.warn(f"{self.folder}: no checkpoint is intact; training starts from its first step", stacklevel=2)
        return None

    def _prune(self) -> None:
        best = self.best()
        for path in self.paths()[self.keep :]:
            if best is None or path != best[0]:
                path.unlink(missing_ok=True)
        for aside in self.folder.glob(".step-*.tmp"):  # left by a kill: only one process writes here
            aside.unlink(missing_ok=True)
