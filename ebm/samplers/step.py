"""What a sampler yields after each move, so that pictures, diagnosis and early stopping read the same run."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeGuard

from torch import Tensor


class ScoreModel(Protocol):
    """What a sampler needs of a model: its score, and its energy where there is one."""

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−∇E: (B, C, H, W), (B,) -> (B, C, H, W)."""


class EnergyModel(ScoreModel, Protocol):
    """A model whose score is the gradient of an energy that can be read."""

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


@dataclass(frozen=True, kw_only=True)
class Step:
    """One move of a sampler, x_new = x_old + drift + noise_size · n (then clamped or accepted where asked)."""

    x: Tensor  # (B, C, H, W), after the move
    index: int  # of this move, from 0
    total: int  # moves in the whole run
    sigma: float  # the noise level at which the score was read
    lies_at: float  # the noise level at which x lies after the move
    drift: Tensor  # (B, C, H, W), the deterministic part of the move
    noise_size: float  # standard deviation of the noise added
    step_size: float | None = None  # a in drift = a · score, where the sampler has one
    acceptance: Tensor | None = None  # (B,) probability with which the move was accepted, Metropolis only
