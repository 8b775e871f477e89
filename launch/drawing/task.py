"""Tasks on a user's images, and sums of energies: each class is built from its YAML and conditions a pipeline."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ebm.accepted import positive
from ebm.composition import compose
from ebm.constraint import BlockMean, ChannelMean, Constraint, KnownPixels, Measurement
from ebm.data import to_float
from ebm.randomness import generator
from launch.config.build import build, naming
from launch.drawing.conditional import Composition, GaussianDenoising, InverseProblem
from launch.drawing.given import CHANNELS, box_mask, read_images, read_mask
from launch.drawing.pipeline import ConditionalTask, Conditioning, Pipeline

PLACES = ("_target_", "images", "mask", "runs")  # settings that identify nothing: hashes of what lies there do
LoadRun = Callable[[str], Pipeline]


class Task(Protocol):
    """A task as its YAML describes it."""

    def conditioning(self, pipeline: Pipeline, load_run: LoadRun) -> Conditioning:
        """The conditioning of the pipeline; raises ValueError or OSError, before any work, for unusable input."""


def assign_task(cfg: DictConfig, pipeline: Pipeline, prepare: Callable[[DictConfig], Pipeline]) -> Pipeline:
    """The pipeline with the task that the config names, if any; a task on images also sets ``cfg.n``."""
    if cfg.get("task") is None:
        return pipeline
    name = HydraConfig.get().runtime.choices["task"]
    for key in sorted(OmegaConf.missing_keys(cfg.task)):
        raise ValueError(f"{key}: missing; task={name} requires it")
    task: Task = build(cfg.task, key="task")

    def load_run(run: str) -> Pipeline:
        there = OmegaConf.merge(cfg, {"run": run})
        assert isinstance(there, DictConfig)
        with naming("runs: ", FileNotFoundError):
            return pipeline if run == cfg.run else prepare(there)

    with naming("task."):
        conditioning = task.conditioning(pipeline, load_run)
    if conditioning.count is not None:
        if any(override.startswith("n=") for override in HydraConfig.get().overrides.task):
            raise ValueError(f"n: {cfg.n!r} is not accepted; a task on images draws task.copies of each")
        cfg.n = conditioning.count
    settings = OmegaConf.to_container(cfg.task, resolve=True)
    assert isinstance(settings, dict)
    identity = {str(key): value for key, value in settings.items() if key not in PLACES} | conditioning.inputs
    conditioned = replace(pipeline, task=ConditionalTask(name=name, identity=identity, conditioning=conditioning))
    with naming("sampler."):  # it may not accept the conditioned model
        conditioned.trajectory(range(1))
    return conditioned


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """The settings that tasks on images share."""

    images: str
    copies: int

    def read(self, pipeline: Pipeline, *, size: tuple[int, int] | None = None) -> Tensor:
        """The user's images at the run's size or at another, uint8 (K, 3, H, W); raises ValueError for unusable ones."""
        if pipeline.shape[0] != CHANNELS:
            raise ValueError(f"images: {self.images!r} is not accepted; the run's images have {pipeline.shape[0]} channels, "
                             f"and a task's {CHANNELS}")
        if self.copies < 1:
            raise ValueError(f"copies: {self.copies!r} is not accepted; it must be at least 1")
        return read_images(self.images, size=size or pipeline.shape[1:], key="images")


@dataclass(frozen=True, kw_only=True)
class InverseTask(ImageTask):
    """The settings that linear inverse problems share."""

    constraint: Constraint

    def problem(self, originals: Tensor, *, known: Tensor, measurement: Measurement, inputs: dict[str, str]) -> InverseProblem:
        """The sampling of images that agree with the measurement of ``originals``."""
        return InverseProblem(inputs=inputs, copies=self.copies, originals=originals, known=known, measurement=measurement,
                              observed=measurement.project(to_float(originals)), constraint=self.constraint)


@dataclass(frozen=True, kw_only=True)
class Inpaint(InverseTask):
    """Fills a part of the images: where the picture ``mask`` is white, or inside ``box``, [top, left, height, width]."""

    mask: str | None
    box: list[int] | None

    def conditioning(self, pipeline: Pipeline, load_run: LoadRun) -> Conditioning:
        size = pipeline.shape[1:]
        if self.box is not None and self.mask is None:
            hidden = box_mask(self.box, size=size, key="box")
        elif self.mask is not None and self.box is None:
            hidden = read_mask(self.mask, size=size, key="mask")
        elif self.mask is None:
            raise ValueError("mask: no value is given; give task.mask or task.box")
        else:
            raise ValueError(f"mask: {self.mask!r} with box {self.box!r} is not accepted; give one of the two")
        if not hidden.any():
            raise ValueError(f"mask: {self.mask!r} is not accepted; some of it must be white, to be filled")
        originals = self.read(pipeline)
        # The hidden part need not be worth restoring, but it is there to compare with.
        return self.problem(originals, known=torch.ones(len(originals), dtype=torch.bool),
                            measurement=KnownPixels(known=~hidden),
                            inputs={"images": sha256(originals), "mask": sha256(hidden)})


@dataclass(frozen=True, kw_only=True)
class Colourise(InverseTask):
    """Colours grey images; those in colour are first reduced to the mean over their channels."""

    def conditioning(self, pipeline: Pipeline, load_run: LoadRun) -> Conditioning:
        originals = self.read(pipeline)
        known = (originals != originals[:, :1]).flatten(1).any(1)  # a grey image's colours are not
        return self.problem(originals, known=known, measurement=ChannelMean(), inputs={"images": sha256(originals)})


@dataclass(frozen=True, kw_only=True)
class SuperResolve(InverseTask):
    """Enlarges small images; with ``shrink`` the images have the run's size and are first reduced."""

    factor: int
    shrink: bool

    def conditioning(self, pipeline: Pipeline, load_run: LoadRun) -> Conditioning:
        _, height, width = pipeline.shape
        if self.factor < 2 or height % self.factor or width % self.factor:
            raise ValueError(f"factor: {self.factor!r} is not accepted; it must be at least 2 and divide the run's "
                             f"{height} × {width} pixels")
        size = (height, width) if self.shrink else (height // self.factor, width // self.factor)
        given = self.read(pipeline, size=size)
        originals = given if self.shrink else given.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return self.problem(originals, known=torch.full((len(given),), self.shrink),
                            measurement=BlockMean(factor=self.factor), inputs={"images": sha256(given)})


@dataclass(frozen=True, kw_only=True)
class Denoise(ImageTask):
    """Removes Gaussian noise of standard deviation ``sigma`` (pixels in [-1, 1]); with ``add_noise`` it is first added."""

    sigma: float
    add_noise: bool

    def conditioning(self, pipeline: Pipeline, load_run: LoadRun) -> Conditioning:
        positive(sigma=self.sigma)
        originals = self.read(pipeline)
        observed = to_float(originals)
        if self.add_noise:  # per image and on the CPU: independent of the other images and of the device
            observed = torch.stack([one + self.sigma * torch.randn(one.shape, generator=generator(
                "cpu", pipeline.seed, "observed", index)) for index, one in enumerate(observed)])
        return GaussianDenoising(inputs={"images": sha256(originals)}, observed=observed, originals=originals,
                                 known=torch.full((len(originals),), self.add_noise), copies=self.copies, sigma=self.sigma)


@dataclass(frozen=True, kw_only=True)
class Compose:
    """Draws from the weighted sum of the energies of ``runs``, the first of which is the pipeline's own."""

    runs: list[str]
    weights: list[float]

    def conditioning(self, pipeline: Pipeline, load_run: LoadRun) -> Conditioning:
        if not self.runs:
            raise ValueError("runs: [] is not accepted; it must be a list of runs' folders, the first of them run=")
        if Path(self.runs[0]).resolve() != Path(pipeline.run).resolve():
            raise ValueError(f"runs: {self.runs!r} is not accepted; the first must be run={pipeline.run}, or give no run=")
        if len(self.runs) != len(self.weights):
            raise ValueError(f"weights: {self.weights!r} is not accepted; there must be one for each of runs={self.runs!r}")
        pipelines = [load_run(run) for run in self.runs]
        for run, one in zip(self.runs, pipelines, strict=True):
            if one.shape != pipeline.shape:
                raise ValueError(f"runs: {run!r} is not accepted; its images are {one.shape}, and the others' {pipeline.shape}")
        return Composition(inputs={"runs": " ".join(one.checkpoint for one in pipelines)},
                           total=compose([one.model for one in pipelines], weights=self.weights))


def sha256(pixels: Tensor) -> str:
    """SHA-256 of an array's shape and content."""
    return hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
