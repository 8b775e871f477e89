"""A point of a study, which is one job, its state by the files in its folder, and the study's record of all points.

Only the standard library, so that showing a study's state takes no time.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.job.process import newest_step

TAIL = 32768  # bytes of a log's or a record's end that are read


@dataclass(frozen=True)
class Point:
    """One job: a run of training, or a sampler on one (``of``); ``folder`` is where its results lie."""

    kind: str
    label: str
    folder: Path
    overrides: tuple[str, ...]
    steps: int = 0
    batch: int = 0
    of: Point | None = None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.of.folder if self.of else self.folder

    @property
    def title(self) -> str:
        """Its label, a sampling's after that of its run."""
        return f"{self.of.label} × {self.label}" if self.of else self.label

    def done(self) -> bool:
        """Whether its results are there."""
        if self.kind == "train":
            return newest_step(self.folder) >= max(self.steps, 1)
        label = next((one.split("=", 1)[1] for one in self.overrides if one.startswith("label=")), None)
        return any(self.folder.glob("*.npz")) if label is None else (self.records / f"evaluation-{label}.json").exists()

    @property
    def entry(self) -> str:
        """The entry that runs it: samples that are to be measured are drawn by evaluate.py."""
        return "evaluate" if any(one.startswith("metrics=") for one in self.overrides) else self.kind

    @property
    def records(self) -> Path:
        """The folder of the evaluations of its samples."""
        return self.folder.parents[1] / "evaluations" / self.folder.name

    def reason(self) -> str:
        """Why it failed, with rank and node; "" if nothing is recorded."""
        try:
            content = json.loads((self.folder / "failure.json").read_text())
        except (OSError, ValueError):
            hung = [path.name for path in self.folder.glob("stacks-rank*.txt") if path.stat().st_size]
            return f"hung; see {', '.join(sorted(hung))}" if hung else ""
        where = f"rank {content['rank']} on {content['node']}: " if "rank" in content else ""
        return f"{where}{content['error']}"


def read_study(folder: Path) -> dict[str, Any]:
    """The record of a study; raises FileNotFoundError if the folder holds none, ValueError if it is damaged."""
    path = folder / "study.json"
    if not path.exists():
        raise FileNotFoundError(f"folder: {folder} holds no study.json; give the folder that sweep.py printed")
    try:
        study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for point in study["points"]:
            as_point(point), point["of"], point["job"], int(point["steps"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"folder: {path} is not the record of a study ({error}); give the folder that sweep.py "
                         "printed") from error
    return study


def as_point(record: dict[str, Any], of: Point | None = None) -> Point:
    """A point as the study had it when it was submitted."""
    return Point(record["kind"], record["label"], Path(record["folder"]), tuple(record["overrides"]), record["steps"],
                 record.get("batch", 0), of)


def read_points(folder: Path) -> list[Point]:
    """A study's points as they were submitted, samplings after their runs, independent of today's configs."""
    runs: dict[Path, Point] = {}
    found: list[Point] = []
    for one in read_study(folder)["points"]:
        point = as_point(one, runs.get(Path(one["folder"]).parents[1]) if one["kind"] == "sample" else None)
        runs[point.folder] = point
        found.append(point)
    return found


def locate(place: Path, study: Path) -> Path:
    """The folder of a point: as recorded, or in the study's store if both have been moved."""
    if place.exists() or "runs" not in place.parts:
        return place
    tail = place.parts[len(place.parts) - place.parts[::-1].index("runs"):]
    moved = study.resolve().parent.parent.joinpath("runs", *tail)
    return moved if moved.exists() else place


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 job", "2 jobs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def tail(path: Path, count: int) -> list[str]:
    """The last lines of a file, with only the last state of each progress bar."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    return [line.split("\r")[-1] for line in text.splitlines() if line.strip()][-count:]


def error_line(path: Path) -> str:
    """The last error of an entry in its log, without the word "error:"; "" if there is none."""
    lines = tail(path, TAIL) if path.exists() else []
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


def last_record(path: Path) -> dict[str, Any]:
    """The last record of training."""
    if path.exists():
        for line in reversed(tail(path, 200)):  # more than come between two of them
            try:
                record: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if record.get("event") == "train":
                return record
    return {}
