"""Weighted sums of energies, that is, products of models; a negative weight divides by a model."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ebm.model import EnergyModel, ScoreModel, has_energy


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Σ wᵢ sᵢ(x, σ), the score of Π pᵢ(x; σ)^wᵢ (Du et al. 2020, arXiv 2004.06030; 2023, arXiv 2302.11552).

    The noised product is not the product of the noised densities: the sum is exact only as σ → 0. Langevin and Metropolis
    samplers are therefore appropriate, ODE samplers are not (2023, section 4). Raises ValueError for unusable weights.
    """

    models: Sequence[ScoreModel]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.models) or not self.models:
            raise ValueError(f"weights: {list(self.weights)!r} is not accepted; there must be one for each of "
                             f"{len(self.models)} models, and at least one")
        if not all(math.isfinite(weight) for weight in self.weights) or not sum(self.weights) > 0:
            raise ValueError(f"weights: {list(self.weights)!r} is not accepted; they must be numbers whose sum is positive, "
                             "as the density could not be normalised otherwise")

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Σ wᵢ sᵢ(x, σ): (B, C, H, W), (B,) -> (B, C, H, W)."""
        first, *rest = (weight * model.score(x, sigma) for model, weight in zip(self.models, self.weights, strict=True))
        return sum(rest, first)


@dataclass(frozen=True, kw_only=True)
class ComposedEnergy(Composed):
    """The same with its energy, which the Metropolis test needs."""

    models: Sequence[EnergyModel]

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Σ wᵢ Eᵢ(x, σ): (B, C, H, W), (B,) -> (B,)."""
        first, *rest = (weight * model.energy(x, sigma) for model, weight in zip(self.models, self.weights, strict=True))
        return sum(rest, first)


def compose(models: Sequence[ScoreModel], *, weights: Sequence[float]) -> Composed:
    """The weighted sum of models, with its energy where all have one; raises ValueError for unusable weights."""
    energies = [model for model in models if has_energy(model)]
    if len(energies) == len(models):
        return ComposedEnergy(models=energies, weights=weights)
    return Composed(models=models, weights=weights)
