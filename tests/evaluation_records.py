"""Records of evaluations as launch/evaluate.py leaves them, made up; and what lies in such folders and is none."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHA = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
REFERENCE = "a1b2c3d4" * 8


def quality(**other: Any) -> dict[str, Any]:
    """The protocol of a figure of samples' quality, with what is to be ``other`` than usual."""
    return {"n": 50_000, "reference": "cifar10", "reference_sha256": REFERENCE, "extractor": "inception",
            "extractor_sha256": SHA, **other}


def record(folder: Path, name: str, values: dict[str, Any], *, metric: str = "quality", measure: dict[str, Any] | None = None,
           pictures: tuple[str, ...] = (), at: float = 1.0, **subject: Any) -> Path:
    """Writes a record to ``folder``/evaluations/<metric>-<name>.json with its pictures; its place."""
    told = {"run": str(folder), "step": 3125, "images": 100_000, "checkpoint": "step-000003125-0123456789abcdef.pt", "ema": 0,
            "ema_rule": {"halflife": 1000}, "seed": 0, "precision": "bf16", "device": "cpu", "version": "12ab34cd56ef",
            "sampler": "heun", "settings": {"steps": 18, "churn": 0.0}, "n": 50_000, "nfe": 35, "seconds": 100.0, **subject}
    path = folder / "evaluations" / f"{metric}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {one: f"{path.stem}-{one}.png" for one in pictures}
    for file in files.values():
        ramp = np.linspace(0, 255, 3 * 64 * 96).reshape(64, 96, 3).astype(np.uint8)
        Image.fromarray(ramp).save(path.parent / file)
    content = {"metric": metric, "values": values, "measure": quality() if measure is None else measure,
               "subject": {key: value for key, value in told.items() if value is not None}, "details": {}, "pictures": files,
               "time": at}
    path.write_text(json.dumps(content))
    return path


def sweep(folder: Path) -> None:
    """Records of two samplers of one run at several costs, and of what they cost."""
    for sampler, evaluations, floor in (("heun", (9, 17, 35, 69), 4.0), ("annealed", (20, 50, 100, 500), 7.0)):
        for nfe in evaluations:
            settings = {"steps": (nfe + 1) // 2 if sampler == "heun" else nfe // 5, "steps_per_level": 5, "churn": 0.0}
            told = {"sampler": sampler, "settings": settings, "nfe": nfe}
            record(folder, f"{sampler}-{nfe}", {"fid": floor + 300 / nfe, "fid_stderr": 0.6, "fid_real": 2.5}, **told)
            record(folder, f"{sampler}-{nfe}", {"nfe": nfe, "seconds_per_image": 0.002 * nfe}, metric="cost",
                   measure={"images": 64}, **told)
