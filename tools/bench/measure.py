"""Speed as ratios within one run: the cases take turns, and the median over the rounds is what counts."""
from __future__ import annotations

import ast
import math
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch

from ebm.graph import WARM

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how long: rounds, least seconds of one measurement, and how many threads torch has on the CPU."""

    device: torch.device
    repeats: int
    seconds: float
    threads: Sequence[int]
    quick: bool
    compile: bool

    def wait(self) -> None:
        """Returns when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the report; ``met`` says whether the target is reached, None where there is none."""

    what: str
    measured: str
    against: str = ""
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Spread:
    """The rounds' values of one quantity."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        if len(self.values) == 1:
            return f"{self.median:{spec}}"
        return f"{self.median:{spec}} ({min(self.values):{spec}} to {max(self.values):{spec}})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Round by round, so that what slows a whole round down cancels."""
    return Spread([a / b for a, b in zip(above, below, strict=True)])


def at_most(what: str, value: Spread, limit: float, *, against: str, spec: str = ".2f", unit: str = "×") -> Row:
    """A line whose target is an upper limit on the median."""
    return Row(what=what, measured=f"{value:{spec}} {unit}", against=against, target=f"≤ {limit:g} {unit}",
               met=value.median <= limit)


def at_least(what: str, value: Spread, limit: float, *, against: str, spec: str = ".1f", unit: str = "×") -> Row:
    """A line whose target is a lower limit on the median."""
    return Row(what=what, measured=f"{value:{spec}} {unit}", against=against, target=f"≥ {limit:g} {unit}",
               met=value.median >= limit)


def alternate(cases: Mapping[str, Callable[[], object]], *, setting: Setting,
              calls: Mapping[str, int] | None = None) -> dict[str, list[float]]:
    """Seconds per call of every case, one number a round; the cases take turns, in reverse in every second round.

    ``calls`` of each case in a round may be given, where several processes must make equally many.
    """
    for case in cases.values():
        seconds_per_call(case, WARM + 1, setting=setting)  # on a GPU a step is recorded in the last of these
    calls = calls or {name: calls_for(case, setting=setting) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(setting.repeats):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(seconds_per_call(cases[name], calls[name], setting=setting))
        progress(f"round {turn + 1} of {setting.repeats}")
    return seconds


def calls_for(case: Callable[[], object], *, setting: Setting) -> int:
    """Calls of a case that is warm that take at least the setting's seconds."""
    return max(1, math.ceil(setting.seconds / seconds_per_call(case, 1, setting=setting)))


def seconds_per_call(case: Callable[[], object], calls: int, *, setting: Setting) -> float:
    """Mean over ``calls`` calls in a row."""
    setting.wait()
    start = time.perf_counter()
    for _ in range(calls):
        case()
    setting.wait()
    return (time.perf_counter() - start) / calls


def fresh(function: Callable[..., T], *arguments: object, environment: Mapping[str, str] = MappingProxyType({})) -> T:
    """What a module's function returns, made of numbers and tuples, in a process of its own."""
    code = (f"import sys, pickle; sys.path[0] = {str(ROOT)!r}; "
            "function, arguments = pickle.load(sys.stdin.buffer); print(function(*arguments))")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps((function, arguments)),
                          stdout=subprocess.PIPE, check=True, env={**os.environ, **environment})
    value: T = ast.literal_eval(done.stdout.decode().splitlines()[-1])
    return value


def progress(line: str) -> None:
    """A line for whoever waits."""
    print(f"  {line}", file=sys.stderr, flush=True)


def counted(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} thread{'s' if threads > 1 else ''}"
