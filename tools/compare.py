#!/usr/bin/env python3
"""Ranks runs by one metric: `python tools/compare.py <runs, studies or records> --metric fid [--by nfe]`.

Only values measured by the same protocol are comparable. If there are several protocols, it names the keys that differ and
exits with 2, unless --apart lists each protocol by itself. --list shows what was measured. --by plots the metric
against the cost of an image, all samplers in one picture.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # works from a checkout that is not installed

from ebm.files import write_atomically
from tools.review.comparison import (
    COSTS,
    Row,
    cost,
    curves,
    figures,
    gather,
    group_rows,
    is_of_machine,
    labels,
    notes,
    protocol_lines,
    rows_of,
)
from tools.review.direction import direction, neutral
from tools.review.evaluations import Evaluation, by_protocol, protocol_line, shorten

HEAD = ("", "{figure}", "run", "sampler", "steps", "NFE", "n", "EMA", "step", "precision", "code")
Records = Sequence[tuple[str, Evaluation]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="runs, studies, folders of records, or records")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--metric", "--figure", dest="figure", metavar="METRIC",
                      help="the value to rank by: fid, or quality.fid if several metrics have one of that name")
    what.add_argument("--list", action="store_true", help="list the values that were measured, and how many protocols each has")
    parser.add_argument("--apart", "--groups", action="store_true", help="list each protocol by itself if there are several")
    parser.add_argument("--by", choices=[*COSTS], help="plot the metric against this cost of an image")
    parser.add_argument("--out", type=Path, help="the plot of --by (compare.png); its numbers are written beside it as .json")
    options = parser.parse_args()
    if options.by is None and options.out is not None:
        parser.error("--out: it needs --by, which makes the plot")
    if options.by is not None and options.list:
        parser.error("--by: it needs --metric")
    if options.out is not None and options.out.suffix != ".png":
        parser.error(f"--out: {str(options.out)!r} is not accepted; it must end in .png")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out: {str(options.out)!r} is not accepted; there is no folder {options.out.parent}")
    return options


def main() -> None:
    """Prints what is asked for; exits with 2 on bad input, and if the values are not comparable."""
    options = arguments()
    try:
        records, problems = gather(options.folders)
        for problem in problems:
            print(f"note: {problem.where}: {problem.what}", file=sys.stderr)
        if not records:
            raise ValueError(f"folder: no records of evaluations in {', '.join(map(str, options.folders))}; "
                             "python launch/evaluate.py run=<folder> writes them")
        if options.list:
            print_table(("value", "metric", "records", "protocols", "better"), figure_lines(records))
            return
        chosen = rows_of(records, options.figure)
        for folder in options.folders:
            inside = (row.record.path.resolve().is_relative_to(folder.resolve()) for row in chosen)
            if not (any(inside) or (folder / "study.json").exists()):  # a study's runs lie elsewhere
                print(f"note: {folder}: no record of {options.figure}", file=sys.stderr)
        groups = group_rows(chosen)
        if len(groups) > 1 and not options.apart:
            raise ValueError("\n  ".join([f"--metric: {options.figure} was measured by {len(groups)} protocols, which are not "
                                         "comparable; --apart lists each by itself", *protocol_lines(groups)]))
        if options.by is not None:
            print(draw_curves(groups, records, options.by, options.out or Path("compare.png")))
        else:
            for group, differs in zip(groups, protocol_lines(groups), strict=True):
                print_ranking(group, differs if len(groups) > 1 else "")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def figure_lines(records: Records) -> Iterator[list[str]]:
    """The lines of --list."""
    for (metric, name), ones in figures(records).items():
        better = "" if neutral(name) else direction(name)
        yield [name, metric, str(len(ones)), str(len(by_protocol(ones))), better]


def print_ranking(group: Sequence[Row], differs: str) -> None:
    """Prints the protocol, its rows, best first, and notes on them."""
    figure = group[0].figure
    places = ranks(group)
    better = "neither higher nor lower is better" if neutral(figure) else f"{direction(figure)} is better"
    print(f"{group[0].record.metric}: {figure}, {better}\nprotocol: {protocol_line(group[0].record, most=40)}")
    if differs:
        print(differs)
    head = [name.format(figure=figure) for name in HEAD]
    print_table(head, (cells(row, rank) for row, rank in zip(group, places, strict=True)))
    real = {row.record.values.get(f"{figure}_real") for row in group} - {None}
    for value in sorted(one for one in real if one is not None):
        print(f"real images: {value:.5g}")
    for words in notes(group, places):
        print(f"note: {words}")
    print()


def ranks(group: Sequence[Row]) -> list[int]:
    """Places from 1; equal values share one."""
    places: list[int] = []
    for index, row in enumerate(group):
        places.append(places[-1] if index and row.value == group[index - 1].value else index + 1)
    return places


def cells(row: Row, rank: int) -> list[str]:
    """A row of the table."""
    error = "" if row.error is None else f" ± {row.error:.2g}"
    told = [row.told(name) for name in ("nfe", "n", "ema", "step")]
    return [str(rank), f"{row.value:.5g}{error}", row.label, row.sampler, str(row.steps),
            *(f"{value:,}" if isinstance(value, int) else str(value) for value in told), str(row.told("precision")),
            shorten(str(row.told("version")), 12)]


def print_table(head: Sequence[str], lines: Iterator[list[str]]) -> None:
    """Prints a table: rich's where it is installed, else columns of spaces."""
    made = list(lines)
    kept = [place for place, name in enumerate(head) if any(line[place] for line in made)]  # leaves out empty columns
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        widths = {place: max(len(one[place]) for one in (head, *made)) for place in kept}
        for line in (head, *made):
            print("  ".join(line[place].ljust(widths[place]) for place in kept).rstrip())
        return
    shown = Table(*(head[place] for place in kept), box=SIMPLE_HEAD)
    for line in made:
        shown.add_row(*(Text(line[place]) for place in kept))
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def draw_curves(groups: Sequence[Sequence[Row]], records: Records, by: str, out: Path) -> str:
    """Plots the metric against the cost of an image, a panel for each protocol, with the numbers beside; says what it wrote."""
    measured: Callable[[Row], float | None] = partial(cost, by=by, records=records)
    found = curves(groups, measured)
    if not any(found):
        raise ValueError(f"--by: {by!r} is not accepted; no record of {groups[0][0].figure} has its cost in {COSTS[by]}; "
                         "metrics=[cost] measures it")
    from tools.review.tradeoff import draw

    lost = sum(len(group) for group in groups) - sum(len(curve) for panel in found for curve in panel.values())
    content = {"figure": groups[0][0].figure, "by": by, "unit": COSTS[by], "panels": [
        {"protocol": group[0].record.protocol, "curves": [
            {"label": label, "points": [point(at, row, by) for at, row in curve]} for label, curve in panel.items()]}
        for group, panel in zip(groups, found, strict=True)]}
    write_atomically(out, draw(groups, found, by=by))
    write_atomically(out.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())
    if lost:
        print(f"note: {lost} records of {groups[0][0].figure} have no cost in {COSTS[by]} and are left out", file=sys.stderr)
    devices = {str(row.told("device")) for group in groups for row in group}
    if is_of_machine(by) and len(devices) > 1:
        print(f"note: the costs are of different devices: {', '.join(sorted(devices))}", file=sys.stderr)
    count = sum(len(panel) for panel in found)
    return f"{count} curve{'s' * (count != 1)} of {labels([row for group in groups for row in group])}: {out}, numbers: " \
           f"{out.with_suffix('.json')}"


def point(at: float, row: Row, by: str) -> dict[str, Any]:
    """A point of a curve with everything that identifies it."""
    names = ("run", "sampler", "nfe", "n", "step", "ema", "seed", "precision", "device", "version")
    return {by: at, row.figure: row.value, "stderr": row.error, "real": row.record.values.get(f"{row.figure}_real"),
            "steps": row.steps, **{name: row.told(name) for name in names if name != by}, "record": str(row.record.path)}


if __name__ == "__main__":
    main()
