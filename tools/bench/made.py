"""A study's folders as training and sampling leave them, made up: for the report's benchmark and its tests."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools import report
from tools.review.album import Album, Grid, square_grid

Record = dict[str, Any]
MODELS, PEAKS = ("cnn", "unet", "unet_full"), ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")


def trained(store: Path, name: str, lines: Sequence[Record | str], *, schedule: str = "LogNormal", steps: int = 0,
            size: int = 8) -> Path:
    """A run's folder with its config, its records (texts as they are), and a checkpoint of ``steps``."""
    folder = store / "runs" / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"data:\n  name: tiny\n  shape: [3, {size}, {size}]\nschedule:\n  _target_: ebm.schedule.{schedule}\n"
        "objective:\n  weighting:\n    _target_: ebm.objective.EDM\nbudget:\n  images: 1000\nrate:\n  peak: 0.001\nseed: 0\n")
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if steps:
        (folder / "checkpoints" / f"step-{steps:09}-0123456789abcdef.pt").touch()
    return folder


def start(at: float, *, processes: int = 1, device: str = "cpu", seconds: float = 0.0) -> Record:
    return {"event": "start", "step": 1, "images": 10, "time": at, "processes": processes, "device": device, "seconds": seconds}


def train(images: int, loss: float | None, *, at: float = 0.0) -> Record:
    return {"event": "train", "step": images // 10, "images": images, "time": at, "loss": loss, "images_per_s": 50.0}


def held_out(images: int, loss: float | None) -> Record:
    return {"event": "held_out", "step": images // 10, "images": images, "time": 0.0, "loss": loss}


def calibration(images: int, sigma: float, explained: float) -> Record:
    return {"event": "calibration", "step": images // 10, "images": images, "sigma": sigma, "explained": explained,
            "slope": 1.0, "gain": explained / 2, "seconds": 0.1}


def usual(loss: float = 0.5) -> list[Record]:
    return [start(100.0), *(train(images, loss + 10 / images, at=100.0 + images) for images in range(100, 1001, 100)),
            held_out(1000, loss), {"event": "end", "step": 100, "images": 1000, "time": 1100.0, "how": "trained"}]


def studied(store: Path, points: Sequence[tuple[Path, Sequence[str]]], samplers: Sequence[tuple[Path, Path]] = ()) -> Path:
    """A study's folder of runs with their overrides, and of samplings (run, folder)."""
    folder = store / "studies" / "one"
    folder.mkdir(parents=True)
    label = {run: " ".join(overrides) for run, overrides in points}
    found = [{"kind": "train", "label": label[run], "of": "", "folder": str(run), "steps": 100, "batch": 10, "job": "done",
              "overrides": list(overrides)} for run, overrides in points]
    found += [{"kind": "sample", "label": place.name, "of": label[run], "folder": str(place), "steps": 0, "batch": 0,
               "job": "done", "overrides": [f"sampler={place.name}", "n=4"]} for run, place in samplers]
    about = {"command": ["-m", "seed=0,1"], "code": "c0de", "created": "2026-11-24 12:00:00"}
    (folder / "study.json").write_text(json.dumps({**about, "points": found}))
    return folder


def sampled(run: Path, name: str, *, frames: int = 3, rows: int = 2, size: int = 8, **more: Any) -> Path:
    """A sampler's folder: four images, a trajectory, a protocol with ``more`` in it."""
    folder = run / "samples" / name
    folder.mkdir(parents=True)
    grid(folder / "a.png", square_grid(4), size=size)
    grid(folder / "a-trajectory.png", Grid(frames, rows, frames * rows), size=size)
    (folder / "a.npz").touch()
    told = [{"step": step, "sigma": 10.0 ** (1 - step)} for step in range(frames)]
    (folder / "a.json").write_text(json.dumps({
        "run": str(run), "sampler": name, "settings": {"steps": 9}, "n": 4, "seed": 0, "nfe": 17, "seconds": 1.5, "time": 5.0,
        "trajectory": {"path": "a-trajectory.png", "rows": rows, "frames": told}, **more}))
    return folder


def evaluated(run: Path, name: str, **values: float) -> None:
    """A record of the quality of the samples in ``run``/samples/``name``."""
    path = run / "evaluations" / name / "quality-a.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metric": "quality", "values": values, "measure": {"n": 4, "extractor": "inception"},
                                "subject": {"sampler": name, "n": 4}, "details": {}, "pictures": {}, "time": 6.0}))


def shade(index: int) -> int:
    return 40 + 37 * index % 200


def grid(path: Path, form: Grid, *, size: int = 8) -> None:
    """A PNG as torchvision's grids are: a black pixel around the tiles; tile i is evenly of ``shade(i)``."""
    gap = 1 if form.columns * form.rows > 1 else 0
    pixels = np.zeros((form.rows * (size + gap) + gap, form.columns * (size + gap) + gap, 3), np.uint8)
    for index in range(form.count):
        top, left = (place * (size + gap) + gap for place in divmod(index, form.columns))
        pixels[top:top + size, left:left + size] = shade(index)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def many(store: Path, count: int) -> Path:
    """The page of a study of so many runs, a sampler on every tenth."""
    points, samplers = [], []
    for number in range(count):
        model, peak, seed = MODELS[number % 3], PEAKS[number // 3 % 5], 20 * number // count
        loss = 0.1 + 0.1 * (2 - number % 3) + 0.3 * number / count
        lines: list[Any] = [start(100.0, processes=8, device="NVIDIA H100")]
        lines += [train(images, loss + 100 / images, at=100.0 + images) for images in range(100, 10_001, 100)]
        lines += [held_out(images, loss + 50 / images) for images in range(1000, 10_001, 1000)]
        lines += [calibration(images, 10.0 ** level, 0.5) for images in (5000, 10_000) for level in range(-2, 2)]
        lines += [{"event": "preview", "images": images, "path": f"previews/{images}.png", "count": 16}
                  for images in (5000, 10_000)]
        run = trained(store, f"run{number}", lines, steps=100)
        for images in (5000, 10_000):
            grid(run / "previews" / f"{images}.png", square_grid(16), size=16)
        points.append((run, [f"model={model}", f"rate.peak={peak}", f"seed={seed}", "data=cifar10"]))
        if number % 10 == 0:
            samplers.append((run, sampled(run, "heun")))
            evaluated(run, "heun", fid=100 * loss)
    study = studied(store, points, samplers)
    report.write(study, study / "report.html", album=Album(), watch=None)
    return study / "report.html"
