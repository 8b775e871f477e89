"""Whether a score is calibrated: how much of the noise it explains on held-out images, level by level."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ebm.data.quantum import QUANTUM
from ebm.model import ScoreModel, sigma_of
from ebm.precision import Precision

GREY = QUANTUM  # one grey level; anything smaller is lost in an image file


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well σ s predicts −n on images noised by σ n, at one level."""

    sigma: float
    explained: float  # 1 − E‖σ s + n‖²/E‖n‖²
    slope: float  # E⟨σ s, −n⟩/E‖σ s‖²: 1 for the best guess, below 1 overconfident, above 1 too weak
    slope_error: float  # its standard error
    direction: float  # cos² between σ s and −n: what would be explained at the best scale
    gaussian: float  # explained by the best isotropic Gaussian, σ²/(σ² + var), which needs no network
    rounding: float  # RMS error of σ s through mixed precision, relative to its RMS

    @property
    def gain(self) -> float:
        """Share of the isotropic Gaussian's error that the model removes; 0 for an untrained one."""
        return 1 - (1 - self.explained) / (1 - self.gaussian)

    @property
    def trusted(self) -> bool:
        """Whether a sampler may follow it: not clearly worse than the Gaussian, of the right size, and not lost in rounding.

        Below one grey level nothing is at stake.
        """
        if not math.isfinite(self.explained):
            return False
        slope = abs(self.slope - 1) <= 0.2 + 2 * self.slope_error
        return self.sigma < GREY or (self.gain >= -0.25 and slope and not self.rounded)

    @property
    def rounded(self) -> bool:
        """Whether the rounding error exceeds half of the score: mixed precision's floor."""
        return self.rounding > 0.5


@torch.no_grad()
def calibrate(
    model: ScoreModel,
    images: Tensor,
    *,
    sigma: float,
    conditioning_sigma: float,
    batch: int,
    precision: Precision,
    generator: torch.Generator,
) -> Calibration:
    """Calibration on clean images (N, C, H, W) noised at ``sigma``, of the score that the model gives for
    ``conditioning_sigma`` (another level where a sampler's images don't lie at the level it evaluates).

    Each noise is used with both signs, which cancels most of the sampling error.
    """
    products: list[Tensor] = []
    squares: list[Tensor] = []
    noises: list[Tensor] = []
    rounding = 0.0
    for part in images.split(batch):
        noise = torch.randn(part.shape, generator=generator, device=part.device, dtype=part.dtype)
        level = sigma_of(part, sigma=conditioning_sigma)
        scores = []
        for sign in (1, -1):
            with precision.autocast(part.device):
                scores.append(sigma * model.score(part + sign * sigma * noise, level).to(part.dtype))
        if precision.name != "fp32" and not products:
            exact = sigma * model.score(part + sigma * noise, level)
            rounding = float((scores[0] - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        products.append(-((scores[0] - scores[1]) / 2 * noise).flatten(1).mean(1))
        noises.append(noise.square().flatten(1).mean(1))
        squares.append(((scores[0].square() + scores[1].square()) / 2).flatten(1).mean(1))
    means = torch.stack([torch.cat(products), torch.cat(squares), torch.cat(noises)]).double()
    return _summary(means, sigma=sigma, variance=float(images.var()), rounding=rounding)


def _summary(means: Tensor, *, sigma: float, variance: float, rounding: float) -> Calibration:
    """From each image's ⟨σ s, −n⟩, ‖σ s‖² and ‖n‖², all divided by D, (3, N)."""
    products, squares = means[0], means[1]
    product, square, noise = float(products.mean()), max(float(squares.mean()), 1e-30), float(means[2].mean())
    slope = product / square
    spread = float((products - slope * squares).std()) if len(products) > 1 else math.inf
    return Calibration(
        sigma=sigma,
        explained=(2 * product - square) / noise,
        slope=slope,
        slope_error=spread / math.sqrt(len(products)) / square,
        direction=max(product, 0.0) ** 2 / square / noise,
        gaussian=sigma**2 / (sigma**2 + variance),
        rounding=rounding,
    )


def trusted_range(calibrations: Sequence[Calibration]) -> tuple[float, float] | None:
    """The widest run of neighbouring levels that are all trusted, None where there is none above one grey level."""
    ordered = sorted(calibrations, key=lambda c: c.sigma)
    runs = [list(run) for trusted, run in groupby(ordered, key=lambda c: c.trusted) if trusted]
    runs = [run for run in runs if run[-1].sigma >= GREY]
    widest = max(runs, key=lambda run: run[-1].sigma / run[0].sigma, default=None)
    return None if widest is None else (widest[0].sigma, widest[-1].sigma)


def levels_around(sigmas: Sequence[float], *, decade: int) -> list[float]:
    """``decade`` levels per factor of ten on a fixed grid, from a factor of two below ``sigmas`` to a factor of two above (of
    ten where they span less than a decade); and ``sigmas`` themselves where there are at most three."""
    margin = 2.0 if max(sigmas) > 10 * min(sigmas) else 10.0
    low, high = math.log10(min(sigmas) / margin), math.log10(max(sigmas) * margin)
    spread = [10 ** (k / decade) for k in range(math.floor(low * decade), math.ceil(high * decade) + 1)]
    return sorted({*spread, *(set(sigmas) if len(set(sigmas)) <= 3 else ())})
