"""Whether higher or lower values of a measurement are better, by its name."""
from __future__ import annotations

import re
from collections.abc import Sequence

GAIN = re.compile(r"(^|[_.])gain([_.]|$)")  # of whatever
LOWER = re.compile(r"(^|[_.])(fid|kid|fd|kd|fpr\d*|bits_per_dim|nfe|seconds|joules|loss|error|memory)([_.]|$)")
HIGHER = re.compile(r"(^|[_.])(is|inception|precision|recall|density|coverage|auroc|accuracy|likelihood|correlation"
                    r"|images_per_s)([_.]|$)")
# Neither is better: acceptance depends on the length of a move, the distance to training images on memorisation and on quality
# alike, and values of real images are no achievement.
NEUTRAL = re.compile(r"(^(images|n)$|^(real|distance)(_|$)|_held_out$"
                     r"|(^|[_.])(acceptance|accepted|count|fraction|bias|offset|difference|gap)([_.]|$))")


def direction(name: str) -> str:
    """"higher" or "lower", whichever is better, guessed from the name: a distance unless it says otherwise."""
    name = name.lower()
    if GAIN.search(name):
        return "higher"
    return "higher" if HIGHER.search(name) and not LOWER.search(name) and "negative" not in name else "lower"


def neutral(name: str) -> bool:
    """Whether neither higher nor lower values are better."""
    return NEUTRAL.search(name.lower()) is not None


def best(name: str, values: Sequence[float | None]) -> float | None:
    """The best of some values, None if there is none."""
    known = [value for value in values if value is not None]
    return (max if direction(name) == "higher" else min)(known, default=None)
