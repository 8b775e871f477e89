"""Compares the metrics of several runs: whose they are, which of them are comparable, and how they differ."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.config.keys import flat
from launch.study.point import read_study
from tools.review.collect import run_tree
from tools.review.direction import direction
from tools.review.evaluations import Evaluation, by_protocol, differences, find_evaluations, read_evaluation, shorten
from tools.review.records import Problem, number

COUNTS = ("steps", "steps_per_level", "corrector_steps")  # settings that decide a sampler's cost, along which a curve runs
COSTS = {"nfe": "model evaluations per image", "seconds": "seconds per image", "joules": "joules per image"}


@dataclass(frozen=True)
class Row:
    """A figure of one record, with the label of its run."""

    label: str
    figure: str
    record: Evaluation

    @property
    def value(self) -> float:
        """The figure itself."""
        return self.record.values[self.figure]

    @property
    def error(self) -> float | None:
        """Its standard error, None if it was not measured."""
        return self.record.error(self.figure)

    def told(self, name: str) -> Any:
        """A field of the record's subject, "" if it has none."""
        value = self.record.subject.get(name)
        return "" if value is None else value

    @property
    def sampler(self) -> str:
        """The sampler's name, "" if none was used."""
        return str(self.told("sampler"))

    @property
    def steps(self) -> Any:
        """The sampler's steps, "" if its settings have none."""
        settings = self.told("settings")
        return settings.get("steps", "") if isinstance(settings, dict) else ""

    @property
    def kind(self) -> tuple[str, ...]:
        """What the points of a curve have in common: run, sampler, weights, and all settings but counts of steps."""
        settings = flat(self.told("settings") or {})
        kept = [f"{name}={value}" for name, value in settings.items() if name.split(".")[-1] not in COUNTS]
        return (self.label, self.sampler, str(self.told("step")), str(self.told("ema")), *kept)


Curve = list[tuple[float, Row]]


def gather(folders: Sequence[Path]) -> tuple[list[tuple[str, Evaluation]], list[Problem]]:
    """The records of runs, studies or files, each once, with the labels of their runs; raises OSError or ValueError."""
    known: dict[Path, tuple[Path, Evaluation]] = {}
    given: dict[Path, str] = {}  # labels by runs' folders
    problems: list[Problem] = []
    for folder in folders:
        for label, place in places(folder):
            if place.is_file():
                record, faults = read_evaluation(place)
                records = [record] if record is not None else []
            else:
                records, faults = find_evaluations(place / "evaluations" if (place / "evaluations").is_dir() else place)
            problems += [fault for fault in faults if fault not in problems]
            for one in records:
                run = (place if label else Path(str(one.subject.get("run") or place))).resolve()
                given[run] = label or run.name
                known.setdefault(one.path.resolve(), (run, one))
    named = distinct_labels(given)
    return [(named[run], one) for run, one in known.values()], problems


def distinct_labels(labels: Mapping[Path, str]) -> dict[Path, str]:
    """The labels of runs; runs with the same label get as much of their paths as distinguishes them."""
    found = dict(labels)
    for label in set(labels.values()):
        alike = [run for run in labels if labels[run] == label]
        for length in range(2, max(len(run.parts) for run in alike) + 1) if len(alike) > 1 else ():
            found |= {run: "/".join(run.parts[-length:]) for run in alike}
            if len({found[run] for run in alike}) == len(alike):
                break
    return found


def places(folder: Path) -> list[tuple[str, Path]]:
    """Where the records of a folder lie, with each run's label, "" if the records name it; raises FileNotFoundError."""
    if (folder / "study.json").exists():
        tree, _ = run_tree(read_study(folder), folder)
        return [(point.label, point.folder) for point, _ in tree if (point.folder / "evaluations").is_dir()]
    if folder.is_file():
        return [("", folder)]
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder}: no such folder; give runs, studies or records")
    if (folder / "config.yaml").exists():
        return [(folder.resolve().name, folder)] if (folder / "evaluations").is_dir() else []
    return [("", folder)]


def figures(records: Iterable[tuple[str, Evaluation]]) -> dict[tuple[str, str], list[Evaluation]]:
    """The records by (evaluation, metric)."""
    known: dict[tuple[str, str], list[Evaluation]] = {}
    for _, record in records:
        for name in record.figures:
            known.setdefault((record.metric, name), []).append(record)
    return known


def rows_of(records: Sequence[tuple[str, Evaluation]], figure: str) -> list[Row]:
    """The records that have a metric, `fid` or `quality.fid`; raises ValueError, with those that there are, if none has it."""
    chosen = [Row(label, name, one) for label, one in records for name in one.figures
              if figure in (name, f"{one.metric}.{name}")]
    if not chosen:
        names = ", ".join(dict.fromkeys(name for _, name in figures(records))) or "none"
        raise ValueError(f"--metric: {figure!r} is not accepted; these records have {names}")
    return chosen


def group_rows(chosen: Sequence[Row]) -> list[list[Row]]:
    """The rows of each protocol, best first; the largest group first."""
    by_record = {id(row.record): row for row in chosen}
    sign = -1.0 if direction(chosen[0].figure) == "higher" else 1.0
    return [sorted((by_record[id(one)] for one in group), key=lambda row: sign * row.value)
            for group in by_protocol([row.record for row in chosen])]


def protocol_lines(groups: Sequence[Sequence[Row]]) -> list[str]:
    """A line for each protocol: whose rows have it, and how it differs from the first."""
    lines = []
    for place, group in enumerate(groups, 1):
        told = differences(groups[0][0].record, group[0].record)
        pairs = "; ".join(f"{name}: {first} vs. {own}" for name, (first, own) in told.items())
        who = f"protocol {place} ({len(group)} record{'s' * (len(group) != 1)} of {labels(group)})"
        lines.append(f"{who} differs from protocol 1 in {pairs}" if pairs else who)
    return lines


def labels(group: Sequence[Row]) -> str:
    """Whose rows these are, the first few."""
    names = list(dict.fromkeys(f"{row.label} × {row.sampler}" if row.sampler else row.label for row in group))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def notes(group: Sequence[Row], ranks: Sequence[int]) -> list[str]:
    """Notes on one ranked group: differences within the standard errors, and what differs besides the protocol."""
    said = []
    for (one, other), (rank, following) in zip(pairwise(group), pairwise(ranks), strict=True):
        gap, both = abs(one.value - other.value), errors(one, other)
        if both is not None and gap < both:
            said.append(f"{rank} and {following} are not distinguishable: they differ by {gap:.3g}, less than the sum of their "
                        f"standard errors, {both:.3g}")
    if len(group) > 1 and all(row.error is None for row in group):
        said.append("no standard errors were measured: small differences may be due to chance")
    if changed := [str(rank) for row, rank in zip(group, ranks, strict=True) if str(row.told("version")).endswith("+changes")]:
        said.append(f"the code had uncommitted changes: {', '.join(changed)}")
    for name, words in (("version", "code"), ("precision", "precision"), ("device", "device")):
        values: dict[str, list[str]] = {}
        for row, rank in zip(group, ranks, strict=True):
            values.setdefault(shorten(str(row.told(name)) or "unknown", 12), []).append(str(rank))
        if len(values) > 1 and (name != "device" or is_of_machine(group[0].figure)):
            told = ", ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
            said.append(f"the {words} differs: {told}")
    return said


def is_of_machine(name: str) -> bool:
    """Whether a metric or a cost depends on the machine and not on the model alone."""
    return "second" in name or "joule" in name


def errors(one: Row, other: Row) -> float | None:
    """The sum of two standard errors, None if neither is known."""
    known = [row.error for row in (one, other) if row.error is not None]
    return sum(known) if known else None


def cost(row: Row, by: str, records: Sequence[tuple[str, Evaluation]]) -> float | None:
    """The cost of an image: from the record itself, else from a cost record of the same samples; None if unknown."""
    own, count = number(row.told(by)), number(row.told("n"))
    if own is not None and by == "nfe":
        return float(own)
    same = ("run", "checkpoint", "step", "ema", "sampler", "settings", "precision", "device")
    for _, other in reversed(records):
        if other.metric == "cost" and all(other.subject.get(name) == row.record.subject.get(name) for name in same):
            names = (by, f"{by}_per_image")
            if (value := next((other.values[name] for name in names if name in other.values), None)) is not None:
                return value
    return own / count if own is not None and count else None


def curves(groups: Sequence[Sequence[Row]], measured: Callable[[Row], float | None]) -> list[dict[str, Curve]]:
    """The rows of each protocol as curves over the cost, by run, sampler and whatever else distinguishes them."""
    panels: list[dict[tuple[str, ...], Curve]] = [{} for _ in groups]
    for panel, group in zip(panels, groups, strict=True):
        for row in group:
            at = measured(row)
            if at is not None and at > 0 and math.isfinite(at):
                panel.setdefault(row.kind, []).append((at, row))
    kinds = list(dict.fromkeys(kind for panel in panels for kind in panel))
    return [{curve_name(kind, kinds): sorted(curve, key=lambda point: point[0]) for kind, curve in panel.items()}
            for panel in panels]


def curve_name(kind: tuple[str, ...], kinds: Sequence[tuple[str, ...]]) -> str:
    """The name of a curve: its sampler, and whatever distinguishes it from the other curves."""
    titles = ("{}", "{}", "step {}", "EMA {}")
    told = [titles[place].format(kind[place]) for place in range(4)
            if place == 1 or len({other[place] for other in kinds}) > 1]
    rivals = [set(other[4:]) for other in kinds if other[:4] == kind[:4]]
    told += [one for one in kind[4:] if len(rivals) > 1 and one not in set.intersection(*rivals)]
    return " ".join(filter(None, told)) or kind[0]
