"""Conditional sampling from linear measurements. A is represented by the projector P = A⁺A, the observation by A⁺y."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ebm.model import ScoreModel, with_energy
from ebm.randomness import normal_like


class Measurement(Protocol):
    """A linear measurement of an image."""

    def project(self, x: Tensor) -> Tensor:
        """P x, the measured part of x: (B, C, H, W) -> (B, C, H, W), where P = Pᵀ = P²."""


@dataclass(frozen=True, kw_only=True)
class KnownPixels:
    """Some pixels are measured: ``known`` (H, W) is 1 there and 0 elsewhere."""

    known: Tensor

    def project(self, x: Tensor) -> Tensor:
        return x * self.known.to(x)


@dataclass(frozen=True, kw_only=True)
class ChannelMean:
    """The mean over channels is measured: a grey image."""

    def project(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


@dataclass(frozen=True, kw_only=True)
class BlockMean:
    """The means over blocks of ``factor`` × ``factor`` pixels are measured; ``factor`` must divide height and width."""

    factor: int

    def project(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor).repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Constraint(Protocol):
    """A method that conditions a model on observations."""

    def __call__(self, *, model: ScoreModel, measurement: Measurement, observed: Tensor,
                 generators: Sequence[torch.Generator]) -> ScoreModel:
        """The conditioned model for a batch with observations P x₀, ``observed`` (B, C, H, W), and one generator per image."""


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Replaces the measured part of the denoised image by the observation o: D'(x, σ) = D + P(o − D), s' = (D' − x)/σ².

    The null-space method of Wang et al. 2022 (DDNM, arXiv 2212.00490): one score per call, for any sampler. D depends on
    the observation only through x, so that it is exact with Langevin moves as σ → 0, and biased where x does not
    equilibrate at each level.
    """

    model: ScoreModel
    measurement: Measurement
    observed: Tensor
    generators: Sequence[torch.Generator] = field(repr=False)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """s' = (1 − P) s + P (o − x)/σ²: (B, C, H, W), (B,) -> (B, C, H, W)."""
        score, project = self.model.score(x, sigma), self.measurement.project
        return score - project(score) + project(self.observed - x) / sigma_squared(sigma)


class Frozen:
    """A conditional energy: E'(x, σ) = E(x̂, σ) + ‖P(x − o)‖²/(2σ²), where the measured part of x̂ is o + σ P n.

    The noise n is drawn once per image, so that the model's input is distributed as in training and s' = −∇E' is the
    gradient of an energy, which the Metropolis test needs. Given n, the unmeasured part follows p_σ(· | o + σ P n), as in the
    replacement method (Song et al. 2021, arXiv 2011.13456, appendix I.2); as σ → 0 this is the conditional distribution.
    Raises ValueError for a model without an energy.
    """

    def __init__(self, *, model: ScoreModel, measurement: Measurement, observed: Tensor,
                 generators: Sequence[torch.Generator]) -> None:
        self.model, self.project, self.observed = with_energy(model, what="this constraint"), measurement.project, observed
        self.noise = self.project(normal_like(observed, generators))

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−∇E': (B, C, H, W), (B,) -> (B, C, H, W)."""
        score = self.model.score(self._seen(x, sigma), sigma)
        return score - self.project(score) + self.project(self.observed - x) / sigma_squared(sigma)

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E': (B, C, H, W), (B,) -> (B,)."""
        rest = self.project(x - self.observed).square().flatten(1).sum(1) / (2 * sigma**2)
        return self.model.energy(self._seen(x, sigma), sigma) + rest

    def _seen(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x - self.project(x) + self.observed + sigma.view(-1, 1, 1, 1) * self.noise


class Matched:
    """Approximates p(x₀ | x) by the Gaussian with its mean and covariance, and conditions that on o.

    D' = D + V P (P V P + (τ² + ``ridge`` σ²) P)⁻¹ P (o − D) with D = x + σ² s and V = Cov(x₀ | x) = σ² (1 + σ² ∂s/∂x)
    (moment matching: Boys et al. 2023, arXiv 2310.06721; by conjugate gradients: Rozet et al. 2024, arXiv 2405.13712).
    Exact at every σ for Gaussian data, with any sampler. ``noise`` τ is the standard deviation of the noise in P x; at 0 the
    measured part of D' is o. Each score takes ``iterations`` products with V, which require an energy, as its ∂s/∂x is
    symmetric. Raises ValueError for a model without an energy and for unusable numbers.
    """

    def __init__(self, *, model: ScoreModel, measurement: Measurement, observed: Tensor, noise: float, iterations: int,
                 ridge: float, generators: Sequence[torch.Generator]) -> None:
        if iterations < 0:
            raise ValueError(f"iterations: {iterations!r} is not accepted; it must be a whole number of at least 0")
        for name, value in {"noise": noise, "ridge": ridge}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: {value!r} is not accepted; it must be a number of at least 0")
        self.model, self.project, self.observed = with_energy(model, what="this constraint"), measurement.project, observed
        self.noise, self.iterations, self.ridge = noise, iterations, ridge

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(D' − x)/σ²: (B, C, H, W), (B,) -> (B, C, H, W)."""
        square = sigma_squared(sigma)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = self.model.score(x, sigma)

        def spread(v: Tensor) -> Tensor:
            """V v / σ²."""
            product, = torch.autograd.grad(score, x, v, retain_graph=True)
            return v + square * product

        denoised = (x + square * score).detach()
        # Conjugate gradients for z in P V P z/σ² + λ z = P (o − D), each image by itself; `moved` is V z/σ².
        ridge = self.ridge + self.noise**2 / square
        residual = self.project(self.observed - denoised)
        direction, moved, size = residual, torch.zeros_like(residual), inner_product(residual, residual)
        for _ in range(self.iterations):
            product = spread(direction)
            image = self.project(product) + ridge * direction
            curvature = inner_product(direction, image)
            going = (curvature > 0) & (size > 0)  # the V of a trained energy may have negative eigenvalues
            step = torch.where(going, size / curvature.where(going, 1), 0)
            moved, residual = moved + step * product, residual - step * image
            after = inner_product(residual, residual)
            direction = residual + torch.where(going, after / size.where(going, 1), 0) * direction
            size = torch.where(going, after, 0)
        denoised = denoised + moved
        if self.noise == 0:  # the residual of few iterations
            denoised = denoised + self.project(self.observed - denoised)
        return (denoised - x.detach()) / square


def alternating_projections(x: Tensor, measurement: Measurement, observed: Tensor) -> Tensor:
    """x projected onto the images that agree with the observation and lie in [-1, 1], (B, C, H, W).

    Projects on the two convex sets in turn: known pixels need one step, means of pixels that are clipped need more.
    """
    for _ in range(50):
        x = x.clamp(-1, 1)
        x = x - measurement.project(x) + observed
    return x


def sigma_squared(sigma: Tensor) -> Tensor:
    """σ², (B,) -> (B, 1, 1, 1)."""
    return sigma.square().view(-1, 1, 1, 1)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ for each image: (B, C, H, W) twice -> (B, 1, 1, 1)."""
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)
