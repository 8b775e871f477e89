"""Reads `metrics.jsonl`: the usable records, and what is wrong with the other lines."""
from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

Record = dict[str, Any]

# The fields that a record must have.
NEEDED = {"train": ("images", "loss"), "held_out": ("images", "loss"), "loss_by_sigma": ("images", "sigma", "loss"),
          "calibration": ("images", "sigma"), "preview": ("images", "path", "count"), "warning": ("words",)}
TEXTS = ("path", "words")
NAMED = 8  # lines or gaps that are listed for each kind; of more, only the number


@dataclass(frozen=True)
class Problem:
    """Something that could not be read: the file, and what is wrong with it."""

    where: str
    what: str


def read_metrics(path: Path) -> tuple[list[Record], list[Problem]]:
    """The usable records of a file in order, and its problems."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return [], [Problem(str(path), "missing" if isinstance(error, FileNotFoundError) else str(error.strerror or error))]
    lines = content.split(b"\n")
    found: list[Record] = []
    faults: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record, fault = parse_line(line)
        if fault == "not JSON" and number == len(lines):
            fault = "half-written"
        if fault:
            faults.setdefault(fault, []).append(number)
        else:
            found.append(record)
    problems = [Problem(str(path), f"{lines_named(numbers)}: {fault}") for fault, numbers in faults.items()]
    if not found and not problems:
        problems.append(Problem(str(path), "empty"))
    return found, [*problems, *(Problem(str(path), words) for words in gaps(found))]


def parse_line(line: bytes) -> tuple[Record, str]:
    """The record in a line, with None for numbers that are not finite, or what is wrong with the line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "not JSON"
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return {}, "not a record of an event"
    record = {name: value if number(value) is not None or not isinstance(value, float) else None
              for name, value in record.items()}
    event = record["event"]
    for name in NEEDED.get(event, ()):
        if name not in record:
            return {}, f"{event} without {name!r}"
        value = record[name]
        if not (isinstance(value, str) if name in TEXTS else number(value) is not None or (value is None and name == "loss")):
            return {}, f"{event} with an invalid {name!r}"
    return record, ""


def read_json(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The object in a JSON file, empty where it can't be read, and why it can't."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return {}, [Problem(str(path), "missing")]
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Problem(str(path), f"can't be read as JSON: {error}")]
    return content, []


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    return value if good else None


def lines_named(numbers: Sequence[int]) -> str:
    """Line numbers in words: "line 3", "lines 3, 17", and of many the first ones and how many."""
    shown = ", ".join(map(str, numbers[:NAMED]))
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"line{'s' * (len(numbers) > 1)} {shown}{more}"


def gaps(found: Sequence[Record]) -> Iterator[str]:
    """Sentences about missing lines: training is logged at even intervals of images, so a longer one is a gap."""
    images = [record["images"] for record in found if record["event"] == "train"]
    ways = [after - before for before, after in pairwise(images)]
    if len(ways) < 4:
        return
    usual = median(ways)
    missing = [(images[place], images[place + 1]) for place, way in enumerate(ways) if way > 2.5 * usual > 0]
    for before, after in missing[:NAMED]:
        yield f"lines are missing: no training record between {before:,} and {after:,} images"
    if len(missing) > NAMED:
        yield f"lines are missing in {len(missing) - NAMED} more places"


def of_event(found: Sequence[Record], event: str) -> list[Record]:
    """The records of one event."""
    return [record for record in found if record["event"] == event]
