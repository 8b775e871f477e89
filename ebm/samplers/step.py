"""What a sampler yields after each move, so that pictures, diagnosis and early stopping read the same run."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """One move of a sampler, x_new = x_old + drift + noise_size · n (then clamped or accepted where asked)."""

    x: Tensor  # (B, C, H, W), after the move
    index: int  # of this move, from 0
    total: int  # moves in the whole run
    sigma: float  # the noise level at which the score was read
    sigma_after: float  # the noise level at which x lies after the move
    drift: Tensor  # (B, C, H, W), the deterministic part of the move
    noise_size: float  # standard deviation of the noise added
    step_size: float | None = None  # a in drift = a · score, where the sampler has one
    acceptance: Tensor | None = None  # (B,) probability with which the move was accepted, Metropolis only
