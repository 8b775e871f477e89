"""Nested configs as one level of dotted keys, as users write them on the command line."""
from __future__ import annotations

from typing import Any


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict as one level of dotted keys."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, below in tree.items() for key, value in flat(below, f"{prefix}{name}.").items()}
