"""Denoising score matching (Vincent 2011), at any distribution of noise levels and in any weighting; and dual score
matching, which normalises the energy as well."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ebm.accepted import positive
from ebm.energy import Energy, Preconditioned, knows_sigma
from ebm.model import per_image

ScoreFn = Callable[[Tensor, Tensor], Tensor]


class DualScoreFn(Protocol):
    """A score with the slope ∂Ē/∂ln σ of its energy: `ebm.energy.Energy`, or one wrapped in DistributedDataParallel."""

    def __call__(self, x: Tensor, sigma: Tensor, *, slope: bool) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B,) -> (B, C, H, W), (B,)."""


class Weighting(ABC):
    """Weight of a noise level, relative to the mean square of σ·score + n."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Tensor:
        """(B,) -> (B,)."""


@dataclass(frozen=True, kw_only=True)
class SigmaSquared(Weighting):
    """λ(σ) = σ² on the score's squared error: every level counts equally (NCSN, Song & Ermon 2019, section 4.2)."""

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
        sigma_ = per_image(sigma)
        residual = sigma_ * score(x + sigma_ * noise, sigma) + noise
        return self.weighting(sigma) * residual.square().flatten(1).mean(1)

    def check(self, model: object, shape: tuple[int, int, int] | None = None) -> None:
        """Raises ValueError for a model that can't be trained with this objective: here none, as every model has a score."""


@dataclass(frozen=True, kw_only=True)
class DualScoreMatching(DenoisingScoreMatching):
    """Denoising score matching that also fits ∂Ē/∂ln σ, so that Ē is −log p(x; σ) up to one constant for all σ
    (Guth, Kadkhodaie & Simoncelli 2025, arXiv 2506.05310).

    Differentiating −log ∫ p(x₀) N(x; x₀, σ²) in ln σ gives E[d − ‖n‖² | x]: the best guess of d − ‖n‖², whose variance is
    2d, from x = x₀ + σ n alone. ``sigma_data`` is the model's. Raises ValueError unless both numbers are positive.
    """

    slope_weight: float
    sigma_data: float

    def __post_init__(self) -> None:
        positive(slope_weight=self.slope_weight, sigma_data=self.sigma_data)

    def __call__(self, score: DualScoreFn, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """Loss of each image, (B,); ``score(x, σ, slope=True)`` gives the score and the slope, (B, C, H, W) and (B,)."""
        self.check(score)
        sigma_, d = per_image(sigma), noise[0].numel()
        field, slope = score(x + sigma_ * noise, sigma, slope=True)
        residual = sigma_ * field + noise
        slope_residual = slope - (1 - noise.square()).flatten(1).sum(1)
        spatial = self.weighting(sigma) * residual.square().flatten(1).mean(1)
        # In units of its variance 2d, the slope is one more number to predict besides d pixels: hence /d, which at weight ½
        # is the paper's scale. But the network's φ enters the slope multiplied by σ_data/σ, and so does the noise of its
        # gradients: on the paper's scale it drowns the score's gradients at σ = 0.002 and is negligible beside them at σ = 1.
        # With the weight σ/σ_data both score and density were learned faster.
        return spatial + self.slope_weight * (sigma / self.sigma_data) * slope_residual.square() / (2 * d) / d

    def check(self, model: object, shape: tuple[int, int, int] | None = None) -> None:
        """Raises ValueError for a model without an energy or, given ``shape`` (C, H, W), one whose network ignores σ."""
        model = getattr(model, "module", model)  # what DistributedDataParallel holds
        if isinstance(model, Preconditioned) and not isinstance(model, Energy):
            raise ValueError(f"objective: DualScoreMatching is not accepted for a {type(model).__name__}, which has no energy; "
                             "choose objective=dsm or a model that is an energy")
        if shape is not None and isinstance(model, Energy) and not knows_sigma(model, shape):
            raise ValueError("objective: DualScoreMatching is not accepted for a network that ignores σ, whose energy has no "
                             "slope to fit; choose objective=dsm or model=unet")
