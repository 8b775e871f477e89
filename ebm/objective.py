"""Denoising score matching (Vincent 2011), at any distribution of noise levels and in any weighting."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ebm.schedule import positive

ScoreFn = Callable[[Tensor, Tensor], Tensor]


class Weighting(ABC):
    """Weight of a noise level, relative to the mean square of σ·score + n."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Tensor:
        """(B,) -> (B,)."""


@dataclass(frozen=True, kw_only=True)
class SigmaSquared(Weighting):
    """λ(σ) = σ² on the score's squared error: every level counts alike (NCSN, Song & Ermon 2019, section 4.2)."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma.new_ones(sigma.shape)


@dataclass(frozen=True, kw_only=True)
class EDM(Weighting):
    """λ(σ) = (σ² + σ_data²)/(σ σ_data)² on the denoiser's squared error: unit loss for the untrained network at
    every σ (Karras et al. 2022, table 1)."""

    sigma_data: float

    def __post_init__(self) -> None:
        positive(sigma_data=self.sigma_data)

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.sigma_data**2) / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """min(SNR, γ) with SNR = 1/σ², on the denoiser's squared error (Hang et al. 2023, section 3.4)."""

    gamma: float

    def __post_init__(self) -> None:
        positive(gamma=self.gamma)

    def __call__(self, sigma: Tensor) -> Tensor:
        return (self.gamma * sigma.square()).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class DenoisingScoreMatching:
    """Loss of a score at noisy images x₀ + σ n, whose best guess of −n/σ is the score of the noised data."""

    weighting: Weighting

    def __call__(self, score: ScoreFn, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Loss of each image, (B,): clean x and standard normal noise (B, C, H, W), sigma (B,)."""
        sigma_ = sigma[:, None, None, None]
        residual = sigma_ * score(x + sigma_ * noise, sigma) + noise
        return self.weighting(sigma) * residual.square().flatten(1).mean(1)
