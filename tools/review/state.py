"""The state of a study's point: from its folder, and from SLURM if it knows the job."""
from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launch.study.cluster import Job
from launch.study.point import Point
from tools.review.records import Record, number, of_event

STATES = {"COMPLETED": "done", "RUNNING": "running", "COMPLETING": "running", "SUSPENDED": "waiting", "PENDING": "waiting",
          "CONFIGURING": "waiting", "REQUEUED": "waiting", "REQUEUE_HOLD": "waiting", "CANCELLED": "stopped"}
OVER = ("done", "failed", "stopped")
QUIET = 300.0  # seconds without a record after which a run counts as no longer running, unless its records are rarer


def state_of(point: Point, records: Sequence[Record], job: Job | None) -> tuple[str, str]:
    """The state of a point, and the reason if it failed or waits: from its folder, and from SLURM if it knows the job."""
    if not point.folder.exists():
        return STATES.get(job.state, "failed") if job else "waiting", job.reason if job and not job.over else ""
    if point.done() and (point.kind == "sample" or point.steps):
        return "done", ""
    if job is not None:
        state = STATES.get(job.state, "failed")
        return state, (failure_reason(point) or job.code) if state == "failed" else job.reason
    ends = [one for one in records if one["event"] in ("start", "train", "end")]
    if ends and ends[-1]["event"] == "end":
        return "done" if ends[-1].get("how") == "trained" else "stopped", ""
    last, usual = pulse(point.folder / "metrics.jsonl", records)
    failure = point.folder / "failure.json"
    if last and time.time() - last < max(QUIET, 5 * usual) and not (failure.exists() and failure.stat().st_mtime >= last):
        return "running", ""
    why = failure_reason(point)
    return ("failed", why) if why else ("unknown" if records else "waiting", "")


def failure_reason(point: Point) -> str:
    """Why a point failed, if it recorded a reason."""
    try:
        return point.reason()
    except (KeyError, TypeError):
        return "its failure.json can't be read"


def pulse(path: Path, records: Sequence[Record]) -> tuple[float, float]:
    """When the last record was written, 0 if none, and the usual seconds between two of training."""
    trained = of_event(records, "train")
    speed = number(trained[-1].get("images_per_s")) if trained else None
    way = trained[-1]["images"] - trained[-2]["images"] if len(trained) > 1 else 0
    return (path.stat().st_mtime if records and path.exists() else 0.0), (way / speed if speed else 0.0)
