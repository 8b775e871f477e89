"""Batches that are computed once, by any number of processes, so that interrupted work resumes; and samples drawn in them."""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ebm.evaluate.power import joule_counter, measure_usage, total
from ebm.files import write_atomically
from ebm.sampling import batches_of
from ebm.train.distributed import World
from launch.drawing.film import ROWS, Film
from launch.drawing.pipeline import Pipeline

Rows = dict[str, NDArray[Any]]


def compute_batches(
    folder: Path, count: int, *, batch: int, world: World, compute: Callable[[range], Rows], label: str
) -> None:
    """Computes this process's batches of 0 … ``count`` − 1 that ``folder`` does not hold yet, and waits for the others'.

    Raises ValueError for a count or a batch below 1.
    """
    parts = batches_of(count, batch=batch, rank=world.rank, world=world.size)
    with tqdm(total=sum(map(len, parts)), unit="img", desc=label, disable=not world.is_main, dynamic_ncols=True) as bar:
        for part in parts:
            path = batch_file(folder, part)
            if not path.exists():
                rows = compute(part)
                folder.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                np.savez(buffer, **rows)  # type: ignore[arg-type]  # numpy's stub takes a name for its own flag
                write_atomically(path, buffer.getbuffer())
            bar.update(len(part))
    world.barrier()  # the last batch has been written


def read_batches(folder: Path, count: int, *, batch: int) -> Rows:
    """The rows of all batches, in order."""
    found: dict[str, list[NDArray[Any]]] = {}
    for part in batches_of(count, batch=batch, rank=0, world=1):
        with np.load(batch_file(folder, part)) as content:
            for key in content.files:
                found.setdefault(key, []).append(content[key])
    return {key: np.concatenate(arrays) for key, arrays in found.items()}


def delete_batches(folder: Path) -> None:
    """Removes a folder of batches at once: what a partial removal leaves would pass for batches that are done."""
    gone = folder.with_name(f"{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def batch_file(folder: Path, part: range) -> Path:
    """The file of one batch, named by the numbers of its images."""
    return folder / f"{part.start:09d}-{part.stop:09d}.npz"


def digest(what: Any) -> str:
    """Twelve hexadecimal digits that identify anything JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def draw_batch(pipeline: Pipeline, part: range) -> Rows:
    """One batch of samples and its cost, with the trajectory of the first batch."""
    film = Film(sigma_data=pipeline.model.sigma_data) if part.start == 0 else None
    counter, _ = joule_counter(pipeline.device)
    with measure_usage(pipeline.device, counter) as spent:
        drawn = pipeline.draw(part, film)
    rows = {"images": drawn.pixels.numpy(), "not_finite": np.array([drawn.not_finite]), "nfe": np.array([drawn.forward]),
            "gradients": np.array([drawn.backward]), "seconds": np.array([spent.seconds]),
            "joules": np.array([math.nan if spent.joules is None else spent.joules])}
    if film is not None:
        rows |= {"film": np.frombuffer(film.png(), np.uint8), "frame_step": np.array([one["step"] for one in film.frames]),
                 "frame_sigma": np.array([one["sigma"] for one in film.frames])}
    return rows


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """All samples, uint8 (n, C, H, W), and their cost."""

    images: Tensor
    not_finite: int  # number of images with NaN or infinite pixels
    nfe: float  # forward passes through the network per image
    gradients: float  # backward passes per image
    seconds: float
    joules: float | None  # of all devices; None: not reported
    film: bytes  # PNG of the trajectory, with as many rows and
    rows: int
    frames: list[dict[str, Any]]  # columns, each {"step": …, "sigma": …}

    @classmethod
    def read(cls, folder: Path, count: int, *, batch: int) -> Drawn:
        """The samples of `draw_batch` in a folder of batches."""
        rows = read_batches(folder, count, batch=batch)
        frames = zip(rows["frame_step"].tolist(), rows["frame_sigma"].tolist(), strict=True)
        return cls(images=torch.from_numpy(rows["images"]), not_finite=int(rows["not_finite"].sum()), nfe=int(rows["nfe"][0]),
                   gradients=int(rows["gradients"][0]), seconds=sum(rows["seconds"].tolist()),
                   joules=total([None if math.isnan(one) else one for one in rows["joules"].tolist()]),
                   film=rows["film"].tobytes(), rows=min(ROWS, batch, count),
                   frames=[{"step": step, "sigma": sigma} for step, sigma in frames])
