"""What samplers have left: a picture, the protocol, the way from noise to images, and whatever was measured on them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.run.identity import flat
from tools.review.album import Album, Grid, Share, measured, square
from tools.review.curves import short
from tools.review.doctor import diagnoses, load
from tools.review.records import Problem, number

# What a protocol says about how images were drawn; any other number in or beside it is a measurement of them.
PROTOCOL = ("run", "sampler", "settings", "n", "seed", "batch", "step", "ema", "precision", "device", "version", "nfe",
            "gradients", "not_finite", "joules", "task", "seconds", "time", "trajectory")
GRID = 100  # images of a grid of samples, at most
NO_SAMPLES = ("failure", "diagnosis")


def drawn(folder: Path, *, newest: bool, shape: Any, run: Path, album: Album, share: Share) -> list[dict[str, Any]]:
    """The samplings in a folder, or its newest alone, each with its pictures put into the album."""
    protocols: dict[str, dict[str, Any]] = {}
    metrics: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem in NO_SAMPLES:
            continue
        content, problems = load(path)
        album.problems += problems
        metrics |= measurements(content)
        if "sampler" in content or path.with_suffix(".png").exists():
            protocols[path.stem] = content
    taken = {str(path_of(protocol, folder, run)) for protocol in protocols.values()}
    for path in sorted(folder.glob("*.png")):  # older runs have no protocol
        if str(path) not in taken and "trajectory" not in path.stem:
            protocols.setdefault(path.stem, {})
    names = sorted(protocols, key=lambda name: (number(protocols[name].get("time")) or 0.0, name))
    found = [sampling(folder, name, protocols[name], shape=shape, run=run, album=album, share=share)
             for name in (names[-1:] if newest else names)]
    checked = diagnoses(folder, album=album, share=share)
    for one in found:
        one["metrics"] = {**(metrics if newest else {}), **one["metrics"]}
        one["diagnoses"] = checked if newest else []
    return found


def sampling(folder: Path, name: str, protocol: dict[str, Any], *, shape: Any, run: Path, album: Album,
             share: Share) -> dict[str, Any]:
    """One sampling for the page."""
    picture = folder / f"{name}.png"
    count = max(0, int(number(protocol.get("n")) or 0))
    grid = measured(picture, shape, GRID) or (square(min(GRID, count)) if count else Grid(1, 1, 1))
    if count:
        grid = Grid(grid.columns, grid.rows, min(grid.count, count))
    return {"label": name, "sampler": str(protocol.get("sampler", "")), "picture": album.tiles(picture, grid, share),
            "trajectory": trajectory(protocol, folder, run, album, share), "metrics": measurements(protocol),
            **{key: short(protocol.get(key)) for key in ("n", "nfe", "seconds", "step")}}


def measurements(content: dict[str, Any]) -> dict[str, float]:
    """The numbers in a JSON object that are no part of a protocol, such as a Fréchet distance, by dotted names."""
    found = flat({key: value for key, value in content.items() if key not in PROTOCOL})
    numbers = {name.removeprefix("metrics."): short(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def path_of(protocol: dict[str, Any], folder: Path, run: Path) -> Path | None:
    """Where a protocol's trajectory lies: beside it, or from its run's folder."""
    told = protocol.get("trajectory")
    path = told.get("path") if isinstance(told, dict) else None
    if not isinstance(path, str) or not path:
        return None
    choices = [folder / path, run / path, folder / Path(path).name]
    return next((choice for choice in choices if choice.is_file()), choices[0])


def trajectory(protocol: dict[str, Any], folder: Path, run: Path, album: Album, share: Share) -> dict[str, Any] | None:
    """The way from noise to images, with each frame's step and σ."""
    path, told = path_of(protocol, folder, run), protocol.get("trajectory")
    if path is None or not isinstance(told, dict):
        return None
    frames, rows = told.get("frames"), number(told.get("rows"))
    good = isinstance(frames, list) and frames and all(isinstance(frame, dict) for frame in frames)
    if not good or not isinstance(frames, list) or not rows or rows < 1:
        album.problems.append(Problem(str(path), "a trajectory without its rows and frames"))
        return None
    kept = [{"step": short(frame.get("step")), "sigma": short(frame.get("sigma"))} for frame in frames]
    return album.frames(path, Grid(len(frames), int(rows), len(frames) * int(rows)), kept, share)
