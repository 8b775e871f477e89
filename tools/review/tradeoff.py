"""Plots a metric against the cost of an image, all samplers in one picture: a panel for each protocol."""
from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from ebm.extras import extra
from tools.review.comparison import COSTS, Curve, Row
from tools.review.direction import direction, neutral
from tools.review.evaluations import differences, protocol_line

# Okabe and Ito's colours, as in the report, and marks for readers who can't tell colours apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#c98a00", "#3f9fd8", "#6b5b00", "#4a4f57")
MARKS, LINES = "osD^vPX*", ("-", "--", ":", "-.")
Curves = Mapping[str, Curve]


def draw(groups: Sequence[Sequence[Row]], panels: Sequence[Curves], *, by: str) -> bytes:
    """The picture as PNG; raises ValueError if matplotlib isn't installed."""
    with extra("evaluate", "pictures of --by"):
        import matplotlib as mpl
    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [(group, panel) for group, panel in zip(groups, panels, strict=True) if panel]
    names = list(dict.fromkeys(label for _, panel in shown for label in panel))
    size = (max(7.4, 5.2 * len(shown)), 5.4)
    figure, grid = pyplot.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
    better = "" if neutral(groups[0][0].figure) else f" ({direction(groups[0][0].figure)} is better)"
    for axes, (group, panel) in zip(grid[0], shown, strict=True):
        for label, curve in panel.items():
            place = names.index(label)
            colour, mark, line = COLOURS[place % 8], MARKS[place % 8], LINES[place // 8 % 4]
            xs, ys = [at for at, _ in curve], [row.value for _, row in curve]
            spread = [row.error or 0.0 for _, row in curve]
            axes.errorbar(xs, ys, yerr=spread if any(spread) else None, color=colour, marker=mark, ls=line, ms=6, lw=1.7,
                          capsize=3, label=label)
            for at, row in curve:
                axes.annotate(str(row.steps), (at, row.value), xytext=(5, 6), textcoords="offset points", fontsize=8,
                              color=colour)
        for index, floor in enumerate(sorted({value for row in group if (value := real(row)) is not None})):
            axes.axhline(floor, color="#777777", lw=1.2, ls=(0, (5, 3)), label="real images" if index == 0 else None)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.08, y=0.1)
        axes.set(xlabel=f"{COSTS[by]} (at each point: the sampler's steps)", ylabel=f"{groups[0][0].figure}{better}")
        axes.set_title(title(groups, group), fontsize=8, wrap=True)
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()


def real(row: Row) -> float | None:
    """The same value of real images, which no sampler can surpass; None if it was not measured."""
    return row.record.values.get(f"{row.figure}_real")


def title(groups: Sequence[Sequence[Row]], group: Sequence[Row]) -> str:
    """The protocol, or, if there are several panels, how this one's differs from the others'."""
    record = group[0].record
    if len(groups) == 1:
        return protocol_line(record)
    keys = dict.fromkeys(key for other in groups if other is not group for key in differences(record, other[0].record))
    return "; ".join(f"{key} {record.protocol.get(key, 'none')[:16]}" for key in list(keys)[:4])
