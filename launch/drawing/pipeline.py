"""Drawing images from a trained model, batch by batch, so that what was interrupted goes on; and how they came about."""
from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ebm.data import to_uint8
from ebm.energy import Preconditioned
from ebm.evaluate.power import added, joule_counter, spending
from ebm.files import write_atomically
from ebm.precision import Precision
from ebm.samplers.step import ScoreModel, Step
from ebm.sampling import Sampler, batches_of, trajectory

ROWS, FRAMES = 8, 16  # images and steps of a trajectory's picture, at most
FILM = "trajectory.png"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A trained model with a sampler, a seed and the precision in which it is called; with a task, the conditioned model."""

    model: Preconditioned
    sampler: Sampler
    shape: tuple[int, int, int]
    seed: int
    precision: Precision
    device: torch.device
    run: str = ""  # the model's folder
    checkpoint: str = ""  # and its file's name there, which contains its hash
    step: int = 0  # at which that was saved
    task: ConditionalTask | None = None

    def trajectory(self, part: range) -> Iterator[Step]:
        """The sampler's steps for the images of these numbers."""
        task = self.task and self.task.conditioning
        model = task.model_for(self, part) if task else self.model
        steps = trajectory(model, self.sampler, shape=self.shape, indices=part, seed=self.seed, device=self.device)
        return task.finish(self, part, steps) if task else steps

    def draw(self, part: range, film: Film | None = None) -> tuple[Tensor, int]:
        """The images of these numbers, uint8 (len(part), C, H, W) on the CPU, and how many of them are not finite; ``film`` is
        shown every step."""
        with self.precision.autocast(self.device):
            for step in self.trajectory(part):
                if film is not None:
                    film.show(step)
        return to_uint8(step.x).cpu(), int((~step.x.isfinite().flatten(1).all(1)).sum())


@dataclass(frozen=True, kw_only=True)
class ConditionalTask:
    """A task and what identifies it; ``identity`` is all that its images depend on besides run, sampler and seed, as JSON."""

    name: str
    identity: dict[str, Any]
    conditioning: Conditioning

    @property
    def label(self) -> str:
        """The part of a file name that tells tasks with other settings or inputs apart."""
        return f"{self.name}-{hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A task's additional outputs."""

    arrays: dict[str, NDArray[Any]]  # for the .npz
    results: dict[str, Any]  # for the protocol
    picture: bytes | None  # PNG; None: a grid of the images


@dataclass(frozen=True, kw_only=True)
class Conditioning(ABC):
    """Conditional sampling: the conditioned model that replaces the run's, and the results to report."""

    inputs: dict[str, str]  # hashes of what the task's settings only name, by key

    @property
    def count(self) -> int | None:
        """The number of images to draw where the inputs determine it."""
        return None

    @abstractmethod
    def model_for(self, pipeline: Pipeline, part: range) -> ScoreModel:
        """The conditioned model for the images of these numbers."""

    def finish(self, pipeline: Pipeline, part: range, steps: Iterator[Step]) -> Iterator[Step]:
        """The sampler's steps, the last of which may be corrected."""
        return steps

    def outcome(self, pipeline: Pipeline, images: Tensor) -> Outcome:
        """Further results from all images, uint8 (n, C, H, W)."""
        return Outcome(arrays={}, results={}, picture=None)


@dataclass(kw_only=True)
class Film:
    """Some images at some steps, the first and the last among them."""

    sigma_data: float
    frames: list[dict[str, Any]] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)

    def show(self, step: Step) -> None:
        """Keeps the step's images where it is one of those spread evenly over all."""
        count = min(FRAMES, step.total)
        if step.index not in {round(k * (step.total - 1) / max(1, count - 1)) for k in range(count)}:
            return
        # At the data's contrast: at σ = 80 pixels would all be black or white.
        shrink = 1.0 if step.index == step.total - 1 else (1 + (step.sigma / self.sigma_data) ** 2) ** -0.5
        self.columns.append(to_uint8(shrink * step.x[:ROWS].float()).cpu())
        self.frames.append({"step": step.index + 1, "sigma": step.sigma})

    def png(self) -> bytes:
        """A picture whose rows are images and whose columns are steps, without gaps."""
        pixels = torch.cat([torch.cat([*column], dim=1) for column in self.columns], dim=2)  # (C, rows · H, columns · W)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).squeeze(2).numpy())).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """All images of a sampling, uint8 (n, C, H, W), and how they were drawn."""

    images: Tensor
    not_finite: int  # of them, whose pixels mean nothing
    nfe: float  # passes through the network, for each image
    gradients: float  # of them, those that a backward pass followed
    seconds: float
    joules: float | None  # of all devices, where they told
    device: str
    film: bytes
    rows: int
    frames: list[dict[str, Any]]


@dataclass(kw_only=True)
class Passes:
    """How often a network was called, and how often a gradient was taken through it: an energy's score costs both."""

    forward: int = 0
    backward: int = 0

    @classmethod
    @contextmanager
    def counted(cls, network: nn.Module) -> Iterator[Passes]:
        """Counts within the block."""
        passes = cls()

        def count(_network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            passes.forward += 1
            passes.backward += inputs[0].requires_grad

        handle = network.register_forward_pre_hook(count)
        try:
            yield passes
        finally:
            handle.remove()


def put_aside(folder: Path, part: range, pipeline: Pipeline) -> None:
    """Draws a batch and writes it, unless that was done before; of the first one, its trajectory as well."""
    path = folder / batch_name(part)
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    film = Film(sigma_data=pipeline.model.sigma_data) if part.start == 0 else None
    counter, _ = joule_counter(pipeline.device)
    with Passes.counted(pipeline.model.network) as passes, spending(pipeline.device, counter) as spent:
        images, lost = pipeline.draw(part, film)
    about = {"seconds": spent.seconds, "joules": spent.joules, "nfe": passes.forward, "gradients": passes.backward,
             "not_finite": lost, "frames": film.frames if film else []}
    write_atomically(path.with_suffix(".json"), json.dumps(about).encode())
    if film is not None:
        write_atomically(folder / FILM, film.png())
    buffer = io.BytesIO()
    np.save(buffer, images.numpy())
    write_atomically(path, buffer.getbuffer())


def collect(folder: Path, count: int, *, batch: int, device: str) -> Drawn:
    """The batches put aside, in order."""
    paths = [folder / batch_name(part) for part in batches_of(count, batch=batch, rank=0, world=1)]
    about = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    images = torch.cat([torch.from_numpy(np.load(path)) for path in paths])
    return Drawn(images=images, not_finite=sum(one["not_finite"] for one in about), nfe=about[0]["nfe"],
                 gradients=about[0]["gradients"], device=device,
                 seconds=sum(one["seconds"] for one in about), joules=added([one["joules"] for one in about]),
                 film=(folder / FILM).read_bytes(), rows=min(ROWS, batch, count), frames=about[0]["frames"])


def batch_name(part: range) -> str:
    """The file of one batch: the numbers of its images."""
    return f"{part.start:09d}-{part.stop:09d}.npy"
