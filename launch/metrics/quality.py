"""Quality of a run's samples in a feature space, with that of real images for comparison."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ebm.evaluate.extractors import Extractor, Source
from ebm.evaluate.quality import Comparison, features_of, statistics
from ebm.evaluate.reference import ImageSet, dataset_images, load_features, read_image_set, save_features
from launch.drawing.batches import Rows
from launch.metrics.evaluation import Figures, Work


@dataclass(frozen=True, kw_only=True)
class Quality:
    """FID, KID, Inception score, precision and recall against ``reference``: train, held_out, or the path of other images."""

    of_samples: ClassVar[bool] = True
    extractor: Source
    reference: str
    reference_count: int | None
    real: bool
    batch: int
    figures: Sequence[str] | None
    kid_subsets: int
    kid_subset_size: int
    neighbourhood: int
    splits: int
    halves: int
    seed: int
    cache: str | None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch: {self.batch!r} is not accepted; it must be at least 1 image")
        self.comparison()

    def comparison(self) -> Comparison:
        """The settings of the figures; raises ValueError for unusable ones."""
        return Comparison(figures=self.figures, kid_subsets=self.kid_subsets, kid_subset_size=self.kid_subset_size,
                          neighbourhood=self.neighbourhood, splits=self.splits, halves=self.halves, seed=self.seed)

    def check(self, work: Work) -> None:
        """Raises ValueError or OSError for other weights or none, and for too few images or images of another size."""
        extractor = load_extractor(self.extractor, work)
        images = reference_images(self.reference, work)
        if images.shape != work.pipeline.shape:
            raise ValueError(f"reference: images of {images.shape} are not accepted; the run's are {work.pipeline.shape}")
        indices = self.indices(images)
        self.comparison().check(n=work.n, count=len(indices), extractor=extractor)
        extractor(images.pixels(indices[:2]))  # raises where it gives no features

    def inputs(self, work: Work) -> list[str]:
        """The hashes of weights and reference images: files may change under their names."""
        return [load_extractor(self.extractor, work).sha256, reference_images(self.reference, work).sha256]

    def indices(self, images: ImageSet) -> NDArray[np.int64]:
        """The indices of the reference images to compare with; raises ValueError for more than there are."""
        try:
            return images.choice(self.reference_count, seed=self.seed)
        except ValueError as error:
            raise ValueError(f"reference_count: {error}") from error

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0; all processes share the work."""
        extractor, samples = load_extractor(self.extractor, work), work.samples()
        images = reference_images(self.reference, work)
        indices = self.indices(images)
        reference = real_features(work, extractor, images, indices, batch=self.batch, cache=self.cache, seed=self.seed)
        sha256 = hashlib.sha256(samples.images.numpy().tobytes()).hexdigest()
        n, name = len(samples.images), f"features {extractor.key} samples {sha256}"
        rows = work.compute_rows(name, n, self.batch, lambda part: features_of(
            samples.images[part.start:part.stop], extractor=extractor, batch=len(part), progress=False))
        others, floor = other_images(self.reference, work) if self.real else None, None
        if others is not None and others.count >= n:
            some = others.choice(n, seed=self.seed)
            floor = real_features(work, extractor, others, some, batch=self.batch, cache=self.cache, seed=self.seed)
        if not work.world.is_main:
            return None
        compare = self.comparison()
        values = compare(rows, reference, extractor=extractor, progress=True)
        details: dict[str, Any] = {"samples_sha256": sha256}
        if floor is not None and others is not None:
            real = compare(floor, reference, extractor=extractor, progress=True)
            values |= {f"{key}_real": value for key, value in real.items() if not key.endswith("_stderr")}
            details["real"] = {"name": others.name, "sha256": others.sha256, "count": n}
        elif others is not None:
            details["real"] = f"{others.name} has {others.count} images, fewer than n"
        measure = {"n": n, "reference": images.name, "reference_sha256": images.sha256,
                   "reference_count": len(indices), **extractor.measure, **compare.measure}
        return Figures(values=values, measure=measure, details=details)


def load_extractor(source: Source, work: Work) -> Extractor:
    """The extractor on this process's device, loaded once."""
    return work.once(repr(source), lambda: source.load(work.world.device))


def reference_images(reference: str, work: Work) -> ImageSet:
    """The run's training images, its held-out ones, or those at a path; raises ValueError or OSError if there are none."""
    if reference == "train":
        return dataset_images(work.train)
    if reference == "held_out":
        if work.held_out is None:
            raise ValueError("reference: 'held_out' is not accepted; the run has none, held_out=<file> gives some")
        return dataset_images(work.held_out)
    try:
        return work.once(f"images {reference}", lambda: read_image_set(reference, size=work.pipeline.shape[1]))
    except (ValueError, OSError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"reference: {error}; train, held_out, or the path of a .beton, .npz or folder") from error


def other_images(reference: str, work: Work) -> ImageSet | None:
    """Real images of the same distribution, disjoint from the reference."""
    others = {"train": work.held_out, "held_out": work.train}.get(reference)
    return None if others is None else dataset_images(others)


def real_features(
    work: Work, extractor: Extractor, images: ImageSet, indices: NDArray[np.int64], *, batch: int, cache: str | None, seed: int
) -> Rows:
    """The features of real images with their mean and covariance, cached beside the images or in ``cache``.

    The file's name contains the extractor, the images and their selection; a damaged file is written again.
    """
    count = len(indices)
    drawn = "" if count == images.count else f"-seed{seed}"
    place = Path(cache).expanduser() if cache else images.place
    path = place / f"{extractor.name}-{extractor.key}-{images.sha256[:12]}-n{count}{drawn}.npz"
    found = load_features(path, count=count)
    if all(work.world.all_gather(found is not None)):
        assert found is not None
        return found
    name = f"features {extractor.key} real {images.sha256} {count} {seed}"
    rows = work.compute_rows(name, count, batch, lambda part: features_of(
        images.pixels(indices[part.start:part.stop]), extractor=extractor, batch=len(part), progress=False))
    if work.world.is_main:
        rows |= statistics(rows)
        try:
            save_features(path, rows)
        except OSError as error:
            print(f"{path}: can't be written ({error.strerror}); features of real images are not cached", flush=True)
    return rows
