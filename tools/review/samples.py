"""Samplings as the page shows them: the picture, the protocol and the trajectory from noise to images."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.review.album import Album, Grid, Share, measure_grid, square_grid
from tools.review.curves import short
from tools.review.doctor import put_diagnoses
from tools.review.records import Problem, number, read_json

GRID = 100  # images of a grid of samples, at most
NO_SAMPLES = ("failure", "diagnosis")


def put_samplings(folder: Path, *, newest: bool, shape: Any, album: Album, share: Share) -> list[dict[str, Any]]:
    """The samplings in a folder, or its newest alone, each with its pictures put into the album."""
    protocols: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem in NO_SAMPLES:
            continue
        content, problems = read_json(path)
        album.problems += problems
        if "sampler" in content or path.with_suffix(".png").exists():
            protocols[path.stem] = content
    names = sorted(protocols, key=lambda name: (number(protocols[name].get("time")) or 0.0, name))
    found = [put_sampling(folder, name, protocols[name], shape=shape, album=album, share=share)
             for name in (names[-1:] if newest else names)]
    checked = put_diagnoses(folder, album=album, share=share)
    for one in found:
        one["diagnoses"] = checked if newest else []
    return found


def put_sampling(folder: Path, name: str, protocol: dict[str, Any], *, shape: Any, album: Album,
                 share: Share) -> dict[str, Any]:
    """One sampling for the page."""
    picture = folder / f"{name}.png"
    count = max(0, int(number(protocol.get("n")) or 0))
    grid = measure_grid(picture, shape, GRID) or (square_grid(min(GRID, count)) if count else Grid(1, 1, 1))
    if count:
        grid = Grid(grid.columns, grid.rows, min(grid.count, count))
    return {"label": name, "sampler": str(protocol.get("sampler", "")), "picture": album.tiles(picture, grid, share),
            "trajectory": put_trajectory(protocol, folder, album, share), "metrics": {},
            **{key: short(protocol.get(key)) for key in ("n", "nfe", "seconds", "step")}}


def put_trajectory(protocol: dict[str, Any], folder: Path, album: Album, share: Share) -> dict[str, Any] | None:
    """The trajectory from noise to images, whose picture lies beside the protocol, with the step and σ of each frame."""
    told = protocol.get("trajectory")
    if not isinstance(told, dict) or not isinstance(told.get("path"), str):
        return None
    path = folder / told["path"]
    frames, rows = told.get("frames"), number(told.get("rows"))
    good = isinstance(frames, list) and frames and all(isinstance(frame, dict) for frame in frames)
    if not good or not isinstance(frames, list) or not rows or rows < 1:
        album.problems.append(Problem(str(path), "a trajectory without rows and frames"))
        return None
    kept = [{"step": short(frame.get("step")), "sigma": short(frame.get("sigma"))} for frame in frames]
    return album.frames(path, Grid(len(frames), int(rows), len(frames) * int(rows)), kept, share)
