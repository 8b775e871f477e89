"""Conditional sampling: a task replaces the run's model by a conditioned one and reports the result."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm.composition import Composed
from ebm.constraint import Constraint, Measurement, alternating_projections
from ebm.data import to_uint8
from ebm.denoising import denoising
from ebm.model import ScoreModel
from ebm.randomness import generator
from ebm.samplers.step import Step
from launch.drawing.before_after import PAPER, before_after, psnr
from launch.drawing.pipeline import Conditioning, Outcome, Pipeline

SHOWN = 8  # copies in the picture, at most


@dataclass(frozen=True, kw_only=True)
class Composition(Conditioning):
    """Sampling from a weighted sum of energies."""

    total: Composed

    def model_for(self, pipeline: Pipeline, part: range) -> ScoreModel:
        return self.total


@dataclass(frozen=True, kw_only=True)
class Restoration(Conditioning):
    """Draws ``copies`` samples for each given image: sample k is copy k % copies of image k // copies."""

    observed: Tensor  # (K, C, H, W) in [-1, 1], what the model is conditioned on
    originals: Tensor  # uint8 (K, C, H, W)
    known: Tensor  # (K,) booleans: whether the original was given, and not only its degraded version
    copies: int

    @property
    def count(self) -> int:
        """The number of images to draw."""
        return len(self.observed) * self.copies

    def observed_of(self, pipeline: Pipeline, part: range) -> Tensor:
        """The observations for the images of these numbers, (len(part), C, H, W)."""
        return self.observed[[index // self.copies for index in part]].to(pipeline.device)

    def further_images(self, pipeline: Pipeline) -> dict[str, Tensor]:
        """Further images to show and score, uint8 (K, C, H, W), by name."""
        return {}

    def outcome(self, pipeline: Pipeline, images: Tensor) -> Outcome:
        """Observations, originals where known, and the PSNR of the samples against them."""
        copies = images.unflatten(0, (-1, self.copies))  # (K, copies, C, H, W)
        shown = {"given": to_uint8(self.observed)} | self.further_images(pipeline)
        columns = [*shown.items(), *((str(1 + copy), copies[:, copy]) for copy in range(min(SHOWN, self.copies)))]
        arrays = {"observed": channels_last(self.observed)}
        arrays |= {name: channels_last(one) for name, one in shown.items() if name != "given"}
        results: dict[str, Any] = {"copies": self.copies}
        if self.known.any():
            originals = self.originals.where(self.known.view(-1, 1, 1, 1), PAPER)
            columns = [("original", originals), *columns]
            arrays |= {"originals": channels_last(self.originals[self.known]), "known": self.known.numpy()}
            scored = shown | {"first": copies[:, 0], "mean": copies.float().mean(1).round()}
            results["psnr"] = {name: with_mean(psnr(one[self.known], self.originals[self.known]))
                               for name, one in scored.items()}
        return Outcome(arrays=arrays, results=results, picture=before_after(columns))


@dataclass(frozen=True, kw_only=True)
class InverseProblem(Restoration):
    """Sampling of images that agree with a linear measurement."""

    measurement: Measurement
    constraint: Constraint

    def model_for(self, pipeline: Pipeline, part: range) -> ScoreModel:
        generators = [generator(pipeline.device, pipeline.seed, "measured", index) for index in part]
        return self.constraint(model=pipeline.model, measurement=self.measurement, observed=self.observed_of(pipeline, part),
                               generators=generators)

    def finish(self, pipeline: Pipeline, part: range, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, the last made to agree exactly with the measurement, which not every sampler achieves by itself."""
        observed = self.observed_of(pipeline, part)
        for step in steps:
            if step.index == step.total - 1:
                step = replace(step, x=alternating_projections(step.x, self.measurement, observed))
            yield step


@dataclass(frozen=True, kw_only=True)
class GaussianDenoising(Restoration):
    """Sampling from the posterior of clean images given noisy ones."""

    sigma: float

    def model_for(self, pipeline: Pipeline, part: range) -> ScoreModel:
        return denoising(pipeline.model, observed=self.observed_of(pipeline, part), sigma=self.sigma)

    def further_images(self, pipeline: Pipeline) -> dict[str, Tensor]:
        """The posterior mean."""
        with torch.no_grad(), pipeline.precision.autocast(pipeline.device):
            means = [denoising(pipeline.model, observed=one.to(pipeline.device), sigma=self.sigma).mean().float().cpu()
                     for one in self.observed.split(64)]
        return {"mmse": to_uint8(torch.cat(means))}


def with_mean(values: list[float]) -> dict[str, Any]:
    """The mean of some numbers beside the numbers themselves."""
    return {"mean": round(float(np.mean(values)), 3), "each": values}


def channels_last(images: Tensor) -> NDArray[Any]:
    """(K, C, H, W) -> (K, H, W, C)."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
