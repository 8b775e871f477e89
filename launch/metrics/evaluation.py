"""The input and output of a metric, and its record, which keeps figures together with their protocol."""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ebm.arrays import MissingArrayError, array_in
from ebm.data import Dataset
from ebm.files import write_atomically
from ebm.train.distributed import World, device_name
from launch.drawing import sampling
from launch.drawing.batches import Rows, compute_batches, digest, read_batches
from launch.drawing.pipeline import Pipeline
from launch.job.faults import checking
from launch.run.version import version

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The results of a metric: numbers by name, and all settings that two of them must share to be comparable."""

    values: dict[str, float]
    measure: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)  # curves and lists, for closer inspection
    pictures: dict[str, bytes] = field(default_factory=dict)  # PNG, by name


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images drawn from the run, uint8 (n, C, H, W) on the CPU, and their protocol."""

    images: Tensor
    subject: dict[str, Any]


class Metric(Protocol):
    """A measurement of a run; ``of_samples``: whether its figures depend on the sampler."""

    of_samples: ClassVar[bool]

    def check(self, work: Work) -> None:
        """Raises ValueError or OSError, before any work, for unusable settings or input."""

    def __call__(self, work: Work) -> Figures | None:
        """Measures, on every process; returns the figures on rank 0."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A trained run with its data and the processes that measure it."""

    pipeline: Pipeline
    world: World
    cfg: DictConfig
    run_config: DictConfig
    train: Dataset
    held_out: Dataset | None
    n: int
    batch: int
    stem: str = ""  # the file name of the current record
    kept: dict[str, Any] = field(default_factory=dict)  # shared by all metrics: see `once`

    @property
    def given(self) -> bool:
        """Whether the samples are read from a file."""
        return str(self.cfg.samples).endswith(".npz")

    @property
    def subject(self) -> dict[str, Any]:
        """The description of the measured model in records."""
        pipeline, rule = self.pipeline, OmegaConf.to_container(self.run_config.average.rules[self.cfg.ema], resolve=True)
        return {"run": str(self.cfg.run), "step": pipeline.step, "images": pipeline.step * self.run_config.budget.batch,
                "checkpoint": pipeline.checkpoint, "ema": self.cfg.ema, "ema_rule": rule, "seed": pipeline.seed,
                "precision": pipeline.precision.name, "device": device_name(self.world.device), "version": version()}

    @property
    def batches(self) -> Path:
        """The folder of the batches computed for the current record, kept until that is written."""
        return Path(self.cfg.out) / f".{self.stem}"

    def samples(self) -> Samples:
        """The run's samples, drawn by all processes unless they exist; independent of the number of processes."""
        return self.once("samples", lambda: load_samples(Path(self.cfg.samples), self) if self.given else draw_samples(self))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The result of ``make``, called once for each ``name``, as extractors and image folders are large."""
        if name not in self.kept:
            self.kept[name] = make()
        found: T = self.kept[name]
        return found

    def compute_rows(self, name: str, count: int, batch: int, compute: Callable[[range], Rows]) -> Rows:
        """The rows that ``compute`` gives for each of 0 … ``count`` − 1, in order, on every process.

        The processes share the batches and keep them until the record is written, so that interrupted work resumes. ``name``
        must contain all that the rows depend on besides the model; its first word is shown.
        """
        folder = self.batches / digest([name, count, batch])
        compute_batches(folder, count, batch=batch, world=self.world, compute=compute, label=name.split(" ")[0])
        return read_batches(folder, count, batch=batch)


def draw_samples(work: Work) -> Samples:
    """The samples of `launch/sample.py` in its place, found there or drawn; raises ValueError unless all are finite."""
    world, pipeline = work.world, work.pipeline
    cfg = OmegaConf.merge(work.cfg, {"out": work.cfg.samples})  # as launch/sample.py has it
    assert isinstance(cfg, DictConfig)
    folder = Path(cfg.out)
    protocol = folder / f"{sampling.sample_stem(cfg, pipeline.step)}.json"
    if not world.broadcast_object(is_current(protocol, work)):
        batches = sampling.draw_batches(cfg, pipeline, world)
        with checking(world):
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                sampling.write_samples(cfg, pipeline, batches=batches)
    about = json.loads(protocol.read_text())
    with checking(world):
        if about.get("not_finite"):
            raise ValueError(f"samples: {about['not_finite']} of {work.n} are not finite (NaN or infinite), and no figure of "
                             f"them would be meaningful; python launch/diagnose.py run={cfg.run} says why")
    with np.load(protocol.with_suffix(".npz")) as content:
        images = torch.from_numpy(content["images"]).permute(0, 3, 1, 2).contiguous()
    keys = ("sampler", "settings", "n", "seed", "batch", "nfe", "gradients", "seconds", "joules", "cuda_graph")
    return Samples(images=images, subject={key: about[key] for key in keys if key in about})


def is_current(protocol: Path, work: Work) -> bool:
    """Whether the samples of this protocol are there and are those asked for."""
    try:
        about = json.loads(protocol.read_text())
    except (OSError, ValueError):
        return False
    wanted = sampling.identity(work.cfg, work.pipeline)
    return {key: about.get(key) for key in wanted} == wanted and protocol.with_suffix(".npz").exists()


def load_samples(path: Path, work: Work) -> Samples:
    """The first n images of a file; raises ValueError for fewer or for another size."""
    with checking(work.world):
        images = read_images(path, count=work.n, shape=work.pipeline.shape)
    sha256 = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Samples(images=images, subject={"sampler": f"file {path.name}", "n": work.n, "sha256": sha256})


def read_images(path: Path, *, count: int, shape: tuple[int, int, int]) -> Tensor:
    """The first ``count`` images of an .npz, uint8 (count, C, H, W); raises ValueError for fewer or for another ``shape``."""
    try:
        try:
            _, images = array_in(path, "images")
        except MissingArrayError:  # numpy's name for an unnamed first array, as in samples of guided-diffusion
            _, images = array_in(path, "arr_0")
    except (OSError, ValueError) as error:
        raise ValueError(f"samples: {path} is not accepted; it must be an .npz with `images`, uint8 (n, H, W, C): "
                         f"{error}") from None
    channels, height, width = shape
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, channels):
        raise ValueError(f"samples: {path} holds {images.dtype} {images.shape}, which is not accepted; it must be uint8 "
                         f"(n, {height}, {width}, {channels})")
    if len(images) < count:
        raise ValueError(f"n: {count} is not accepted; {path} holds {len(images)} images")
    return torch.from_numpy(images[:count]).permute(0, 3, 1, 2).contiguous()


def write_record(work: Work, metric: str, figures: Figures, *, of_samples: bool) -> Path:
    """Writes a metric's pictures and then, atomically, its record; the record's path."""
    folder, stem = Path(work.cfg.out), work.stem
    for name, content in figures.pictures.items():
        write_atomically(folder / f"{stem}-{name}.png", content)
    subject = work.subject | (work.samples().subject if of_samples else {})
    if of_samples and work.given:  # they may be of another checkpoint
        subject = {key: value for key, value in subject.items() if key in ("run", "device", "version", *work.samples().subject)}
    if "precision" in figures.measure:
        subject["precision"] = figures.measure["precision"]
    record = {
        "metric": metric, "values": figures.values, "measure": figures.measure, "subject": subject, "details": figures.details,
        "pictures": {name: f"{stem}-{name}.png" for name in figures.pictures}, "time": round(time.time(), 2)}
    write_atomically(folder / f"{stem}.json", (json.dumps(record, indent=1, default=float) + "\n").encode())
    return folder / f"{stem}.json"
