"""Log-densities from an energy in one forward pass: Ē(x, σ_min) plus a constant, fixed where the noised data are Gaussian
(Guth, Kadkhodaie & Simoncelli 2025, arXiv 2506.05310), with a correction from the energy's slope in σ."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebm.energy import Energy
from ebm.evaluate.likelihood import Array
from ebm.model import per_image, sigma_of
from ebm.randomness import normal_like, uniform
from ebm.schedule import LogUniform


@torch.no_grad()
def energies(model: Energy, x: Tensor, *, sigma: float) -> Array:
    """Ē(x, σ) in nats, (B, C, H, W) -> (B,)."""
    return _array(model.normalised(x, sigma_of(x, sigma=sigma)))


@torch.no_grad()
def anchors(model: Energy, x: Tensor, *, sigma: float, generators: Sequence[torch.Generator]) -> Array:
    """Ē(x + σn, σ) − ½(‖n‖² − d), (B,), with n by image: a control variate that leaves the mean and, at large σ, reduces the
    variance by far."""
    n = normal_like(x, generators)
    energy = model.normalised(x + sigma * n, sigma_of(x, sigma=sigma))
    return _array(energy - 0.5 * (n.square() - 1).flatten(1).sum(1))


@torch.no_grad()
def gaps(
    model: Energy, x: Tensor, *, sigma_min: float, sigma_max: float, levels: int, generators: Sequence[torch.Generator]
) -> Array:
    """∂Ē/∂ln σ − (d − ‖n‖²) at x + σn in nats per e-fold, (B, levels), from the smallest σ.

    Each image has its own n, and a random σ in each of ``levels`` equal parts of ln σ. If Ē is normalised at every σ, the mean
    is zero at each, as ∫ p ∂(log p) = 0. The sum of a row times the width of a part is an unbiased estimate of the error that
    a constant fixed at σ_max causes in Ē(σ_min).
    """
    found = []
    for level in range(levels):
        u = (level + uniform(generators).to(x)) / levels
        sigma = LogUniform(sigma_min=sigma_min, sigma_max=sigma_max).sigma(u)
        n = normal_like(x, generators)
        with torch.autocast(x.device.type, enabled=False):
            _, slope = model.score_and_slope(x + per_image(sigma) * n, sigma)
        found.append(_array(slope - (1 - n.square()).flatten(1).sum(1)))
    return np.stack(found, 1)


def spectrum(x: Array) -> Array:
    """The min(n, d) largest eigenvalues of the covariance of images (n, d); raises ValueError for fewer than 2 images."""
    count, d = x.shape
    if count < 2:
        raise ValueError(f"images: {count} is not accepted; a covariance needs at least 2")
    centred = x - x.mean(0)
    square = centred @ centred.T if count < d else centred.T @ centred
    eigenvalues: Array = np.linalg.eigvalsh(square / (count - 1)).clip(min=0)
    return eigenvalues


def entropy(eigenvalues: Array, *, d: int, sigma: float) -> float:
    """Entropy in nats of the Gaussian whose covariance has these ``eigenvalues``, zeros up to d, and σ² added to all.

    At large σ it approximates the entropy of noised images: higher cumulants change it by their ratio to σ, cubed.
    """
    logs = np.log(eigenvalues + sigma**2).sum() + (d - len(eigenvalues)) * math.log(sigma**2)
    return float(0.5 * (logs + d * math.log(2 * math.pi * math.e)))


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """The normalising constant of an energy, from training images, and the correction for the error of its slope.

    ``constant`` is added to Ē at every σ, in nats; ``gap`` is the error of the slope integrated from σ_min to σ_max, so that
    Ē(σ_min) + constant + gap is correct on average whatever function of σ alone the error of Ē is.
    """

    constant: float
    constant_stderr: float
    gap: float
    gap_stderr: float
    by_level: Array  # mean gap in nats per e-fold, (levels,)
    by_level_stderr: Array

    @classmethod
    def fit(cls, *, anchors: Array, gaps: Array, entropy: float, sigma_min: float, sigma_max: float) -> Normalised:
        """From `anchors` (n,) and `gaps` (n, levels) of the same images, and their `entropy` at σ_max."""
        count, levels = gaps.shape
        sums = gaps.sum(1) * math.log(sigma_max / sigma_min) / levels
        return cls(constant=entropy - float(anchors.mean()), constant_stderr=float(anchors.std(ddof=1) / count**0.5),
                   gap=float(sums.mean()), gap_stderr=float(sums.std(ddof=1) / count**0.5),
                   by_level=gaps.mean(0), by_level_stderr=gaps.std(0, ddof=1) / count**0.5)


def agreement(one: Array, other: Array) -> dict[str, float]:
    """Agreement of two estimates (n,) of the same log-densities: the mean of ``other`` − ``one`` with its standard error, the
    standard deviation of that difference, and the correlation. Raises ValueError for fewer than 2 images."""
    if one.shape != other.shape or len(one) < 2:
        raise ValueError(f"images: {one.shape} and {other.shape} are not accepted; both must be of the same images, at least 2")
    difference = other - one
    spread = float(difference.std(ddof=1))
    return {"difference": float(difference.mean()), "difference_stderr": spread / len(one) ** 0.5, "difference_std": spread,
            "correlation": float(np.corrcoef(one, other)[0, 1])}


def _array(values: Tensor) -> Array:
    array: Array = values.double().cpu().numpy()
    return array
