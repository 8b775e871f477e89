"""Plans array jobs: which points go into which array, and what each waits for."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.study.point import Point


@dataclass
class Array:
    """Jobs that are submitted as one array, and what they wait for."""

    kind: str
    points: list[Point]
    on: Array | None = None  # an array submitted before this one
    element: int | None = None  # of it, or all, element by element
    job: str = ""  # or a job of another study
    ids: list[str] = field(default_factory=list)

    @property
    def dependency(self) -> str:
        """The dependency for sbatch, once the array it waits for has its number."""
        if self.on is None:
            return f"afterok:{self.job}" if self.job else ""
        if self.element is not None:
            return f"afterok:{self.on.ids[self.element]}"
        return f"{'aftercorr' if len(self.points) > 1 else 'afterok'}:{self.on.ids[0].split('_')[0]}"

    def waits(self, arrays: list[Array]) -> str:
        """What it waits for as text."""
        if self.on is None:
            return self.job
        which = "element by element" if self.element is None else f"element {self.element}"
        return f"array {arrays.index(self.on) + 1}, {which}"


def plan_arrays(points: Sequence[Point], jobs: dict[Path, str], *, limit: int) -> list[Array]:
    """The arrays of all missing points: runs in arrays of at most ``limit``, and for each sampler one array beside each."""
    missing = [point for point in points if not jobs[point.folder]]
    runs = [point for point in missing if point.kind == "train"]
    chunks = [runs[start : start + limit] for start in range(0, len(runs), limit)]
    arrays = [Array("train", chunk) for chunk in chunks]
    samples: dict[tuple[str, ...], list[Point]] = {}
    for point in missing:
        if point.kind == "sample":
            samples.setdefault(point.overrides, []).append(point)
    for group in samples.values():
        left = {point.run: point for point in group}
        for array, chunk in zip(arrays[: len(chunks)], chunks, strict=True):
            if all(point.folder in left for point in chunk):
                arrays.append(Array("sample", [left.pop(point.folder) for point in chunk], on=array))
        ready = [point for point in left.values() if jobs[point.run] == "done"]
        arrays += [Array("sample", ready[start : start + limit]) for start in range(0, len(ready), limit)]
        for point in left.values():
            if not jobs[point.run]:
                array, index = next((a, a.points.index(point.of)) for a in arrays if point.of in a.points)
                arrays.append(Array("sample", [point], on=array, element=index))
            elif jobs[point.run] != "done":  # another study trains it
                arrays.append(Array("sample", [point], job=jobs[point.run]))
    return arrays
