"""The data's statistics, with which a sampler's states are compared: a Gaussian with the data's principal components."""
from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ebm.model import per_image

DRAWS = 200  # of real images, to estimate how far from their own statistics they lie by chance alone


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Mean and covariance of images: principal components and a single variance for all other directions
    (probabilistic PCA, Tipping & Bishop 1999), grouped into bands from the widest components to the rest."""

    mean: Tensor  # (D,)
    basis: Tensor  # (D, K), orthonormal
    sizes: tuple[int, ...]  # directions in each band; the last band is the rest, D − K of them
    variances: tuple[float, ...]  # of the data in each band
    scatter: float  # variance of all pixels about their common mean

    @classmethod
    def fit(cls, images: Tensor, *, components: int) -> Reference:
        """Fits images (N, C, H, W) with at most ``components`` principal components; raises ValueError below 8 images.

        Directions come from one half of the images and variances from the other, so that these are not overfitted.
        """
        if len(images) < 8:
            raise ValueError(f"images: {len(images)} are not accepted; the data's statistics need at least 8")
        flat = images.flatten(1).float()
        mean = flat.mean(0)
        first, second = (flat - mean)[::2], (flat - mean)[1::2]
        count = min(components, len(first) // 2, flat.shape[1] - 1)
        basis = torch.linalg.svd(first, full_matrices=False).Vh[:count].T.contiguous()
        sizes = (*_band_sizes(count), flat.shape[1] - count)
        reference = cls(mean=mean, basis=basis, sizes=sizes, variances=(), scatter=float(flat.var()))
        moments = reference.moments(second + mean)
        return cls(mean=mean, basis=basis, sizes=sizes, variances=moments, scatter=float(flat.var()))

    @property
    def dimensions(self) -> int:
        """Pixels times channels, D."""
        return len(self.mean)

    def moments(self, x: Tensor) -> tuple[float, ...]:
        """Mean square of x, (B, C, H, W) or (B, D), about the data's mean, in each band."""
        centred = x.flatten(1).float() - self.mean
        squares = (centred @ self.basis).square()
        rest = (centred.square().sum(1) - squares.sum(1)).mean() / self.sizes[-1]
        bands = [float(band.mean()) for band in squares.split(list(self.sizes[:-1]), dim=1)]
        return (*bands, max(0.0, float(rest)))

    def distance(self, x: Tensor, *, sigma: float) -> float:
        """How far x (B, C, H, W) is from the data noised at ``sigma``: the Fréchet distance between their bands' Gaussians,
        relative to the noised data's width (0: the same; 1: as far as the data's mean repeated)."""
        flat = x.flatten(1).float()
        mean, bessel = flat.mean(0), len(x) / max(1, len(x) - 1)
        shifts, spreads = self.moments(mean[None]), self.moments(flat - mean + self.mean)
        squared, width = 0.0, 0.0
        for size, shift, spread, variance in zip(self.sizes, shifts, spreads, self.variances, strict=True):
            unbiased = spread * bessel
            squared += size * (math.sqrt(unbiased) - math.sqrt(variance + sigma**2)) ** 2
            squared += size * max(0.0, shift - unbiased / len(x))  # less the sample mean's own variance
            width += size * (variance + sigma**2)
        return math.sqrt(squared / width)

    def by_chance(self, images: Tensor, *, count: int, generator: torch.Generator) -> float:
        """The 95th percentile of the distance over draws of ``count`` images of the data itself, (N, C, H, W)."""
        picked = torch.rand(DRAWS, len(images), generator=generator, device=images.device).argsort(1)[:, :count]
        return float(torch.tensor([self.distance(images[rows], sigma=0.0) for rows in picked]).quantile(0.95))

    def noise(self, x: Tensor) -> float:
        """The noise level that x (B, C, H, W) appears to have, from the excess of its last band's variance over the data's."""
        return math.sqrt(max(0.0, self.moments(x)[-1] - self.variances[-1]))


def _band_sizes(count: int) -> list[int]:
    """Components 1–4, 5–16, 17–64 and so on, ``count`` in all."""
    edges = [0]
    while edges[-1] < count:
        edges.append(min(count, max(4, 4 * edges[-1])))
    return [after - before for before, after in pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """The exact model of a Gaussian whose columns have the bands' standard deviations, so that any error of a sampler on it is
    the sampler's own. Images of (1, rows, bands), mean 0."""

    deviations: tuple[float, ...]

    def variance(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Of each pixel at ``sigma`` (B,), (B, 1, 1, bands)."""
        return x.new_tensor(self.deviations).square() + per_image(sigma.to(x)).square()

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−log p up to a function of σ, (B, 1, rows, bands), (B,) -> (B,)."""
        return 0.5 * (x.square() / self.variance(x, sigma)).flatten(1).sum(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−∇E, of x's shape."""
        return -x / self.variance(x, sigma)
