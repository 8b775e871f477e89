"""Moving averages of a model's parameters: what is sampled and evaluated."""
from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ebm.accepted import positive


class Averaging(ABC):
    """A rule for the share of the old average that a step keeps."""

    @abstractmethod
    def decay(self, step: int, batch: int) -> float:
        """Share kept after step ``step`` (from 1) of ``batch`` images, in [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class PowerFunction(Averaging):
    """Weight ∝ t^γ, of relative width ``sigma_rel`` (EDM2, Karras et al. 2024, section 3.1), whatever the training's length."""

    sigma_rel: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel < 0.28:
            raise ValueError(f"sigma_rel: {self.sigma_rel!r} is not accepted; it must lie between 0 and 0.28")

    @cached_property
    def gamma(self) -> float:
        """The exponent γ that gives this width: σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3))."""
        inverse = self.sigma_rel**-2
        return max(float(root.real) for root in np.roots([1, 7, 16 - inverse, 12 - inverse]))

    def decay(self, step: int, batch: int) -> float:
        return float((1 - 1 / step) ** (self.gamma + 1))


@dataclass(frozen=True, kw_only=True)
class Halflife(Averaging):
    """Exponential with a half-life of ``images`` images, at first the share ``rampup`` of those seen so far, if that is shorter
    (EDM, Karras et al. 2022, table 7)."""

    images: float
    rampup: float

    def __post_init__(self) -> None:
        positive(images=self.images, rampup=self.rampup)

    def decay(self, step: int, batch: int) -> float:
        return float(0.5 ** (batch / min(self.images, self.rampup * step * batch)))


class Average:
    """A copy of a model whose parameters follow the model's as ``rule`` says; its buffers are copies of the model's."""

    def __init__(self, model: nn.Module, rule: Averaging) -> None:
        self.rule = rule
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int, batch: int) -> None:
        """Moves the average towards the model after step ``step`` (from 1)."""
        averaged: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, list(model.parameters()), 1 - self.rule.decay(step, batch))
        for buffer, current in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(current)

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """‖θ − average‖ / ‖θ‖: how far the average lags behind the model's parameters θ."""
        current: list[Tensor] = list(model.parameters())
        averaged: list[Tensor] = list(self.model.parameters())
        difference = torch._foreach_sub(current, averaged)
        apart, size = (torch.stack([*torch._foreach_norm(tensors)]).norm() for tensors in (difference, current))
        return float(apart / size)
