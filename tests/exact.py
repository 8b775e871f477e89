"""Laws whose noised energy, score and flow are known exactly: the truths that the tests hold other code against."""
from __future__ import annotations

import math

import torch
from torch import Tensor


class Gaussian:
    """Images with independent pixels N(mean, std²), each of (C, H, W); at level σ the variance is std² + σ²."""

    def __init__(self, *, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−log p(x; σ) with its normalisation, (B, C, H, W), (B,) -> (B,)."""
        variance = self._variance(x, sigma)
        terms = (x - self.mean.to(x)) ** 2 / variance + (2 * math.pi * variance).log()
        return 0.5 * terms.flatten(1).sum(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ log p(x; σ), (B, C, H, W), (B,) -> (B, C, H, W)."""
        return (self.mean.to(x) - x) / self._variance(x, sigma)

    def flow(self, x: Tensor, *, start: float, end: float) -> Tensor:
        """Where the probability-flow ODE takes x from σ = ``start`` to σ = ``end``: each pixel keeps its quantile."""
        mean, variance = self.mean.to(x), self.std.to(x) ** 2
        return mean + (x - mean) * ((variance + end**2) / (variance + start**2)).sqrt()

    def sample(self, count: int, *, sigma: float, generator: torch.Generator) -> Tensor:
        """Draws at level σ, (count, C, H, W)."""
        n = torch.randn(count, *self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + (self.std**2 + sigma**2).sqrt() * n

    def _variance(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.std.to(x) ** 2 + sigma.to(x).view(-1, 1, 1, 1) ** 2  # (B, C, H, W)


class GaussianMixture:
    """Images N(mean_k, std_k²) with probability weight_k: means (K, C, H, W), stds and weights (K,)."""

    def __init__(self, *, means: Tensor, stds: Tensor, weights: Tensor) -> None:
        self.means, self.stds, self.weights = means, stds, weights / weights.sum()

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−log p(x; σ) with its normalisation, (B, C, H, W), (B,) -> (B,)."""
        return -self._log_joint(x, sigma).logsumexp(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ log p(x; σ), (B, C, H, W), (B,) -> (B, C, H, W)."""
        pull = self.shares(x, sigma) / self._variances(x, sigma)  # (B, K)
        return torch.einsum("bk,bkchw->bchw", pull, self.means.to(x) - x[:, None])

    def sample(self, count: int, *, sigma: float, generator: torch.Generator) -> Tensor:
        """Draws at level σ, (count, C, H, W)."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        n = torch.randn(count, *self.means.shape[1:], generator=generator, dtype=self.means.dtype)
        return self.means[k] + (self.stds[k] ** 2 + sigma**2).sqrt().view(-1, 1, 1, 1) * n

    def shares(self, x: Tensor, sigma: Tensor) -> Tensor:
        """p(component | x; σ), (B, C, H, W), (B,) -> (B, K); over the law at σ their mean is the weights."""
        return self._log_joint(x, sigma).softmax(1)

    def component(self, x: Tensor) -> Tensor:
        """The component with the nearest mean, (B, C, H, W) -> (B,)."""
        return (self.means.to(x) - x[:, None]).flatten(2).norm(dim=2).argmin(1)

    def _variances(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.stds.to(x) ** 2 + sigma.to(x)[:, None] ** 2  # (B, K)

    def _log_joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log(weight_k p_k(x; σ)), (B, K)."""
        variances, dimensions = self._variances(x, sigma), x[0].numel()
        squares = (self.means.to(x) - x[:, None]).flatten(2).pow(2).sum(2)
        return self.weights.to(x).log() - 0.5 * (squares / variances + dimensions * (2 * math.pi * variances).log())
