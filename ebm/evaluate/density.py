"""Log-densities read off an energy in one forward pass: Ē(x, σ_min) and one constant, fixed where the noised data is Gaussian
(Guth, Kadkhodaie & Simoncelli 2025, arXiv 2506.05310); and what its slope in σ says about how far that may be trusted."""
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
    """Ē(x + σn, σ) − ½(‖n‖² − d), (B,), with n by image: of Ē's own mean, but for large σ of far less spread."""
    n = normal_like(x, generators)
    energy = model.normalised(x + sigma * n, sigma_of(x, sigma=sigma))
    return _array(energy - 0.5 * (n.square() - 1).flatten(1).sum(1))


@torch.no_grad()
def gaps(
    model: Energy, x: Tensor, *, sigma_min: float, sigma_max: float, levels: int, generators: Sequence[torch.Generator]
) -> Array:
    """∂Ē/∂ln σ − (d − ‖n‖²) at x + σn in nats per e-fold, (B, levels), from the smallest σ.

    Each image has its σ at random in each of ``levels`` equal parts of ln σ, and its own n. Where Ē is normalised at every σ
    the mean is zero at each: ∫ p ∂(log p) = 0. Times the parts' width, a row's sum estimates without bias the error of
    Ē(σ_min) that comes of a constant fixed at σ_max.
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
    """Eigenvalues of the covariance of images (n, d), the min(n, d) largest; raises ValueError below 2 images."""
    count, d = x.shape
    if count < 2:
        raise ValueError(f"images: {count} is not accepted; a covariance needs at least 2")
    centred = x - x.mean(0)
    square = centred @ centred.T if count < d else centred.T @ centred
    eigenvalues: Array = np.linalg.eigvalsh(square / (count - 1)).clip(min=0)
    return eigenvalues


def entropy(eigenvalues: Array, *, d: int, sigma: float) -> float:
    """Of the Gaussian whose covariance has these ``eigenvalues``, zeros up to d, and σ² on top, in nats.

    Noised images have nearly that where σ is large: the law's other cumulants change it by their ratio to σ, cubed.
    """
    logs = np.log(eigenvalues + sigma**2).sum() + (d - len(eigenvalues)) * math.log(sigma**2)
    return float(0.5 * (logs + d * math.log(2 * math.pi * math.e)))


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """The constant that makes an energy a density, from training images, and the correction that their slopes ask for.

    ``constant`` is to be added to Ē at every σ, in nats; ``gap`` is the slope's error between σ_min and σ_max added up, so
    that Ē(σ_min) + constant + gap is right on average whatever function of σ alone Ē errs by.
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
    """How two estimates of the same images' log-densities agree, (n,) both: the mean of ``other`` − ``one`` with its standard
    error, the standard deviation of that difference, and the correlation. Raises ValueError below 2 images."""
    if one.shape != other.shape or len(one) < 2:
        raise ValueError(f"images: {one.shape} and {other.shape} are not accepted; both must be of the same images, at least 2")
    difference = other - one
    spread = float(difference.std(ddof=1))
    return {"difference": float(difference.mean()), "difference_stderr": spread / len(one) ** 0.5, "difference_std": spread,
            "correlation": float(np.corrcoef(one, other)[0, 1])}


def _array(values: Tensor) -> Array:
    array: Array = values.double().cpu().numpy()
    return array
