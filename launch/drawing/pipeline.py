"""A trained model with all that its samples depend on, and the conditioning that a task adds."""
from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm.data import to_uint8
from ebm.energy import Preconditioned
from ebm.evaluate.power import Passes
from ebm.model import ScoreModel
from ebm.precision import Precision
from ebm.samplers.step import Step
from ebm.sampling import Sampler, trajectory
from launch.drawing.film import Film
from launch.drawing.recorded import RecordedScore, recorded


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
    cuda_graph: bool = False  # replay the model's score on a GPU; a task's model is called as it is

    @cached_property
    def recorded(self) -> RecordedScore:
        """The model, recorded: one for all batches, as recording takes as long as several calls."""
        return recorded(self.model)

    def trajectory(self, part: range) -> Iterator[Step]:
        """The sampler's steps for the images of these numbers."""
        task = self.task and self.task.conditioning
        model = task.model_for(self, part) if task else self.recorded if self.cuda_graph else self.model
        steps = trajectory(model, self.sampler, shape=self.shape, indices=part, seed=self.seed, device=self.device)
        return task.finish(self, part, steps) if task else steps

    def draw(self, part: range, film: Film | None = None) -> Images:
        """The images of these numbers; ``film`` is shown every step."""
        self.recorded.replayed = replayed = Passes()
        with Passes.counted(self.model.network) as passes, self.precision.autocast(self.device):
            for step in self.trajectory(part):
                if film is not None:
                    film.show(step)
        return Images(pixels=to_uint8(step.x).cpu(), not_finite=int((~step.x.isfinite().flatten(1).all(1)).sum()),
                      forward=passes.forward + replayed.forward,
                      backward=passes.backward + replayed.backward)


@dataclass(frozen=True, kw_only=True)
class Images:
    """A batch of images and what it took."""

    pixels: Tensor  # uint8 (B, C, H, W), on the CPU
    not_finite: int  # images with NaN or infinite pixels
    forward: int  # passes through the network
    backward: int


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
