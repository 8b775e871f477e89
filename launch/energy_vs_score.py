#!/usr/bin/env python3
"""Writes the page of the control, docs/energy_vs_score.md, from its study: `python launch/energy_vs_score.py <study folder>`.

`python launch/sweep.py -m sweep=energy_vs_score` calls it when its jobs have ended: the same U-Net as an energy in three
scalar forms and as a direct score, trained on equally many images, compared in quality, time and memory.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

import numpy as np
import torch

from ebm.data import to_float
from ebm.files import write_atomically
from ebm.pictures import save_grid
from ebm.train.metrics import read
from launch.job.process import leave_verdict
from launch.run.folder import RunFolder
from launch.study.point import Point, as_point, read_study

SHOWN = 25  # images in a picture
PAGE = """# The control: an energy against a direct score

The same U-Net, preconditioning, schedule, optimiser, images and seeds; only the meaning of the network's output f differs: it
is the score itself, or gives a scalar energy φ whose gradient is the score. Papers rarely report this comparison.

The study: `python launch/sweep.py {command}`.
Written by `launch/energy_vs_score.py` on {date}; {machine}, torch {torch}; device {device}, {processes}. Data: {data},
{images:,} training images seen by each. Quality is measured on {samples:,} samples of {sampler}, **in the feature space that
the column names: only `fid` and `kid` are comparable to published values, and only on the published data.**

{table}

{notes}

{pictures}
"""
NOTES = """- *Held-out loss*: denoising score matching with EDM's weighting on {held_out}, the same for all; lower is better.
- *Images/s*: the median over the training log. *Peak memory*: the most that the process held, data set included. *Relative to
  the score*: the ratio to the direct score's value.
- *Seconds per image*: the time of sampling, at {nfe} network passes per image; an energy needs a backward pass after each.
- Protocol of the quality columns: {measure}."""


def main() -> None:
    """Writes the page; exits with 2 and one line if runs or evaluations of the study are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the study's folder, as sweep.py printed it")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where to write the page and its pictures (docs)")
    options = parser.parse_args()
    try:
        study = read_study(options.folder)
        rows = [read_row(point) for point in map(as_point, study["points"]) if point.kind == "sample"]
        if not rows:
            raise ValueError(f"folder: {options.folder} has no samplings; python launch/status.py {options.folder} says why")
        if len({one["name"] for one in rows}) < len(rows):
            raise ValueError(f"folder: {options.folder} has several runs of one form; the page compares one of each")
        text = page_text(rows, study)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        leave_verdict("failed")  # as a job, it would end so again
        sys.exit(2)
    folder = options.out / "energy_vs_score"
    for one in rows:
        large = one["pixels"][:SHOWN].repeat(2, axis=1).repeat(2, axis=2)
        save_grid(to_float(torch.from_numpy(large).permute(0, 3, 1, 2)), folder / f"{one['name']}.png")
    write_atomically(options.out / "energy_vs_score.md", text.encode())
    print(f"written: {options.out / 'energy_vs_score.md'}")


def read_row(point: Point) -> dict[str, Any]:
    """The results of one form of the model, of training and of its samples; raises ValueError if any is missing."""
    run = point.folder.parents[1]
    past = list(read(RunFolder(run).metrics_file))
    trained, held_out = ([one for one in past if one["event"] == event] for event in ("train", "held_out"))
    archives, protocols = sorted(point.folder.glob("*.npz")), sorted(point.folder.glob("*.json"))
    records = sorted((json.loads(path.read_text()) for path in point.records.glob("quality-*.json")),
                     key=lambda record: float(record["time"]))
    if not (trained and held_out and archives and records):
        raise ValueError(f"{point.label}: not trained, sampled and measured yet; python launch/evaluate.py run={run} "
                         f"samples={point.folder} out={point.records} metrics=[quality] measures existing samples")
    with np.load(archives[-1]) as content:
        pixels = content["images"]
    protocol = json.loads(next(path for path in protocols if path.stem == archives[-1].stem).read_text())
    start = next(one for one in past if one["event"] == "start")
    config = RunFolder(run).config()
    return {
        "name": point.label.rpartition("/")[2], "pixels": pixels, "protocol": protocol, "quality": records[-1],
        "held_out": held_out[-1]["loss"], "counted": config.save.held_out, "images": trained[-1]["images"],
        "speed": statistics.median(one["images_per_s"] for one in trained),
        "memory": max(one["peak_memory_gb"] for one in trained), "device": start["device"], "processes": start["processes"],
        "data": config.data.train, "seconds": protocol["seconds"] / protocol["n"], "nfe": protocol["nfe"]}


def page_text(rows: list[dict[str, Any]], study: dict[str, Any]) -> str:
    """The page in Markdown."""
    first = rows[0]
    measure = json.dumps(first["quality"]["measure"], default=str)
    if any(one["quality"]["measure"] != first["quality"]["measure"] for one in rows):
        raise ValueError("folder: the evaluations have different protocols; evaluate all forms alike")
    pictures = "\n\n".join(f"### {one['name']}\n\n![](energy_vs_score/{one['name']}.png)" for one in rows)
    return PAGE.format(
        command=" ".join(study["command"]), date=time.strftime("%Y-%m-%d"), torch=torch.__version__, device=first["device"],
        machine=f"{platform.machine()}, {os.cpu_count()} cores", data=first["data"], images=first["images"],
        processes="one process" if first["processes"] == 1 else f"{first['processes']} processes",
        samples=first["protocol"]["n"], sampler=first["protocol"]["sampler"], table=table_text(rows), pictures=pictures,
        notes=NOTES.format(held_out=f"{first['counted']:,} held-out images", nfe=first["nfe"], measure=f"`{measure}`"))


def table_text(rows: list[dict[str, Any]]) -> str:
    """The table that compares the forms."""
    score = next((one for one in rows if one["name"] == "score"), rows[-1])
    names = [name for name in score["quality"]["values"] if not name.endswith("_stderr")]
    head = ["form", "held-out loss", *names, "images/s", "time relative to the score", "peak memory, GB",
            "memory relative to the score", "seconds per image"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in rows:
        values = one["quality"]["values"]
        cells = [one["name"].replace("_", " "), f"{one['held_out']:.4f}", *(figure_text(values, name) for name in names),
                 f"{one['speed']:.0f}", f"{score['speed'] / one['speed']:.2f} ×", f"{one['memory']:.2f}",
                 f"{one['memory'] / score['memory']:.2f} ×", f"{one['seconds']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure_text(values: dict[str, float], name: str) -> str:
    """A value with its standard error, if it has one."""
    error = values.get(f"{name}_stderr")
    return f"{values[name]:.4g}" + (f" ± {error:.2g}" if error is not None else "") if name in values else ""


if __name__ == "__main__":
    main()
