#!/usr/bin/env python3
"""Draws the training and held-out loss of one or more runs against images seen: plot_loss.py OUT.png RUN [RUN …]."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # works from a checkout that is not installed

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot
from omegaconf import OmegaConf

from ebm.train.metrics import read


def main() -> None:
    """Reads each run's metrics.jsonl and writes one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the .png to write")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    options = parser.parse_args()
    if not options.out.parent.is_dir():
        parser.error(f"out: there is no folder {options.out.parent}")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    weightings = set()
    for run in options.runs:
        records = list(read(run / "metrics.jsonl"))
        if not records or not (run / "config.yaml").exists():
            parser.error(f"{run}: no run with records in its metrics.jsonl")
        weightings.add(str(OmegaConf.select(OmegaConf.load(run / "config.yaml"), "objective.weighting._target_")))
        for event, style in (("train", "-"), ("held_out", "o--")):
            points = [(record["images"], record["loss"]) for record in records if record["event"] == event]
            if points:
                label = f"{run.name}, {event.replace('_', '-')}"
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    weighting = f"{weightings.pop().rpartition('.')[2]} weighting" if len(weightings) == 1 else "weightings differ"
    axes.set(xlabel="images seen", ylabel=f"loss ({weighting})", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
