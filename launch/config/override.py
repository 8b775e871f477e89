"""One override of a command line, in Hydra's grammar."""
from __future__ import annotations

from pathlib import Path


def key(override: str) -> str:
    """What an override sets."""
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
