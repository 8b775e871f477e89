#!/usr/bin/env python3
"""Writes the page of the journey, docs/journey.md, from its study: `python launch/journey.py <study folder> [--out docs]`.

`python launch/sweep.py -m sweep=journey` calls it when its jobs have ended. A diagnosis that exists is not repeated.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from ebm.data import Dataset, to_float
from ebm.diagnose.reference import Reference
from ebm.files import write_atomically
from ebm.pictures import save_grid
from ebm.train.metrics import read
from launch.config.manual import CONFIGS
from launch.config.override import key
from launch.diagnosis.story import PAGE, SECTION, STEPS, Record, conclusion
from launch.job.process import leave_verdict
from launch.run.folder import RunFolder
from launch.study.point import read_study

SHOWN, COMPARED = 25, 64  # images in a picture and for a distance


def main() -> None:
    """Diagnoses every step and writes the page; exits with 2 and one line if the study isn't a complete journey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the study's folder, as sweep.py printed it")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where to write journey.md and its pictures (docs)")
    options = parser.parse_args()
    try:
        study = read_study(options.folder)
        points = {point["label"]: point for point in study["points"] if point["kind"] == "sample" and point["label"] in STEPS}
        if missing := [name for name in STEPS if name not in points or not image_files(points[name]["folder"])]:
            raise ValueError(f"folder: {options.folder} has no samples of {', '.join(missing)}; python launch/status.py "
                             f"{options.folder} says why")
        records = {name: diagnose_step(points[name]) for name in tqdm(STEPS, desc="diagnoses", unit="step")}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        leave_verdict("failed")  # as a job, it would end so again
        sys.exit(2)
    pictures = options.out / "journey"
    for name, record in records.items():
        large = load_images(record)[:SHOWN].repeat(2, axis=1).repeat(2, axis=2)
        save_grid(to_float(torch.from_numpy(large).permute(0, 3, 1, 2)), pictures / f"{file_name(name)}.png")
        with Image.open(Path(record["folder"]) / "diagnosis" / "diagnosis.png") as figure:  # fewer colours: a small page
            figure.convert("RGB").quantize(128).save(pictures / f"{file_name(name)}-diagnosis.png", optimize=True)
    write_atomically(options.out / "journey.md", page_text(records, study).encode())
    print(f"written: {options.out / 'journey.md'}")


def diagnose_step(point: dict[str, Any]) -> Record:
    """The diagnosis of a step, made if there is none, with measurements of its samples."""
    folder = Path(point["folder"])
    run, out = folder.parents[1], folder / "diagnosis"
    if not (out / "diagnosis.json").exists():
        sampler = [one for one in point["overrides"] if key(one).split(".")[0].split("/")[0] == "sampler"]
        entry = str(Path(__file__).with_name("diagnose.py"))
        command = [sys.executable, entry, f"run='{run}'", f"out='{out}'", *sampler, "--try"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{point['label']}: {done.stderr.strip().splitlines()[-1]}")
    record: Record = json.loads((out / "diagnosis.json").read_text())
    config = RunFolder(run).config()
    data = Dataset.open(config.data.test or config.data.train)
    measure = OmegaConf.load(CONFIGS / "diagnose.yaml")
    others = min(COMPARED, data.count // 3)  # real images that the statistics have not seen
    count = min(measure.images, data.count - others)
    held_out = data.images(data.random_subset(count + others), device=torch.device("cpu"))
    shown = load_images({"folder": str(folder)})[:COMPARED]
    x = to_float(torch.from_numpy(shown).permute(0, 3, 1, 2))
    reference = Reference.fit(held_out[:count], components=measure.effort.components)
    past = [one for one in read(RunFolder(run).metrics_file) if one["event"] == "train"]
    record["folder"] = str(folder)
    record["pictures"] = {"distance": reference.distance(x, sigma=0.0), "black": float((shown == 0).mean()),
                          "least": reference.distance(held_out[count:], sigma=0.0), "held_out": count}
    record["training"] = {"images": past[-1]["images"], "loss": [past[0]["loss"], past[-1]["loss"]]}
    return record


def image_files(folder: str) -> list[Path]:
    """The file of a sampling, if it is there."""
    return sorted(Path(folder).glob("*.npz"))


def load_images(record: Record) -> np.ndarray:
    """The samples, uint8 (n, H, W, C)."""
    with np.load(image_files(record["folder"])[0]) as content:
        drawn: np.ndarray = content["images"]
    return drawn


def file_name(name: str) -> str:
    """A step's name as part of file names."""
    return name.split("/")[1]


def page_text(records: dict[str, Record], study: dict[str, Any]) -> str:
    """The page in Markdown."""
    first = next(iter(records.values()))
    rows = [f"| {number}. [{STEPS[name].title}](#{number}-{anchor(STEPS[name].title)}) | {record['training']['images']:,} | "
            f"{record['training']['loss'][0]:.3f} → {record['training']['loss'][1]:.3f} | {', '.join(record['verdicts'])} | "
            f"**{record['pictures']['distance']:.2f}** |" for number, (name, record) in enumerate(records.items(), 1)]
    return PAGE.format(
        study=f"python launch/sweep.py {' '.join(study['command'])}", date=time.strftime("%Y-%m-%d"),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {'a' if torch.cuda.is_available() else 'no'} GPU",
        torch=torch.__version__, data=first["data"], samples=COMPARED, held_out=first["pictures"]["held_out"],
        rows="\n".join(rows),
        least=first["pictures"]["least"], conclusion=conclusion(records),
        sections="\n".join(section_text(number, name, record) for number, (name, record) in enumerate(records.items(), 1)))


def anchor(title: str) -> str:
    """The anchor that Markdown gives to a title."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def section_text(number: int, name: str, record: Record) -> str:
    """The section of one step."""
    told, folder = STEPS[name], Path(record["folder"]) / "diagnosis"
    said = f"By hand: *{told.by_hand}*\n\n{told.judge(record)}\n\n" if told.judge else ""
    return SECTION.format(number=number, title=told.title, change=told.change, said=said, name=file_name(name),
                          doctor=(folder / "diagnosis.txt").read_text().strip())


if __name__ == "__main__":
    main()
