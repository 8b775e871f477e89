"""Learning rates, as functions of the images seen."""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ebm.accepted import positive, whole


@dataclass(frozen=True, kw_only=True)
class LearningRate(ABC):
    """Linear warm-up over ``warmup`` images to ``peak``, times a decay."""

    peak: float
    warmup: int

    def __post_init__(self) -> None:
        positive(peak=self.peak)
        whole(0, warmup=self.warmup)

    def __call__(self, images: int, total: int) -> float:
        """The rate once ``images`` of the ``total`` images have been seen."""
        rise = min(1.0, images / self.warmup) if self.warmup else 1.0
        return self.peak * rise * self.decay(images, total)

    @abstractmethod
    def decay(self, images: int, total: int) -> float:
        """The factor in [0, 1] by which the rate has decayed."""


@dataclass(frozen=True, kw_only=True)
class Constant(LearningRate):
    """No decay."""

    def decay(self, images: int, total: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine(LearningRate):
    """Half a cosine from the peak at the start down to zero at the end (Loshchilov & Hutter 2017, eq. 5)."""

    def decay(self, images: int, total: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, images / total)))


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(LearningRate):
    """Constant up to ``knee`` images, then ∝ 1/√images (EDM2, Karras et al. 2024, eq. 67)."""

    knee: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(knee=self.knee)

    def decay(self, images: int, total: int) -> float:
        return 1 / math.sqrt(max(1.0, images / self.knee))
