"""Which numbers are accepted; a refusal names the field, the value and what it must be."""
from __future__ import annotations

import itertools
import math
import numbers


def positive(**fields: float) -> None:
    """Raises ValueError for the first field that is not a positive finite number."""
    for name, value in fields.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: {value!r} is not accepted; it must be a positive number")


def whole(least: int, **fields: int) -> None:
    """Raises ValueError for the first field that is not a whole number of at least ``least``."""
    for name, value in fields.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: {value!r} is not accepted; it must be a whole number of at least {least}")


def increasing(**fields: float) -> None:
    """Raises ValueError for the first field that is not a positive finite number above the one before."""
    positive(**fields)
    for (lower, least), (name, value) in itertools.pairwise(fields.items()):
        if not value > least:
            raise ValueError(f"{name}: {value!r} is not accepted; it must be above {lower}={least!r}")
