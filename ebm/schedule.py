"""Noise levels: how σ is drawn in training and the grid that a sampler walks. A schedule is one quantile function."""
from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm.accepted import increasing, positive, whole


class NoiseSchedule(ABC):
    """Distribution of the noise level σ, in units of pixels in [-1, 1], given by its quantile function."""

    @abstractmethod
    def sigma(self, u: Tensor) -> Tensor:
        """Noise levels σ at the quantiles u in [0, 1], of any shape, increasing in u."""

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Noise levels of a training batch, (count,): one u in each of ``count`` equal strata, in random order."""
        device = generator.device
        place = torch.randperm(count, generator=generator, device=device)
        u = (place + torch.rand(count, generator=generator, device=device)) / count
        return self.sigma(u)

    def sigmas(self, steps: int) -> Tensor:
        """Levels that a sampler visits, (steps,), from the largest down to the smallest, float64 on the CPU.

        Raises ValueError if ``steps`` is below 1.
        """
        whole(1, steps=steps)
        return self.sigma(torch.linspace(1, 0, steps, dtype=torch.float64))

    def probes(self, count: int) -> list[float]:
        """At most ``count`` different levels, increasing, that stand for all of them where a model is measured."""
        return sorted(set(self.sigmas(count).tolist()))


@dataclass(frozen=True, kw_only=True)
class Range(NoiseSchedule):
    """A schedule between two levels; raises ValueError unless 0 < sigma_min < sigma_max."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)


@dataclass(frozen=True, kw_only=True)
class Single(NoiseSchedule):
    """One noise level for every image: denoising score matching as first written (Vincent 2011)."""

    level: float

    def __post_init__(self) -> None:
        positive(level=self.level)

    def sigma(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.level)


@dataclass(frozen=True, kw_only=True)
class Geometric(Range):
    """A ladder of levels in constant ratio, each equally likely (NCSN, Song & Ermon 2019, section 4.1)."""

    levels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(2, levels=self.levels)

    def sigma(self, u: Tensor) -> Tensor:
        rung = (u * self.levels).floor().clamp(max=self.levels - 1)
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** (rung / (self.levels - 1))

    def sigmas(self, steps: int) -> Tensor:
        """Levels in constant ratio at any number of steps; ``steps=levels`` visits the trained rungs exactly."""
        return LogUniform(sigma_min=self.sigma_min, sigma_max=self.sigma_max).sigmas(steps)


@dataclass(frozen=True, kw_only=True)
class Levels(NoiseSchedule):
    """These levels, in any order, and no others, each equally likely; raises ValueError unless they are different positive
    numbers, at least one."""

    levels: Sequence[float]

    def __post_init__(self) -> None:
        for level in self.levels:
            positive(levels=level)
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels: {self.levels!r} is not accepted; they must be different numbers, at least one")

    def sigma(self, u: Tensor) -> Tensor:
        rung = (u * len(self.levels)).long().clamp(max=len(self.levels) - 1)
        return ladder(tuple(sorted(self.levels)), u.dtype, u.device)[rung]

    def sigmas(self, steps: int) -> Tensor:
        """The levels, from the largest down to the smallest; raises ValueError unless ``steps`` is their number."""
        if steps != len(self.levels):
            raise ValueError(f"steps: {steps!r} is not accepted; each of the {len(self.levels)} listed levels is "
                             f"visited once, so it must be {len(self.levels)}")
        return torch.tensor(sorted(self.levels, reverse=True), dtype=torch.float64)

    def probes(self, count: int) -> list[float]:
        whole(1, count=count)
        return sorted(set(self.sigma(torch.linspace(1, 0, count, dtype=torch.float64)).tolist()))


@functools.lru_cache  # copying it to a GPU for every batch would wait for the device
def ladder(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The levels as a tensor, (levels,)."""
    return torch.tensor(levels, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class LogUniform(Range):
    """ln σ uniform between the two levels: the ladder's continuous limit (VE SDE, Song et al. 2021, eq. 9)."""

    def sigma(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


@dataclass(frozen=True, kw_only=True)
class LogNormal(Range):
    """ln σ normal with ``mean`` and ``std``, cut to [sigma_min, sigma_max] (EDM, Karras et al. 2022, table 1)."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(std=self.std)

    def sigma(self, u: Tensor) -> Tensor:
        low, high = (self._cdf(level) for level in (self.sigma_min, self.sigma_max))
        quantile = (low + u.double() * (high - low)).clamp(1e-12, 1 - 1e-12)  # ndtri is infinite at 0 and 1
        ln_sigma = self.mean + self.std * torch.special.ndtri(quantile)
        sigma: Tensor = ln_sigma.exp().clamp(self.sigma_min, self.sigma_max).to(u.dtype)
        return sigma

    def sigmas(self, steps: int) -> Tensor:
        """As for every schedule, with both ends exact."""
        levels = super().sigmas(steps)
        levels[-1], levels[0] = self.sigma_min, self.sigma_max  # in this order: a single step is at sigma_max
        return levels

    def _cdf(self, level: float) -> float:
        return 0.5 * (1 + math.erf((math.log(level) - self.mean) / (self.std * math.sqrt(2))))


@dataclass(frozen=True, kw_only=True)
class Karras(Range):
    """σ^(1/ρ) uniform: the grid on which EDM samples (Karras et al. 2022, eq. 5)."""

    rho: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(rho=self.rho)

    def sigma(self, u: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma: Tensor = (low + u * (high - low)) ** self.rho
        return sigma


@dataclass(frozen=True, kw_only=True)
class Cosine(Range):
    """Time uniform under the variance-preserving cosine law, as σ = tan(πt/2) (Nichol & Dhariwal 2021, eq. 17, s=0)."""

    def sigma(self, u: Tensor) -> Tensor:
        low, high = (2 / math.pi * math.atan(level) for level in (self.sigma_min, self.sigma_max))
        return torch.tan(math.pi / 2 * (low + u.double() * (high - low))).clamp(self.sigma_min, self.sigma_max).to(u.dtype)
