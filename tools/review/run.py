"""One run's folder as the page shows it: numbers for the table, curves, calibration, previews and samplers."""
from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.config.override import key, quoted
from launch.study.cluster import Job
from launch.study.point import Point
from tools.review import config as configs
from tools.review.album import Album, Share
from tools.review.curves import by_level, curve, short
from tools.review.doctor import put_diagnoses
from tools.review.evaluated import put_evaluations
from tools.review.previews import put_preview, read_previews, spread_evenly
from tools.review.records import Record, number, of_event, read_metrics
from tools.review.samples import put_samplings
from tools.review.state import state_of


@dataclass(frozen=True)
class Limits:
    """How much of each run a page keeps, by the number of runs."""

    runs: int

    @property
    def points(self) -> int:
        """Points of a curve."""
        return max(60, min(800, 18_000 // self.runs))

    @property
    def measurements(self) -> int:
        """Times at which calibration is shown."""
        return 16 if self.runs <= 20 else 8 if self.runs <= 80 else 4

    @property
    def previews(self) -> int:
        """Times at which samples are shown, where the run's share of the album has room."""
        return 24 if self.runs <= 20 else 12 if self.runs <= 80 else 6


def put_run(point: Point, samplers: Sequence[Point], *, jobs: dict[Path, Job], album: Album, share: Share,
           limits: Limits) -> dict[str, Any]:
    """A run and its samplers for the page; what can't be read is added to the album's problems."""
    records, problems = read_metrics(point.folder / "metrics.jsonl")
    config, unread = configs.read_config(point.folder)
    state, why = state_of(point, records, jobs.get(point.folder))
    if state != "waiting":
        album.problems += [*problems, *unread]
    shape = config.get("data.shape")
    content: dict[str, Any] = {
        "label": point.label, "folder": str(point.folder), "state": state, "why": why, "overrides": by_key(point.overrides),
        "arguments": list(point.overrides), **command_entry(point), "config": configs.main_values(config),
        "comparable": configs.loss_protocol(config),
        "values": run_values(records, config), "devices": sorted({str(one["device"]) for one in of_event(records, "start")
                                                              if "device" in one}),
        "warnings": [one["words"] for one in of_event(records, "warning")],
        "train": curve(of_event(records, "train"), "loss", limit=limits.points),
        "held_out": curve(of_event(records, "held_out"), "loss", limit=limits.points),
        "by_sigma": by_level(of_event(records, "loss_by_sigma"), ("loss", "share"), limit=limits.measurements),
        "calibration": by_level(of_event(records, "calibration"), ("explained", "slope", "gain"), limit=limits.measurements)}
    # The order in which the run uses up its share of the album: results first, the way to them last.
    grids = read_previews(point.folder, records, most=limits.previews)
    newest = [put_preview(one, album, share) for one in grids[-1:]]
    content["samplers"] = [one for sampler in samplers for one in put_sampler(
        sampler, jobs, shape=shape, album=album, share=share)]
    own = put_samplings(point.folder / "samples", newest=False, shape=shape, album=album, share=share)
    content["samplers"] += [one | {"state": "done", "why": "", "overrides": {}, "arguments": [], "command": "", "place": ""}
                            for one in own]
    content["evaluations"] = put_evaluations(point.folder, content["samplers"], album=album, share=share)
    content["diagnoses"] = put_diagnoses(point.folder, album=album, share=share)
    earlier = [put_preview(one, album, share) for one in spread_evenly(grids[:-1])]
    content["previews"] = sorted(filter(None, [*newest, *earlier]), key=lambda one: one["images"])
    return content


def put_sampler(sampler: Point, jobs: dict[Path, Job], *, shape: Any, album: Album, share: Share) -> list[dict[str, Any]]:
    """A sampler of a study: its newest sampling, or an empty one where there is none yet."""
    state, why = state_of(sampler, [], jobs.get(sampler.folder))
    found = put_samplings(sampler.folder, newest=True, shape=shape, album=album, share=share)
    empty: dict[str, Any] = {"sampler": "", "picture": None, "trajectory": None, "metrics": {}, "diagnoses": []}
    return [one | {"label": sampler.label, "state": state, "why": why, "overrides": by_key(sampler.overrides),
                   "arguments": list(sampler.overrides), "place": sampler.folder.name, **command_entry(sampler)}
            for one in found or [empty]]


def by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by what they set."""
    return {key(one): one.split("=", 1)[1] if "=" in one else "" for one in overrides}


def command_entry(point: Point) -> dict[str, str]:
    """``command``, which repeats the point, and ``command_note`` if it does not quite."""
    if point.kind == "sample":
        return {"command": shlex.join(["python", f"launch/{point.entry}.py", f"run={quoted(point.run)}",
                                       *(one for one in point.overrides if not one.startswith("label="))])}
    if point.overrides:
        return {"command": shlex.join(["python", "launch/train.py", *point.overrides])}
    return {"command": shlex.join(["python", "launch/sample.py", f"run={quoted(point.folder)}"]),
            "command_note": "This run's overrides are not recorded (config.yaml has its values); this command samples from it."}


def run_values(records: Sequence[Record], config: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a run in the table; None if nothing was recorded."""
    trained, held_out, starts = (of_event(records, event) for event in ("train", "held_out", "start"))
    losses = [one["loss"] for one in held_out if one["loss"] is not None]
    return {
        "images": max((one["images"] for one in trained), default=None), "budget": number(config.get("budget.images")),
        "loss": short(trained[-1]["loss"]) if trained else None, "held_out": short(held_out[-1]["loss"]) if held_out else None,
        "best_held_out": short(min(losses, default=None)),
        "images_per_s": short(trained[-1].get("images_per_s")) if trained else None, "hours": short(device_hours(records)),
        "restarts": len(starts) - 1 if starts else None}


def device_hours(records: Sequence[Record]) -> float | None:
    """Hours times processes, summed over starts, each up to its last record before the next; None if not recorded.

    It is a lower bound: the records of work that a resumed run repeats are gone.
    """
    total, known = 0.0, False
    began = last = processes = 0.0
    for record in [*records, {"event": "start"}]:
        now = number(record.get("time"))
        if record["event"] == "start":
            total += max(0.0, last - began) * processes
            processes = number(record.get("processes")) or 1
            # A start is written when its first step is over; its devices were held since it began.
            began = last = (now - (number(record.get("seconds")) or 0.0)) if now is not None else 0.0
            known |= now is not None
        if now is not None and began:
            last = max(last, now)
    return total / 3600 if known else None
