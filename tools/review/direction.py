"""Which way a measurement is better, by its name."""
from __future__ import annotations

import re
from collections.abc import Sequence

GAIN = re.compile(r"(^|[_.])gain([_.]|$)")  # of whatever
LOWER = re.compile(r"(^|[_.])(fid|kid|fd|kd|fpr\d*|bits_per_dim|nfe|seconds|joules|loss|error|memory)([_.]|$)")
HIGHER = re.compile(r"(^|[_.])(is|inception|precision|recall|density|coverage|auroc|accuracy|likelihood|correlation"
                    r"|images_per_s)([_.]|$)")
# Neither way is the better one: how often a move is accepted depends on its length, how far training images lie on memory and
# on quality, and what real images have is no achievement.
NEUTRAL = re.compile(r"(^(images|n)$|^(real|distance)(_|$)|_held_out$"
                     r"|(^|[_.])(acceptance|accepted|count|fraction|bias|offset|difference|gap)([_.]|$))")


def direction(name: str) -> str:
    """Which way a measurement is better, guessed from its name: a distance unless the name says otherwise."""
    name = name.lower()
    if GAIN.search(name):
        return "higher"
    return "higher" if HIGHER.search(name) and not LOWER.search(name) and "negative" not in name else "lower"


def neutral(name: str) -> bool:
    """Whether neither way of a measurement is the better one."""
    return NEUTRAL.search(name.lower()) is not None


def best(name: str, values: Sequence[float | None]) -> float | None:
    """The best of some values, None where there is none."""
    known = [value for value in values if value is not None]
    return (max if direction(name) == "higher" else min)(known, default=None)
