"""A single override of the command line, in Hydra's grammar."""
from __future__ import annotations

from pathlib import Path

ELSEWHERE = {"lr": "rate.peak", "optimizer.lr": "rate.peak"}  # keys that users expect, by those that take their place


def key(override: str) -> str:
    """The key or group that an override sets."""
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def quoted(path: Path) -> str:
    """A path, quoted as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
