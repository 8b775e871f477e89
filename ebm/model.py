"""What a model must provide: a score and, where it has one, an energy; and how one noise level is given to a whole batch."""
from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from ebm.accepted import positive


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


def levels_of(x: Tensor, sigma: Tensor | float) -> Tensor:
    """The noise level of each image of x, (B,), given one for each or one for all, as a number or a tensor without dimensions.

    Raises ValueError for images that are not floating point (B, C, H, W), for levels of another shape or type, and for a
    number that is not positive. The values in tensors are not checked, as that would wait for the device.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x: {x.dtype} {tuple(x.shape)} is not accepted; images are floating point "
                         "(B, C, H, W), about [-1, 1]")
    if not isinstance(sigma, Tensor):
        positive(sigma=sigma)
        return sigma_of(x, sigma=sigma)
    if sigma.dim() == 0:
        return sigma.to(x).expand(len(x))
    if sigma.shape != x.shape[:1] or not sigma.is_floating_point():
        raise ValueError(f"sigma: {sigma.dtype} {tuple(sigma.shape)} is not accepted; it must be a number, or floating point "
                         f"({len(x)},), one for each image")
    return sigma


def per_image(values: Tensor) -> Tensor:
    """One number for each image, (B,), shaped to broadcast over images: (B, 1, 1, 1)."""
    return values[:, None, None, None]
