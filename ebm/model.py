"""What a model must provide: a score and, where it has one, an energy; and how one noise level is given to a whole batch."""
from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import Tensor


class ScoreModel(Protocol):
    """What a sampler needs of a model: the score of the noised data, ∇ log p(x; σ)."""

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W)."""


class EnergyModel(ScoreModel, Protocol):
    """A model whose score is −∇E of an energy that can be read."""

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B,)."""


def has_energy(model: ScoreModel) -> TypeGuard[EnergyModel]:
    """Whether there is an energy behind the score."""
    return callable(getattr(model, "energy", None))


def with_energy(model: ScoreModel, *, what: str) -> EnergyModel:
    """The model; raises ValueError, naming ``what`` needs it, where it has no energy."""
    if not has_energy(model):
        raise ValueError(f"model: {type(model).__name__} is not accepted; {what} needs an energy")
    return model


def score_at(model: ScoreModel, x: Tensor, *, sigma: float) -> Tensor:
    """The score of the whole batch at one noise level, (B, C, H, W)."""
    return model.score(x, sigma_of(x, sigma=sigma))


def sigma_of(x: Tensor, *, sigma: float) -> Tensor:
    """One noise level repeated for each image of x, (B,)."""
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)


def per_image(values: Tensor) -> Tensor:
    """One number for each image, (B,), shaped to broadcast over images: (B, 1, 1, 1)."""
    return values[:, None, None, None]
