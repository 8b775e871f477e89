"""The files that W&B has written offline for a study or a run: in order, and whether they have ended."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.study import cluster, here
from launch.study.point import as_point, locate, read_study

IDLE = 120.0  # seconds without a write after which a file has ended: W&B measures the machine four times a minute
HEADER = 7  # bytes of a file into which nothing has been written yet
DEPTHS = ("", "*/", "*/*/")  # of a run's folder: itself, its diagnosis, its samples


@dataclass(frozen=True)
class Segment:
    """The file of one start of a run; a requeued run has several with the same id."""

    file: Path

    @property
    def run(self) -> str:
        """W&B's id of the run."""
        return self.file.stem.removeprefix("run-")

    @property
    def marker(self) -> Path:
        """wandb's own mark that the file has been sent, with the file's modification time at that moment."""
        return self.file.with_name(f"{self.file.name}.synced")

    @property
    def began(self) -> tuple[str, int]:
        """When it began, for sorting; of two in the same second, the later has a number behind its name."""
        stamp, _, rest = self.file.parent.name.split("run-", 1)[1].partition("-")
        number = rest.removeprefix(f"{self.run}-")
        return stamp, int(number) if number.isdigit() else 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send, as after a kill in its first second."""
        return self.file.stat().st_size <= HEADER

    @property
    def live(self) -> bool:
        """Whether it may still be written: it has no end, and W&B's own measurements have come in recently."""
        if time.time() - self.file.stat().st_mtime > IDLE:
            return False
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(self.file)]
        text = subprocess.run(inspect, capture_output=True, text=True, check=False).stdout
        return not (text.startswith("{") and json.loads(text)["exit_code"] is not None)

    @property
    def sent(self) -> bool:
        """Whether all that the file holds has been sent."""
        return self.marker.exists() and self.marker.stat().st_mtime_ns >= self.file.stat().st_mtime_ns


def study_points(folder: Path) -> list[dict[str, Any]]:
    """The points of a study, none for a run's folder; raises FileNotFoundError or ValueError if it is neither."""
    if (folder / "study.json").exists():
        points: list[dict[str, Any]] = read_study(folder)["points"]
        return points
    if not (folder / "config.yaml").exists() and not any(folder.glob("wandb/*run-*")):
        raise FileNotFoundError(f"folder: {folder} holds no study.json and no run; give the folder of a study or of a run")
    return []


def folders(folder: Path) -> list[Path]:
    """The folders in which runs of a study lie, or the one run's."""
    places = [locate(Path(str(point["folder"])), folder) for point in study_points(folder)]
    if places and not any(place.exists() for place in places):
        raise FileNotFoundError(f"folder: {folder} is a study whose runs are not here, such as {places[0]}; give a study "
                                "that lies beside its runs")
    return places or [folder]


def segments(places: Iterable[Path], *, online: bool) -> list[Segment]:
    """W&B's files for the runs in these folders and below, each once, in order of their starts."""
    found = {path.resolve() for place in places for path in written_files(place, "*run-*" if online else "offline-run-*")}
    return sorted(map(Segment, found), key=lambda one: (*one.began, one.file.stat().st_mtime_ns, one.file))


def written_files(place: Path, pattern: str) -> Iterator[Path]:
    """W&B's files of one folder: in it, below it, or elsewhere."""
    for depth in DEPTHS:
        yield from place.glob(f"{depth}wandb/{pattern}/run-*.wandb")
        for record in place.glob(f"{depth}track.json"):
            yield from noted_files(record, pattern)


def noted_files(record: Path, pattern: str) -> Iterator[Path]:
    """W&B's files where launch/tracking/mirror.py has recorded them, as WANDB_DIR may have placed them elsewhere."""
    try:
        known = [(str(one["place"]), str(one["id"])) for one in json.loads(record.read_text(encoding="utf-8")).values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"note: {record} can't be read ({error!r}); W&B's files outside the run's folder are not found", file=sys.stderr)
        return
    for place, name in known:
        yield from Path(place, "wandb").glob(f"{pattern}/run-{glob_literal(name)}.wandb")


def glob_literal(text: str) -> str:
    """A text for which glob finds itself alone."""
    return re.sub(r"([*?[])", r"[\1]", text)


def pending(found: Sequence[Segment]) -> list[Segment]:
    """The files to send: of each run, from the first that is missing up to one that is still being written.

    Later ones are sent again, since W&B takes its summary from the last to arrive.
    """
    begun, waiting = set[str](), set[str]()
    chosen = []
    for one in found:
        if one.empty or one.run in waiting or (one.sent and one.run not in begun):
            continue
        if one.live:
            waiting.add(one.run)
            continue
        begun.add(one.run)
        chosen.append(one)
    return chosen


def is_over(folder: Path) -> bool:
    """Whether no point of a study is waiting or running any more; False for a run's folder, which does not tell."""
    points = study_points(folder)
    numbers = [str(point["job"]) for point in points if str(point["job"])[:1].isdigit()]
    try:
        jobs = cluster.jobs(numbers)
    except OSError:  # a busy or restarting controller: perhaps it answers the next time
        return False
    places = {one["folder"]: replace(as_point(one), folder=locate(Path(one["folder"]), folder)) for one in points}
    lost = {point.label for point in places.values() if point.reason()}

    def ended(one: dict[str, Any]) -> bool:
        if one["job"] in jobs:
            return jobs[one["job"]].over
        point = places[one["folder"]]
        if one["job"].startswith(here.LOCAL):
            return here.state(folder, point, one["job"]) in ("COMPLETED", "FAILED", "CANCELLED")
        return point.done() or not lost.isdisjoint((one["label"], one["of"]))

    return bool(points) and all(map(ended, points))
