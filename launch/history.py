"""What W&B is shown: a run's records as values by name, and what finished work has left as a summary and pictures."""
from __future__ import annotations

from pathlib import Path
from typing import Any

AXES = ("event", "step", "images", "time", "path", "how", "words")  # what a record says that is no value


def rows(record: dict[str, Any]) -> dict[str, float]:
    """The values of one record of metrics.jsonl, by W&B's names: `train/loss`, `calibration/slope/0.5`, `energy/data/mean`."""
    event, what = record["event"], {name: value for name, value in record.items() if name not in AXES and value is not None}
    if event in ("start", "end", "warning"):
        return {}
    if event == "loss_by_sigma":
        return {f"loss_by_sigma/{record['sigma']:.3g}": what["loss"]} if "loss" in what else {}
    if event == "calibration":
        level = f"{what.pop('sigma'):.3g}"
        return {f"calibration/{name}/{level}": value for name, value in what.items() if name != "seconds"}
    if event == "energy":
        return {f"energy/{record['at']}/{name}": what[name] for name in ("mean", "std") if name in what}
    return {f"{event}/{name}": value for name, value in what.items() if isinstance(value, int | float)}


def shown(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Summary and pictures of a sampling's protocol or of a diagnosis, the JSON file at ``path``."""
    if "verdicts" in content:
        end = content.get("end", {})
        values = {"verdicts": content["verdicts"], "sampler": content.get("sampler"), "trusted": content.get("trusted"),
                  "distance": end.get("distance"), "words": path.with_suffix(".txt").read_text().strip()}
        return values, {"diagnosis": path.with_suffix(".png")}
    pictures = {"samples": path.with_suffix(".png")}
    if film := content.get("trajectory"):
        pictures["trajectory"] = path.parent / film["path"]
    return {name: content[name] for name in ("sampler", "n", "nfe", "seconds", "step", "ema") if name in content}, pictures
