"""Sampling from the posterior of a clean image given a noisy one, exact at every noise level."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ebm.constraint import sigma_squared
from ebm.model import EnergyModel, ScoreModel, has_energy


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """The score of x_σ = x₀ + σ n given y = x₀ + ``sigma`` m, where n and m are standard normal.

    x_c = σ_c² (x/σ² + y/σ_y²) with 1/σ_c² = 1/σ² + 1/σ_y² is a sufficient statistic of x_σ and y for x₀, so that the
    denoised image is D(x_c, σ_c): nothing is approximated, and every sampler draws from p(x₀ | y).
    """

    model: ScoreModel
    observed: Tensor  # y, (B, C, H, W), of x's batch
    sigma: float  # σ_y

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ log p(x_σ | y) = (σ_c²/σ²) s(x_c, σ_c) + (y − x)/(σ² + σ_y²): (B, C, H, W), (B,) -> (B, C, H, W)."""
        total = sigma_squared(sigma) + self.sigma**2
        return self.sigma**2 / total * self.model.score(*self._both(x, sigma)) + (self.observed - x) / total

    def mean(self) -> Tensor:
        """The posterior mean E[x₀ | y] = D(y, σ_y), (B, C, H, W), from one score (Tweedie's formula; Robbins 1956)."""
        sigma = self.observed.new_full((len(self.observed),), self.sigma)
        return self.observed + self.sigma**2 * self.model.score(self.observed, sigma)

    def _both(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x_c and σ_c."""
        square = sigma_squared(sigma)
        both = (self.sigma**2 * x + square * self.observed) / (square + self.sigma**2)
        return both, sigma * self.sigma * (sigma.square() + self.sigma**2).rsqrt()


@dataclass(frozen=True, kw_only=True)
class EnergyDenoising(Denoising):
    """The same with its energy, which the Metropolis test needs."""

    model: EnergyModel

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−log p(x_σ | y) = E(x_c, σ_c) + ‖x − y‖²/(2(σ² + σ_y²)) up to a function of σ: (B, C, H, W), (B,) -> (B,)."""
        apart = (x - self.observed).square().flatten(1).sum(1) / (2 * (sigma.square() + self.sigma**2))
        return self.model.energy(*self._both(x, sigma)) + apart


def denoising(model: ScoreModel, *, observed: Tensor, sigma: float) -> Denoising:
    """The conditioned model for noisy images ``observed`` (B, C, H, W), with an energy where ``model`` has one."""
    if has_energy(model):
        return EnergyDenoising(model=model, observed=observed, sigma=sigma)
    return Denoising(model=model, observed=observed, sigma=sigma)
