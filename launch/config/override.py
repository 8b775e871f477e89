"""A single override of the command line, in Hydra's grammar."""
from __future__ import annotations

from pathlib import Path

# Keys that users try, and those that take their place.
ELSEWHERE = {"lr": "rate.peak", "learning_rate": "rate.peak", "optimizer.lr": "rate.peak", "batch_size": "budget.batch",
             "epochs": "budget.images"}


def key(override: str) -> str:
    """The key or group that an override sets."""
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def quoted(value: str | Path) -> str:
    """A text or path, quoted as a value in Hydra's grammar."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
