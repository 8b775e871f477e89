"""Artists with a task: the sampler is given another model in the place of the run's, and what comes of it is told."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm.composition import Composed
from ebm.constraint import Constraint, Measurement, agreeing
from ebm.data import to_uint8
from ebm.denoising import denoising
from ebm.model import ScoreModel
from ebm.randomness import generator
from ebm.samplers.step import Step
from ebm.sampling import trajectory
from launch.drawing.artist import Artist
from launch.drawing.before_after import PAPER, before_after, psnr

SHOWN = 8  # copies in the picture, at most


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is told of a task besides its images."""

    arrays: dict[str, NDArray[Any]]  # for the .npz
    told: dict[str, Any]  # for the protocol
    picture: bytes | None  # PNG; None where a grid of the images is it


@dataclass(frozen=True, kw_only=True)
class Commission(Artist):
    """An artist with a task; ``identity`` is all that its images depend on besides run, sampler and seed, as JSON holds it."""

    task: str
    identity: dict[str, Any]

    @property
    def label(self) -> str:
        """A part of a file's name that tells apart tasks of other settings and inputs."""
        return f"{self.task}-{hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]}"

    def model_for(self, part: range) -> ScoreModel:
        """What the sampler is given for the images of these numbers."""
        raise NotImplementedError

    def trajectory(self, part: range) -> Iterator[Step]:
        """The sampler's steps for the images of these numbers."""
        def sampler(_model: object, noise: Tensor, *, generators: Sequence[torch.Generator]) -> Iterator[Step]:
            return self.sampler(self.model_for(part), noise, generators=generators)

        return trajectory(self.model, sampler, shape=self.shape, indices=part, seed=self.seed, device=self.device)

    def outcome(self, images: Tensor) -> Outcome:
        """What came of it, from all images, uint8 (n, C, H, W)."""
        return Outcome(arrays={}, told={}, picture=None)


@dataclass(frozen=True, kw_only=True)
class Composition(Commission):
    """Draws from a sum of energies."""

    total: Composed

    def model_for(self, part: range) -> ScoreModel:
        return self.total


@dataclass(frozen=True, kw_only=True)
class Restoration(Commission):
    """Draws ``copies`` of each image given: image k is copy k % copies of the one numbered k // copies."""

    observed: Tensor  # (K, C, H, W) in [-1, 1], what the model is given
    originals: Tensor  # uint8 (K, C, H, W)
    known: Tensor  # (K,) booleans: whether the original is what was given, before it was spoilt
    copies: int

    @property
    def count(self) -> int:
        """Images to be drawn."""
        return len(self.observed) * self.copies

    def observed_of(self, part: range) -> Tensor:
        """What was observed of the images of these numbers, (len(part), C, H, W)."""
        return self.observed[[index // self.copies for index in part]].to(self.device)

    def looks(self) -> dict[str, Tensor]:
        """What else there is to be seen than original, observation and copies, uint8 (K, C, H, W) by name."""
        return {}

    def outcome(self, images: Tensor) -> Outcome:
        """The originals where they are known, what was observed, and how near the images came to the originals."""
        copies = images.unflatten(0, (-1, self.copies))  # (K, copies, C, H, W)
        looks = {"given": to_uint8(self.observed)} | self.looks()
        columns = [*looks.items(), *((str(1 + copy), copies[:, copy]) for copy in range(min(SHOWN, self.copies)))]
        arrays = {"observed": channels_last(self.observed)}
        arrays |= {name: channels_last(look) for name, look in looks.items() if name != "given"}
        told: dict[str, Any] = {"copies": self.copies}
        if self.known.any():
            shown = self.originals.where(self.known.view(-1, 1, 1, 1), PAPER)
            columns = [("original", shown), *columns]
            arrays |= {"originals": channels_last(self.originals[self.known]), "known": self.known.numpy()}
            ways = looks | {"first": copies[:, 0], "mean": copies.float().mean(1).round()}
            told["psnr"] = {name: figures(psnr(way[self.known], self.originals[self.known])) for name, way in ways.items()}
        return Outcome(arrays=arrays, told=told, picture=before_after(columns))


@dataclass(frozen=True, kw_only=True)
class Completion(Restoration):
    """Draws images that agree with a measurement."""

    measurement: Measurement
    constraint: Constraint

    def model_for(self, part: range) -> ScoreModel:
        return self.constraint(model=self.model, measurement=self.measurement, observed=self.observed_of(part),
                               generators=[generator(self.device, self.seed, "measured", index) for index in part])

    def trajectory(self, part: range) -> Iterator[Step]:
        """The sampler's steps, the last brought to full agreement, which not every sampler reaches by itself."""
        return self._agreeing(super().trajectory(part), self.observed_of(part))

    def _agreeing(self, steps: Iterator[Step], observed: Tensor) -> Iterator[Step]:
        for step in steps:
            if step.index == step.total - 1:
                step = replace(step, x=agreeing(step.x, self.measurement, observed))
            yield step


@dataclass(frozen=True, kw_only=True)
class Cleaning(Restoration):
    """Draws clean images given noisy ones."""

    sigma: float

    def model_for(self, part: range) -> ScoreModel:
        return denoising(self.model, observed=self.observed_of(part), sigma=self.sigma)

    def looks(self) -> dict[str, Tensor]:
        """The posterior mean."""
        with torch.no_grad(), self.precision.autocast(self.device):
            means = [denoising(self.model, observed=one.to(self.device), sigma=self.sigma).mean().float().cpu()
                     for one in self.observed.split(64)]
        return {"mmse": to_uint8(torch.cat(means))}


def figures(each: list[float]) -> dict[str, Any]:
    """The mean of some numbers, and themselves."""
    return {"mean": round(float(np.mean(each)), 3), "each": each}


def channels_last(images: Tensor) -> NDArray[Any]:
    """(K, C, H, W) -> (K, H, W, C)."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
