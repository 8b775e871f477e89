"""A diagnosis as tables on the terminal, and as a figure of calibration, steps, stability and samples."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ebm.diagnose.doctor import Diagnosis, Tell
from ebm.pictures import grid

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED, GREY = "#3465a4", "#ce7b00", "#2e8b57", "#b22222", "#888888"


@contextlib.contextmanager
def progress_bars() -> Iterator[Tell]:
    """A bar on the terminal for each part of the work."""
    with Progress(TextColumn("{task.description:>12}"), BarColumn(), TextColumn("{task.completed:.0f}"), TimeElapsedColumn(),
                  console=Console(stderr=True)) as bars:
        known: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what)
            bars.update(known[what], completed=done, total=total or None)

        yield tell


def print_diagnosis(content: dict[str, Any], text: str, folder: Path) -> None:
    """Prints tables and the paragraph."""
    console = Console()
    for table in (calibration_table(content), step_table(content), finding_table(content)):
        console.print(table)
    console.print(text, soft_wrap=True, highlight=False)
    console.print(f"written: {folder}/diagnosis.json, diagnosis.png, diagnosis.txt ({content['seconds']:.0f} s)",
                  soft_wrap=True, highlight=False)


def calibration_table(content: dict[str, Any]) -> Table:
    """The calibration of the score at each noise level."""
    table = Table("σ", "explained", "by a Gaussian", "slope", "trusted", title="Is the score calibrated?", box=SIMPLE_HEAD)
    for row in content["calibration"]:
        table.add_row(f"{row['sigma']:.3g}", *(short_number(row[name]) for name in ("explained", "gaussian", "slope")),
                      "yes" if row["trusted"] else "no")
    return table


def step_table(content: dict[str, Any]) -> Table:
    """At most a dozen of the steps."""
    table = Table("step", "σ", "drift", "noise", "b²/2a", "moved", "energy", "clamped", "distance", "actual σ",
                  title="What does a step do?", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    steps = content["steps"]
    for index in sorted({round(i * (len(steps) - 1) / 11) for i in range(12)}):
        s = steps[index]
        table.add_row(str(s["index"]), *(short_number(s[name]) for name in (
            "sigma", "drift", "noise_size", "temperature", "moved", "energy")), f"{s['clamped']:.0%}",
            short_number(s["distance"]), short_number(s["noise"]))
    return table


def finding_table(content: dict[str, Any]) -> Table:
    """The verdicts and their reasons."""
    table = Table("verdict", "because", title="Verdict", box=SIMPLE_HEAD)
    for finding in [*content["findings"], *content["run_findings"]]:
        table.add_row(finding["name"], finding["words"])
    if not content["findings"]:
        table.add_row("healthy", "no fault was found")
    if content.get("unfinished") and "blind" in content["verdicts"]:
        table.add_row("prescription", "finish the run first")
    elif content["prescription"]:
        table.add_row("prescription", " ".join(content["prescription"]["overrides"]) or content["prescription"]["words"])
    return table


def short_number(value: float | None) -> str:
    """Three significant digits in few characters, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3g}"


def draw_figure(content: dict[str, Any], before: Diagnosis, after: Diagnosis | None, path: Path) -> None:
    """Writes the figure to ``path``."""
    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 0.95])
    upper, lower = (figure.add_subfigure(rows[row]) for row in (0, 1))
    left, middle, right = upper.subplots(1, 3)
    calibration_axes(left, content)
    step_axes(middle, content)
    stability_axes(right, content)
    shown = [("start", before.facts.path.start), (f"end: {', '.join(before.verdicts)}", before.facts.path.final)]
    if after is not None:
        shown.append((f"after the prescription: {', '.join(after.verdicts)}", after.facts.path.final))
    for axes, (title, images) in zip(lower.subplots(1, 3), [*shown, *[("", None)] * (3 - len(shown))], strict=True):
        axes.axis("off")
        if images is not None:
            axes.imshow(grid(images[:16].float().nan_to_num(0)))
            axes.set_title(title, fontsize=10)
    figure.suptitle(f"{Path(content['run']).name}, {content['sampler']}: {', '.join(content['verdicts'])}", fontsize=12)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def calibration_axes(axes: Axes, content: dict[str, Any]) -> None:
    """Explained fraction and slope against σ, with the trusted range and the sampler's."""
    rows = content["calibration"]
    sigma = [row["sigma"] for row in rows]
    explained = np.array([row["explained"] if row["explained"] is not None else np.nan for row in rows])
    if content["trusted"]:
        axes.axvspan(*content["trusted"], color=GREEN, alpha=0.12, lw=0, label="trusted")
    walked = [step["sigma"] for step in content["steps"]]
    axes.plot([min(walked), max(walked)], [-0.06, -0.06], color=RED, lw=4, marker="|", solid_capstyle="butt",
              label="sampler's range")
    axes.plot(sigma, explained.clip(-0.15, 1.3), color=BLUE, marker="o", ms=3, label="explained fraction")
    axes.plot(sigma, [row["gaussian"] for row in rows], color=GREY, ls="--", label="explained by a Gaussian")
    slope = np.array([row["slope"] if row["slope"] is not None else np.nan for row in rows])
    axes.plot(sigma, slope.clip(-0.15, 1.3), color=ORANGE, marker=".", lw=1, label="slope (1 is calibrated)")
    axes.axhline(1, color=ORANGE, lw=0.6, ls=":")
    axes.set(xscale="log", ylim=(-0.2, 1.35), xlabel="noise level σ", title="Is the score calibrated?")
    legend_below(axes)


def step_axes(axes: Axes, content: dict[str, Any]) -> None:
    """Drift and noise of each step and cumulative, and the distance from the data."""
    steps = content["steps"]
    index = [step["index"] + 1 for step in steps]
    mark = {"marker": "."} if len(steps) < 40 else {}
    lines = (("drift", BLUE, "-", "drift of a step"), ("noise_size", ORANGE, "-", "noise of a step"),
             ("drift_total", BLUE, "--", "cumulative drift"), ("noise_total", ORANGE, "--", "cumulative noise"),
             ("distance", GREEN, "-", "distance from the data (right)"))
    right = axes.twinx()  # in units of the data's width
    for name, color, style, label in lines:
        values = np.array([step[name] if step[name] else np.nan for step in steps], dtype=float)
        if np.isfinite(values).any():
            (right if name == "distance" else axes).plot(index, values, color=color, ls=style, lw=1.3, label=label,
                                                         **mark)  # type: ignore[arg-type]
    axes.set(yscale="log", xlabel="step", ylabel="RMS per pixel", title="What does a step do?")
    right.set_yscale("log")
    right.set_ylabel("distance, in widths of the data", color=GREEN)
    legend_below(axes, right)


def stability_axes(axes: Axes, content: dict[str, Any]) -> None:
    """The step size against the largest stable one."""
    for on_path, marker, label in ((True, "o", "2/L on the trajectory"), (False, "x", "2/L at noised images")):
        rows = [row for row in content["curvature"] if row["on_path"] is on_path and row["stable_below"]]
        axes.plot([row["step"] + 1 for row in rows], [row["stable_below"] for row in rows], color=RED, marker=marker, ls="",
                  label=label)
    steps = [(step["index"] + 1, step["step_size"]) for step in content["steps"] if step["step_size"] is not None]
    if steps:
        axes.plot(*zip(*steps, strict=True), color=BLUE, lw=1.5, label="step size a")
    axes.set(yscale="log", xlabel="step", title="Is it stable? (below 2/L)")
    legend_below(axes)


def legend_below(axes: Axes, *others: Axes) -> None:
    """A legend of all that is drawn, under the axes, where it covers nothing."""
    handles = [handle for one in (axes, *others) for handle in one.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
