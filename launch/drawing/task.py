"""Tasks on a user's images, and sums of energies: each is what its YAML says, and makes an artist of the run's."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ebm.accepted import positive
from ebm.composition import composed
from ebm.constraint import BlockMean, ChannelMean, Constraint, KnownPixels, Measurement
from ebm.data import to_float
from ebm.randomness import generator
from launch.config.build import build, naming
from launch.drawing.artist import Artist
from launch.drawing.commission import Cleaning, Commission, Completion, Composition, Restoration
from launch.drawing.given import COLOURS, box_in, images_at, mask_at

Prepare = Callable[[DictConfig], tuple[Artist, int]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a task is told of the call it is made in."""

    name: str
    settings: dict[str, Any]  # of the YAML
    other: Callable[[str], Artist]  # another run's

    def filled(self, artist: Artist, **inputs: str) -> dict[str, Any]:
        """The fields of a `Commission`: ``inputs`` are the hashes of what the settings only name."""
        places = ("_target_", "images", "mask", "runs")  # not what a task does, which its name and the rest say
        identity = {key: value for key, value in self.settings.items() if key not in places} | inputs
        return {field.name: getattr(artist, field.name) for field in fields(artist)} | {"task": self.name, "identity": identity}


class Task(Protocol):
    """What a task's YAML is built into."""

    def artist(self, artist: Artist, order: Order) -> Commission:
        """The run's artist with this task; raises ValueError or OSError for what can't be, before any work."""


def assigned(cfg: DictConfig, artist: Artist, prepare: Prepare) -> Artist:
    """The artist with the task that the config names, if any; its images are counted in ``cfg.n`` from here on."""
    if cfg.get("task") is None:
        return artist
    name = HydraConfig.get().runtime.choices["task"]
    for key in sorted(OmegaConf.missing_keys(cfg.task)):
        raise ValueError(f"{key}: nothing is not accepted; task={name} needs it")
    settings = OmegaConf.to_container(cfg.task, resolve=True)
    assert isinstance(settings, dict)
    task: Task = build(cfg.task, key="task")

    if isinstance(task, Compose) and not task.runs:
        raise ValueError("task.runs: [] is not accepted; it must be a list of runs' folders, the first of them run=")
    if isinstance(task, Compose) and [Path(run).resolve() for run in task.runs[:1]] != [Path(cfg.run).resolve()]:
        raise ValueError(f"run: {cfg.run!r} is not accepted; with task=compose it is the first of task.runs, {task.runs!r}")

    def other(run: str) -> Artist:
        there = OmegaConf.merge(cfg, {"run": run})
        assert isinstance(there, DictConfig)
        with naming("runs: ", FileNotFoundError):
            return artist if run == cfg.run else prepare(there)[0]

    order = Order(name=name, settings={str(key): value for key, value in settings.items()}, other=other)
    with naming("task."):
        found = task.artist(artist, order)
    if isinstance(found, Restoration):
        if any(override.startswith("n=") for override in HydraConfig.get().overrides.task):
            raise ValueError(f"n: {cfg.n!r} is not accepted; a task on images draws task.copies of each")
        cfg.n = found.count
    with naming("sampler."):  # it may not take the model that it is given now
        found.trajectory(range(1))
    return found


@dataclass(frozen=True, kw_only=True)
class OnImages:
    """What tasks on images have in common."""

    images: str
    copies: int

    def read(self, artist: Artist, *, size: tuple[int, int] | None = None) -> Tensor:
        """The user's images at the run's size or at another, uint8 (K, 3, H, W)."""
        if artist.shape[0] != COLOURS:
            raise ValueError(f"images: {self.images!r} is not accepted; the run's images have {artist.shape[0]} channels, "
                             f"and a task's {COLOURS}")
        if self.copies < 1:
            raise ValueError(f"copies: {self.copies!r} is not accepted; it must be at least 1")
        return images_at(self.images, size=size or artist.shape[1:], key="images")


@dataclass(frozen=True, kw_only=True)
class OnMeasured(OnImages):
    """What tasks that complete a measurement have in common."""

    constraint: Constraint

    def completion(self, originals: Tensor, *, known: Tensor, measurement: Measurement, filled: dict[str, Any]) -> Completion:
        """The artist that draws what agrees with the measurement of ``originals``."""
        return Completion(**filled, copies=self.copies, originals=originals, known=known, measurement=measurement,
                          observed=measurement.project(to_float(originals)), constraint=self.constraint)


@dataclass(frozen=True, kw_only=True)
class Inpaint(OnMeasured):
    """Fills a part of the images: where the picture ``mask`` is white, or inside ``box``, [top, left, height, width]."""

    mask: str | None
    box: list[int] | None

    def artist(self, artist: Artist, order: Order) -> Commission:
        size = artist.shape[1:]
        if self.box is not None and self.mask is None:
            hidden = box_in(self.box, size=size, key="box")
        elif self.mask is not None and self.box is None:
            hidden = mask_at(self.mask, size=size, key="mask")
        else:
            raise ValueError(f"mask: {self.mask!r} with box {self.box!r} is not accepted; give one of the two")
        if not hidden.any():
            raise ValueError(f"mask: {self.mask!r} is not accepted; some of it must be white, to be filled")
        originals = self.read(artist)
        # What is hidden is not known to be worth keeping, but it is there to compare with.
        return self.completion(originals, known=torch.ones(len(originals), dtype=torch.bool),
                               measurement=KnownPixels(known=~hidden),
                               filled=order.filled(artist, images=sha256(originals), mask=sha256(hidden)))


@dataclass(frozen=True, kw_only=True)
class Colourise(OnMeasured):
    """Gives colours to grey images; images that have colours lose them first, by the mean over their channels."""

    def artist(self, artist: Artist, order: Order) -> Commission:
        originals = self.read(artist)
        known = (originals != originals[:, :1]).flatten(1).any(1)  # a grey image's colours are not
        return self.completion(originals, known=known, measurement=ChannelMean(),
                               filled=order.filled(artist, images=sha256(originals)))


@dataclass(frozen=True, kw_only=True)
class SuperResolve(OnMeasured):
    """Enlarges small images; with ``shrink`` they are of the run's size, and made small first."""

    factor: int
    shrink: bool

    def artist(self, artist: Artist, order: Order) -> Commission:
        _, height, width = artist.shape
        if self.factor < 2 or height % self.factor or width % self.factor:
            raise ValueError(f"factor: {self.factor!r} is not accepted; it must be at least 2 and divide the run's "
                             f"{height} × {width} pixels")
        size = (height, width) if self.shrink else (height // self.factor, width // self.factor)
        given = self.read(artist, size=size)
        originals = given if self.shrink else given.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return self.completion(originals, known=torch.full((len(given),), self.shrink),
                               measurement=BlockMean(factor=self.factor),
                               filled=order.filled(artist, images=sha256(given)))


@dataclass(frozen=True, kw_only=True)
class Denoise(OnImages):
    """Takes from images normal noise of standard deviation ``sigma`` (pixels in [-1, 1]); ``add_noise`` adds it first."""

    sigma: float
    add_noise: bool

    def artist(self, artist: Artist, order: Order) -> Commission:
        positive(sigma=self.sigma)
        originals = self.read(artist)
        observed = to_float(originals)
        if self.add_noise:  # by image, and on the CPU: the same whatever else is given, on any device
            observed = torch.stack([one + self.sigma * torch.randn(one.shape, generator=generator(
                "cpu", artist.seed, "observed", index)) for index, one in enumerate(observed)])
        return Cleaning(**order.filled(artist, images=sha256(originals)), observed=observed, originals=originals,
                        known=torch.full((len(originals),), self.add_noise), copies=self.copies, sigma=self.sigma)


@dataclass(frozen=True, kw_only=True)
class Compose:
    """Draws from the sum of the energies of ``runs``, each with a weight."""

    runs: list[str]
    weights: list[float]

    def artist(self, artist: Artist, order: Order) -> Commission:
        if len(self.runs) != len(self.weights):
            raise ValueError(f"weights: {self.weights!r} is not accepted; there must be one for each of runs={self.runs!r}")
        others = [order.other(run) for run in self.runs]
        for run, one in zip(self.runs, others, strict=True):
            if one.shape != artist.shape:
                raise ValueError(f"runs: {run!r} is not accepted; its images are {one.shape}, and the others' {artist.shape}")
        return Composition(**order.filled(artist, runs=" ".join(one.checkpoint for one in others)),
                           total=composed([one.model for one in others], weights=self.weights))


def sha256(pixels: Tensor) -> str:
    """SHA-256 of an array's shape and content."""
    return hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
