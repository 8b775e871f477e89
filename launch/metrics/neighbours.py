"""Memorisation: the training images nearest to a run's samples, as distances and as a picture."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ebm.data import Dataset
from ebm.evaluate.extractors import Extractor, Source
from ebm.evaluate.neighbours import copied, nearest, picture, ratio
from ebm.evaluate.reference import dataset_images
from ebm.randomness import generator
from launch.drawing.batches import Rows
from launch.metrics.evaluation import Figures, Work
from launch.metrics.quality import load_extractor, real_features

BLOCK = 2000  # training images on the device at once


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Distances of samples and of held-out images to all training images, mirrored as well if training mirrors."""

    of_samples: ClassVar[bool] = True
    extractor: Source
    space: str
    count: int
    shown: int
    k: int
    within: float
    batch: int
    draws: int
    seed: int
    cache: str | None

    def __post_init__(self) -> None:
        if self.space not in ("pixels", "features"):
            raise ValueError(f"space: {self.space!r} is not accepted; it must be pixels or features")
        for key, least in (("count", 1), ("shown", 1), ("k", 2), ("batch", 1), ("draws", 2)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: {getattr(self, key)!r} is not accepted; it must be at least {least}")
        if not 0 < self.within < 1:
            raise ValueError(f"within: {self.within!r} is not accepted; it must lie between 0 and 1")

    def check(self, work: Work) -> None:
        """Raises ValueError or OSError for fewer than k training images and for missing weights of the extractor."""
        if self.k > work.train.count:
            raise ValueError(f"k: {self.k!r} is not accepted; there are {work.train.count} training images")
        if self.space == "features":
            load_extractor(self.extractor, work)(work.train.pixels(np.arange(1)))

    def inputs(self, work: Work) -> list[str]:
        """The hash of the extractor's weights, if the figures depend on them: a file may change under its name."""
        return [load_extractor(self.extractor, work).sha256] if self.space == "features" else []

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0; all processes share the work."""
        extractor = load_extractor(self.extractor, work) if self.space == "features" else None
        known = None if extractor is None else real_features(
            work, extractor, dataset_images(work.train), np.arange(work.train.count), batch=self.batch, cache=self.cache,
            seed=self.seed)
        samples = work.samples().images[:self.count]
        sha256 = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        found = self.find_neighbours(work, samples, f"samples {sha256}", extractor, known)
        others, there = None, work.held_out
        if there is not None:
            held_out = dataset_images(there)
            some = held_out.choice(min(self.count, there.count), seed=self.seed)
            others = self.find_neighbours(work, there.pixels(some), f"held out {held_out.sha256} {self.seed}", extractor, known)
        return self.make_figures(work, samples, found, others, extractor) if work.world.is_main else None

    def find_neighbours(self, work: Work, queries: Tensor, name: str, extractor: Extractor | None, known: Rows | None) -> Rows:
        """The neighbours of images, uint8 (q, 3, H, W), as arrays (q, k)."""
        place = make_embedding(work, extractor)

        def compute(part: range) -> Rows:
            some = queries[part.start:part.stop]
            mirrored = place(some.flip(-1)) if work.run_config.data.flip else None
            rows = nearest(place(some), mirrored, training_blocks(work, known), k=self.k)
            return {key: getattr(rows, key).cpu().numpy() for key in ("distance", "index", "mirrored")}

        space = extractor.key if extractor else "pixels"
        about = f"neighbours {space} {work.train.manifest.sha256} {work.run_config.data.flip} {self.k} {name}"
        return work.compute_rows(about, len(queries), self.batch, compute)

    def make_figures(
        self, work: Work, samples: Tensor, found: Rows, others: Rows | None, extractor: Extractor | None
    ) -> Figures:
        """The figures and pictures of the neighbours."""
        distance = torch.from_numpy(found["distance"])
        values = {"distance": float(distance[:, 0].quantile(0.5)),
                  "copied_share": float(copied(distance, within=self.within).double().mean())}
        if others is not None:
            other = torch.from_numpy(others["distance"])
            values |= {"distance_held_out": float(other[:, 0].quantile(0.5)),
                       "copied_share_held_out": float(copied(other, within=self.within).double().mean())}
            near = ratio(distance[:, 0], other[:, 0], draws=self.draws, generator=generator("cpu", self.seed, "bootstrap"))
            values |= dict(zip(("distance_ratio", "distance_ratio_stderr"), near, strict=True)) if near else {}
        closest = distance[:, 0].argsort(stable=True)[:self.shown]
        pictures = {"first": plot_neighbours(work.train, samples, found, torch.arange(min(self.shown, len(samples)))),
                    "closest": plot_neighbours(work.train, samples, found, closest)}
        measure = {"n": len(samples), "train": work.train.manifest.source, "train_sha256": work.train.manifest.sha256,
                   "train_count": work.train.count, "mirrored": bool(work.run_config.data.flip), "space": self.space,
                   "held_out_sha256": work.held_out.manifest.sha256 if work.held_out is not None else None,
                   "held_out_count": 0 if others is None else len(others["distance"]), "within": self.within, "seed": self.seed,
                   **(extractor.measure if extractor else {})}
        details: dict[str, Any] = {"closest": [{"sample": int(i), "train": int(found["index"][i, 0]),
                                                "distance": float(distance[i, 0])} for i in closest]}
        return Figures(values=values, measure=measure, details=details, pictures=pictures)


def make_embedding(work: Work, extractor: Extractor | None) -> Callable[[Tensor], Tensor]:
    """The map of images, uint8 (B, 3, H, W), to their features, or their pixels in 0…255, (B, D) on the device."""
    if extractor is None:
        return lambda images: images.to(work.world.device).flatten(1)
    return lambda images: extractor(images)["features"]


def training_blocks(work: Work, known: Rows | None) -> Iterator[Tensor]:
    """All training images or their features ``known``, in order, in blocks (b, D) on the device."""
    for start in range(0, work.train.count, BLOCK):
        part = np.arange(start, min(start + BLOCK, work.train.count))
        rows = work.train.pixels(part).flatten(1) if known is None else torch.from_numpy(known["features"][part])
        yield rows.to(work.world.device)


def plot_neighbours(train: Dataset, samples: Tensor, found: Rows, which: Tensor) -> bytes:
    """The picture of some samples and their neighbours, which are mirrored where that is nearer."""
    index, mirrored = found["index"][which], torch.from_numpy(found["mirrored"][which])
    images = train.pixels(index.reshape(-1)).unflatten(0, index.shape)
    return picture(samples[which], torch.where(mirrored[..., None, None, None], images.flip(-1), images))
