"""The doctor's records: verdicts, their explanation, the figure, and the calibration if training has measured none."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.review.album import Album, Share
from tools.review.curves import by_level
from tools.review.records import Problem, Record, number, read_json


def put_diagnoses(folder: Path, *, album: Album, share: Share) -> list[dict[str, Any]]:
    """Every diagnosis under ``folder``/diagnosis, by its sampler."""
    found = []
    for path in sorted((folder / "diagnosis").rglob("diagnosis.json")):
        content, problems = read_json(path)
        album.problems += problems
        verdicts = content.get("verdicts")
        if not isinstance(verdicts, list):
            album.problems += [] if problems else [Problem(str(path), "no verdicts")]
            continue
        try:
            words = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            words = ""
        found.append({"sampler": str(content.get("sampler", path.parent.name)), "verdicts": [str(one) for one in verdicts],
                      "words": words, "cure": cure(content), "figure": put_figure(path.with_suffix(".png"), album, share),
                      "calibration": calibration(content)})
    return found


def put_figure(path: Path, album: Album, share: Share) -> dict[str, Any] | None:
    """The figure of a diagnosis, if there is one and it fits."""
    return album.figure(path, share) if path.exists() else None


def cure(content: dict[str, Any]) -> str:
    """The prescription as overrides, "" if there is none."""
    prescription = content.get("prescription")
    overrides = prescription.get("overrides") if isinstance(prescription, dict) else None
    return " ".join(map(str, overrides)) if isinstance(overrides, list) else ""


def calibration(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The calibration in the form that training records, with images = 0."""
    rows = content.get("calibration")
    levels: list[Record] = [{**row, "images": 0} for row in rows if isinstance(row, dict) and number(row.get("sigma"))] \
        if isinstance(rows, list) else []
    return by_level(levels, ("explained", "slope", "gain"), limit=2)
