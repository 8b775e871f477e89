"""The benefit of the Metropolis test: acceptance at each noise level, and the gain in distance to the data."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm.diagnose.reference import Reference
from ebm.samplers.step import Step


@dataclass(frozen=True, kw_only=True)
class SamplerResult:
    """The final state of a sampler and its acceptance at each level."""

    x: Tensor  # (B, C, H, W)
    levels: tuple[float, ...]  # at which moves were tested; empty for an unadjusted sampler
    acceptance: Tensor  # (B, levels) acceptance probability, mean over the moves of a level, float64


def run_to_end(steps: Iterator[Step]) -> SamplerResult:
    """Runs a sampler to its end; raises ValueError where it takes no step."""
    totals: dict[float, Tensor] = {}
    counts: dict[float, int] = {}
    step = None
    for step in steps:
        if step.acceptance is not None:
            totals[step.sigma] = totals.get(step.sigma, 0) + step.acceptance.double()
            counts[step.sigma] = counts.get(step.sigma, 0) + 1
    if step is None:
        raise ValueError("sampler: it took no step")
    means = [total / counts[sigma] for sigma, total in totals.items()]
    acceptance = torch.stack(means, 1) if means else step.x.new_zeros(len(step.x), 0, dtype=torch.float64)
    return SamplerResult(x=step.x, levels=tuple(totals), acceptance=acceptance)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its standard error."""

    value: float
    stderr: float


def gains(
    reference: Reference, adjusted: Tensor, unadjusted: Mapping[str, Tensor], *, sigma: float, groups: int
) -> dict[str, Estimate]:
    """How much closer ``adjusted`` images (B, C, H, W) are to the data noised at ``sigma`` than each of ``unadjusted``, as
    "gain <name>", with the distances themselves, "adjusted" and "<name>".

    Distances are those of `Reference.distance`, relative to the width of the data. For a Gaussian of curvature λ in every
    direction, unadjusted moves of size a have the variance 1/(λ (1 − aλ/2)), so that the gain is (1 − aλ/2)^−½ − 1.
    Standard errors are jackknifed over ``groups`` of images, the same for all samplers.
    """
    images = {"adjusted": adjusted, **unadjusted}

    def measured(kept: Tensor) -> Tensor:
        apart = {name: reference.distance(x[kept], sigma=sigma) for name, x in images.items()}
        return torch.tensor([*apart.values(), *(apart[name] - apart["adjusted"] for name in unadjusted)], dtype=torch.float64)

    value, stderr = jackknife(measured, count=len(adjusted), groups=groups)
    names = [*images, *(f"gain {name}" for name in unadjusted)]
    return {name: Estimate(value=float(v), stderr=float(e)) for name, v, e in zip(names, value, stderr, strict=True)}


def jackknife(statistic: Callable[[Tensor], Tensor], *, count: int, groups: int) -> tuple[Tensor, Tensor]:
    """``statistic`` of the indices 0 … ``count`` − 1 and its standard errors by the grouped jackknife (Tukey 1958); raises
    ValueError unless there are 2 to ``count`` groups."""
    if not 2 <= groups <= count:
        raise ValueError(f"groups: {groups!r} is not accepted; it must be 2 to {count}, the number of images")
    every = torch.arange(count)
    left = torch.stack([statistic(every[every % groups != group]) for group in range(groups)])
    return statistic(every), ((groups - 1) * (left - left.mean(0)).square().mean(0)).sqrt()
