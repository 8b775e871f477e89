"""What a metric is given and what it gives back, and the record of it: a figure never goes without its protocol."""
from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from ebm.arrays import MissingArrayError, array_in
from ebm.data import Dataset
from ebm.files import write_atomically
from ebm.sampling import batches_of
from ebm.train.distributed import World, device_name
from launch.drawing import sampling
from launch.drawing.artist import Artist
from launch.job.faults import checking
from launch.run.version import version

Rows = dict[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a metric has found: numbers by name, and all that must be equal for two of them to compare."""

    values: dict[str, float]
    measure: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)  # curves and lists, for whoever looks closer
    pictures: dict[str, bytes] = field(default_factory=dict)  # PNG, by name


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images drawn from the run, uint8 (n, C, H, W) on the CPU, and how they came about."""

    images: Tensor
    subject: dict[str, Any]


class Metric(Protocol):
    """A way to measure a run; ``of_samples`` says whether its figures depend on the sampler."""

    of_samples: ClassVar[bool]

    def check(self, work: Work) -> None:
        """Raises ValueError or OSError, before any work, for what can't be."""

    def __call__(self, work: Work) -> Figures | None:
        """Measures, on every process; the figures on rank 0."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A trained run with its data, and the processes that measure it."""

    artist: Artist
    world: World
    cfg: DictConfig
    config: DictConfig  # the run's own
    train: Dataset
    held_out: Dataset | None
    n: int
    batch: int
    step: int
    checkpoint: str
    stem: str = ""  # of the record at hand
    kept: dict[str, Any] = field(default_factory=dict)  # made once for all metrics: see `once`

    @property
    def given(self) -> bool:
        """Whether the samples are those of a file, whoever drew them."""
        return str(self.cfg.samples).endswith(".npz")

    @property
    def subject(self) -> dict[str, Any]:
        """What is measured."""
        rule = OmegaConf.to_container(self.config.average.rules[self.cfg.ema], resolve=True)
        return {"run": str(self.cfg.run), "step": self.step, "images": self.step * self.config.budget.batch,
                "checkpoint": self.checkpoint, "ema": self.cfg.ema, "ema_rule": rule, "seed": self.artist.seed,
                "precision": self.artist.precision.name, "device": device_name(self.world.device), "version": version()}

    @property
    def aside(self) -> Path:
        """Where what was computed for the record at hand is kept until that is written; its name tells all that it is of."""
        return Path(self.cfg.out) / f".{self.stem}"

    def samples(self) -> Samples:
        """The run's samples, drawn by all processes unless they were before; the same whatever their number."""
        return self.once("samples", lambda: given(Path(self.cfg.samples), self) if self.given else drawn(self))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` gives, made at the first call for this ``name``: extractors are large, and folders read whole."""
        if name not in self.kept:
            self.kept[name] = make()
        found: T = self.kept[name]
        return found

    def spread(self, name: str, count: int, batch: int, compute: Callable[[range], Rows]) -> Rows:
        """The rows that ``compute`` gives for each of 0 … ``count`` − 1, in order, on every process.

        Each process computes its batches and puts them aside: what was interrupted goes on from there. ``name`` must tell
        all that the rows depend on besides the model.
        """
        folder = self.aside / digest([name, count, batch])
        parts = batches_of(count, batch=batch, rank=self.world.rank, world=self.world.size)
        with tqdm(total=sum(map(len, parts)), unit="img", desc=name.split(" ")[0], disable=not self.world.is_main,
                  dynamic_ncols=True) as bar:
            for part in parts:
                path = folder / f"{part.start:09d}-{part.stop:09d}.npz"
                if not path.exists():
                    rows = compute(part)
                    folder.mkdir(parents=True, exist_ok=True)
                    buffer = io.BytesIO()
                    np.savez(buffer, **rows)  # type: ignore[arg-type]  # numpy's stub takes a name for its own flag
                    write_atomically(path, buffer.getbuffer())
                bar.update(len(part))
        self.world.everyone(None)  # all have been written
        found: dict[str, list[NDArray[Any]]] = {}
        for part in batches_of(count, batch=batch, rank=0, world=1):
            with np.load(folder / f"{part.start:09d}-{part.stop:09d}.npz") as content:
                for key in content.files:
                    found.setdefault(key, []).append(content[key])
        return {key: np.concatenate(arrays) for key, arrays in found.items()}


def drawn(work: Work) -> Samples:
    """Samples at the place where `launch/sample.py` would put them, found there or drawn."""
    world, artist = work.world, work.artist
    cfg = OmegaConf.merge(work.cfg, {"out": work.cfg.samples})  # as launch/sample.py has it
    assert isinstance(cfg, DictConfig)
    folder, label = Path(cfg.out), sampling.name(cfg, work.step)
    protocol = folder / f"{label}.json"
    if not world.share(same(protocol, work)):
        parts = batches_of(work.n, batch=work.batch, rank=world.rank, world=world.size)
        aside = sampling.drawn_aside(cfg, artist, work.step, world, parts=parts)
        with checking(world):
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                sampling.gathered(cfg, artist, work.step, aside=aside)
    about = json.loads(protocol.read_text())
    with checking(world):
        if about.get("not_finite"):
            raise ValueError(f"samples: {about['not_finite']} of {work.n} are not finite (NaN or infinite), and no figure of "
                             f"them would mean anything; python launch/diagnose.py run={cfg.run} says why")
    with np.load(protocol.with_suffix(".npz")) as content:
        images = torch.from_numpy(content["images"]).permute(0, 3, 1, 2).contiguous()
    told = ("sampler", "settings", "n", "seed", "batch", "nfe", "gradients", "seconds", "joules")
    return Samples(images=images, subject={key: about[key] for key in told if key in about})


def same(protocol: Path, work: Work) -> bool:
    """Whether samples of just this protocol lie there."""
    try:
        about = json.loads(protocol.read_text())
    except (OSError, ValueError):
        return False
    wanted = {"settings": OmegaConf.to_container(work.cfg.sampler, resolve=True), "n": work.n, "seed": work.artist.seed,
              "batch": work.batch, "ema": work.cfg.ema, "step": work.step, "precision": work.artist.precision.name,
              "device": device_name(work.world.device), "checkpoint": work.checkpoint}
    return {key: about.get(key) for key in wanted} == wanted and protocol.with_suffix(".npz").exists()


def given(path: Path, work: Work) -> Samples:
    """The first n images of a file; raises ValueError unless it holds as many, of the run's size."""
    with checking(work.world):
        images = read(path, count=work.n, shape=work.artist.shape)
    sha256 = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Samples(images=images, subject={"sampler": f"file {path.name}", "n": work.n, "sha256": sha256})


def read(path: Path, *, count: int, shape: tuple[int, int, int]) -> Tensor:
    """The first ``count`` images of an .npz, uint8 (count, C, H, W); raises ValueError unless it has so many of ``shape``."""
    try:
        try:
            _, images = array_in(path, "images")
        except MissingArrayError:  # numpy's name for a first array without one, as in samples of guided-diffusion
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


def write(work: Work, metric: str, figures: Figures, *, of_samples: bool) -> Path:
    """Writes a metric's pictures and, last, its record; a record that is there is whole."""
    folder, stem = Path(work.cfg.out), work.stem
    for name, content in figures.pictures.items():
        write_atomically(folder / f"{stem}-{name}.png", content)
    subject = work.subject | (work.samples().subject if of_samples else {})
    if of_samples and work.given:  # nobody knows whether they are of this checkpoint
        subject = {key: value for key, value in subject.items() if key in ("run", "device", "version", *work.samples().subject)}
    if "precision" in figures.measure:
        subject["precision"] = figures.measure["precision"]
    record = {
        "metric": metric, "values": figures.values, "measure": figures.measure, "subject": subject, "details": figures.details,
        "pictures": {name: f"{stem}-{name}.png" for name in figures.pictures}, "time": round(time.time(), 2)}
    write_atomically(folder / f"{stem}.json", (json.dumps(record, indent=1, default=float) + "\n").encode())
    return folder / f"{stem}.json"


def digest(what: Any) -> str:
    """A short name of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]
