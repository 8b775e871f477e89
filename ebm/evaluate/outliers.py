"""Out-of-distribution detection: energies and score norms of an image at several noise levels, their distance from those of
training images, and how well it separates two sets."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm.model import ScoreModel, has_energy, sigma_of
from ebm.nets.derivatives import joint_gradient

Array = NDArray[np.float64]
ACCEPTED = 0.95  # true positive rate at which the false positive rate is measured


@torch.no_grad()
def readings(model: ScoreModel, x: Tensor, *, levels: Sequence[float]) -> dict[str, Array]:
    """``norms`` σ ‖s(x, σ)‖/√d and, where the model has an energy, ``energies`` E(x, σ), each (B, levels) for x (B, C, H, W).

    No noise is added to x, as it would hide the differences of images at large σ. The vector of score norms is that of Mahmood
    et al. 2021 (MSMA, arXiv 2010.13132).
    """
    energies, norms = [], []
    for sigma in levels:
        if has_energy(model):
            value, slope, _ = joint_gradient(model.energy, x, sigma_of(x, sigma=sigma))  # both from one pass
            energies.append(value.double().cpu().numpy())
        else:
            slope = model.score(x, sigma_of(x, sigma=sigma))
        norms.append((sigma * slope.double().flatten(1).norm(dim=1) / math.sqrt(x[0].numel())).cpu().numpy())
    found = {"norms": np.stack(norms, 1)}
    return found | {"energies": np.stack(energies, 1)} if energies else found


@dataclass(frozen=True, kw_only=True)
class Typical:
    """Mean and covariance of the readings of training images at all levels: images far from them are atypical, whether their
    energy is too high or too low (Nalisnick et al. 2019, arXiv 1906.02994, for likelihoods)."""

    mean: Array  # (K,)
    deviation: Array  # (K,)
    correlation: Array  # (K, K), shrunk
    shrinkage: float

    @classmethod
    def fit(cls, readings: Array) -> Typical:
        """The fit to finite readings (n, K), with the correlation shrunk towards the identity according to its sampling error
        (Ledoit & Wolf 2004); raises ValueError for fewer than 8 images, zero variance and readings that are not finite."""
        count, levels = readings.shape
        if count < 8 or not np.isfinite(readings).all():
            wrong = f"{count} of them" if count < 8 else "one that is not finite"
            raise ValueError(f"readings: {wrong} is not accepted; the training images' must be finite, and at least 8")
        mean, deviation = readings.mean(0), readings.std(0)
        if not (deviation > 0).all():
            raise ValueError(f"readings: spread {deviation.tolist()} is not accepted; images must differ at each level")
        z = (readings - mean) / deviation
        sample = z.T @ z / count
        apart = ((sample - np.eye(levels)) ** 2).sum()
        error = ((z**2).sum(1) ** 2).mean() - (sample**2).sum()  # mean of ‖z zᵀ − sample‖²
        share = min(1.0, float(error / count / apart)) if apart > 0 else 1.0
        return cls(mean=mean, deviation=deviation, correlation=share * np.eye(levels) + (1 - share) * sample, shrinkage=share)

    def standard(self, readings: Array) -> Array:
        """Readings (n, K), standardised by the mean and standard deviation of training images."""
        return (readings - self.mean) / self.deviation

    def distance(self, readings: Array) -> Array:
        """Mahalanobis distance (n,) of readings (n, K); infinite where one of them is not finite."""
        z = self.standard(readings)
        finite = np.isfinite(z).all(1)
        square = np.full(len(z), np.inf)
        square[finite] = np.einsum("nk,nk->n", z[finite], np.linalg.solve(self.correlation, z[finite].T).T)
        root: Array = np.sqrt(square.clip(min=0))
        return root


def auroc(inliers: Array, outliers: Array) -> float:
    """Share of pairs in which the outlier scores higher, (n,), (m,) -> [0, 1], ties counted half (Mann & Whitney 1947).

    Below ½ the outliers look more like training images than the inliers do; it is never replaced by 1 minus itself.
    """
    return float(_above(inliers, outliers).mean())


def auroc_stderr(inliers: Array, outliers: Array) -> float:
    """The standard error of `auroc` due to the finite size of both sets (DeLong et al. 1988)."""
    parts = _above(inliers, outliers), 1 - _above(outliers, inliers)
    return math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) if min(map(len, parts)) > 1 else math.nan


def fpr95(inliers: Array, outliers: Array) -> float:
    """False positive rate at 95 % true positive rate (Liang et al. 2018, ODIN), the lower the better: the share of outliers
    that score no more than the ⌈0.95 n⌉-th lowest of the inliers (n,)."""
    threshold = np.sort(inliers)[math.ceil(ACCEPTED * len(inliers)) - 1]
    return float((outliers <= threshold).mean())


def _above(low: Array, high: Array) -> Array:
    """For each of ``high`` (m,), the share of ``low`` (n,) below it, ties counted half."""
    ordered = np.sort(_ranked(low))
    below, up_to = (np.searchsorted(ordered, _ranked(high), side=side) for side in ("left", "right"))
    share: Array = (below + up_to) / (2 * len(ordered))
    return share


def _ranked(scores: Any) -> Array:
    """Scores with NaN replaced by infinity: an image that a model can't score is an outlier."""
    clean: Array = np.where(np.isnan(scores), np.inf, scores)
    return clean
