"""Evaluations as the page shows them: each run's records with their pictures, a table per protocol, columns for all runs."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.review.album import Album, Share
from tools.review.curves import short
from tools.review.direction import best, direction, neutral
from tools.review.evaluations import Evaluation, by_protocol, differences, find_evaluations, protocol_line, subject_line

FIRST = ("quality", "neighbours", "likelihood", "density", "outliers", "metropolis", "cost")  # in order of interest
COLUMNS = 8  # values of one metric that become columns of the table of runs; the section shows all of them
Entry = dict[str, Any]


def put_evaluations(folder: Path, samplers: Sequence[Entry], *, album: Album, share: Share) -> list[Entry]:
    """A run's records, with their pictures put into the album, and the index of their sampler among ``samplers`` or None."""
    if not (folder / "evaluations").is_dir():
        return []
    records, problems = find_evaluations(folder / "evaluations")
    album.problems += problems
    return [{"record": record, "of": sampler_of(record, folder, samplers), "pictures": [
        {"name": name, **sheet} for name, path in record.pictures.items() if (sheet := album.figure(path, share)) is not None]}
        for record in records]


def sampler_of(record: Evaluation, folder: Path, samplers: Sequence[Entry]) -> int | None:
    """Which of the run's samplings a record is about: a study's by the folder's name, others by the file's."""
    beneath = record.path.relative_to(folder / "evaluations").parts
    for index, one in enumerate(samplers):
        label = re.escape(f"{record.metric}-{one['label']}")
        own = len(beneath) == 1 and not one["place"] and re.fullmatch(rf"{label}(-[0-9a-f]{{8}})?", record.path.stem)
        if own or (one["place"] and beneath[0] == one["place"] and len(beneath) > 1):
            return index
    return None


def tabulate(runs: Sequence[Entry]) -> Entry:
    """``protocols`` (of tables), ``numbers`` (columns) and ``directions``, and fills in the runs' values.

    The records in the runs' entries become what a page can hold.
    """
    entries = [entry for run in runs for entry in run["evaluations"]]
    records: list[Evaluation] = [entry["record"] for entry in entries]
    records.sort(key=lambda one: (FIRST.index(one.metric) if one.metric in FIRST else len(FIRST), one.metric))
    groups = [group for metric in dict.fromkeys(one.metric for one in records)
              for group in by_protocol([one for one in records if one.metric == metric])]
    which = {one.path: index for index, group in enumerate(groups) for one in group}
    numbers = [column(metric, figure, runs, which, groups) for metric, figure in figures(records)]
    for entry in entries:
        entry |= record_entry(entry.pop("record"), which)
    for run in runs:
        for one in run["samplers"]:
            one.pop("place", None)
    told = {name: "" if neutral(name) else direction(name) for one in records for name in one.figures}
    return {"protocols": [protocol_entry(group, groups) for group in groups], "numbers": numbers, "directions": told}


def figures(records: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """The (metric, value) pairs that become columns, in the order of the records."""
    known: dict[str, dict[str, None]] = {}
    for one in records:
        known.setdefault(one.metric, {}).update(dict.fromkeys(one.figures))
    return [(metric, name) for metric, names in known.items() for name in list(names)[:COLUMNS]]


def column(metric: str, figure: str, runs: Sequence[Entry], which: dict[Path, int],
           groups: Sequence[Sequence[Evaluation]]) -> Entry:
    """A column of the table, filled in for the runs and their samplers.

    Each shows its value in the protocol that most runs have, or, without one, the newest value in another protocol.
    """
    key = f"{metric}.{figure}"
    having = [[one for one in run["evaluations"] if one["record"].metric == metric and figure in one["record"].values]
              for run in runs]
    counts = Counter(number for ones in having for number in {which[one["record"].path] for one in ones})
    usual = max(counts, key=lambda number: (counts[number], groups[number][-1].time))
    used: set[int] = set()
    for run, ones in zip(runs, having, strict=True):
        mine = of_one_protocol([one["record"] for one in ones], usual, which)
        run["values"][key] = short(best_of(figure, mine))
        run.setdefault("protocols", {})[key] = which[mine[0].path] if mine else None
        used |= {which[one.path] for one in mine}
        for index, sampler in enumerate(run["samplers"]):
            own = of_one_protocol([one["record"] for one in ones if one["of"] == index], usual, which)
            if own:
                sampler["metrics"][key] = short(best_of(figure, own))
                used |= {which[one.path] for one in own}
    elsewhere = any(name == figure and other != metric for other, name in figures([one for group in groups for one in group]))
    title = f"{metric} {figure}" if elsewhere else figure
    mixed, better = len(used) > 1, direction(figure)
    words = f"{key}: {protocol_line(groups[usual][0], most=40)}"
    if mixed:
        words = f"{key}: {len(used)} protocols, which are not comparable; the section Evaluation shows each by itself"
    return {"key": key, "title": f"{title} (protocols differ)" if mixed else title, "better": better, "compares": False,
            "sampled": any(key in one["metrics"] for run in runs for one in run["samplers"]), "mixed": mixed, "words": words,
            "asked": "" if mixed or neutral(figure) else f"{better.replace('er', 'est')} {title}"}


def of_one_protocol(records: Sequence[Evaluation], usual: int, which: dict[Path, int]) -> list[Evaluation]:
    """The records in the usual protocol, or, without any, those in the protocol of the newest."""
    numbers = [which[one.path] for one in records]
    wanted = usual if usual in numbers else numbers[-1] if numbers else None
    return [one for one in records if which[one.path] == wanted]


def best_of(figure: str, records: Sequence[Evaluation]) -> float | None:
    """The best value in some records of one protocol; the newest if neither higher nor lower is better."""
    values = [one.values[figure] for one in records]
    return values[-1] if values and neutral(figure) else best(figure, values)


def protocol_entry(group: Sequence[Evaluation], groups: Sequence[Sequence[Evaluation]]) -> Entry:
    """A protocol for the page: abridged, in full, and its differences from the metric's most used one."""
    first = group[0]
    others = [other for other in groups if other[0].metric == first.metric]
    told = {} if others[0] is group else differences(others[0][0], first)
    return {"metric": first.metric, "line": protocol_line(first), "count": len(others),
            "whole": "\n".join(f"{name}: {value}" for name, value in first.protocol.items())[:4000],
            "differs": "; ".join(f"{name}: {other} vs. {own}" for name, (other, own) in told.items())}


def record_entry(record: Evaluation, which: dict[Path, int]) -> Entry:
    """A record for the page."""
    values = {name: [short(record.values[name]), short(record.error(name)), short(record.values.get(f"{name}_real"))]
              for name in record.figures}
    return {"metric": record.metric, "protocol": which[record.path], "values": values, "subject": subject_line(record),
            "file": record.path.name}
