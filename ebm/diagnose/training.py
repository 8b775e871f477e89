"""Faults of a run that lie outside its samplers: data, averages, precision, and a loss that falls without guiding anything."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ebm.diagnose.calibration import Calibration
from ebm.diagnose.facts import Finding
from ebm.diagnose.reference import Reference


def data_range(images: Tensor) -> Finding | None:
    """Images (N, C, H, W) that lie in [0, 1] or [0, 255], not in [-1, 1]."""
    low, high = float(images.min()), float(images.max())
    if (low >= -0.01 and high > 0.05) or high > 16:
        seen = "[0, 1]" if high <= 16 else "[0, 255]"
        return Finding(name="data range", numbers={"least": low, "greatest": high},
                       words=f"pixels range from {low:.3g} to {high:.3g}, which looks like {seen}; models here expect [-1, 1]")
    return None


def sample_range(samples: Tensor, reference: Reference) -> Finding | None:
    """Clean samples (B, C, H, W) in [0, 1] whose statistics match the data's once they are rescaled to [-1, 1]."""
    if not bool(samples.isfinite().all()) or float((samples < -0.1).float().mean()) > 0.01:
        return None
    distance, rescaled = (reference.distance(x, sigma=0.0) for x in (samples, 2 * samples - 1))
    if rescaled > 0.5 * distance or distance < 0.3:
        return None
    return Finding(name="data range", numbers={"distance": distance, "distance_rescaled": rescaled}, words=(
        f"the samples look like images in [0, 1]: rescaled to [-1, 1], their distance from the data falls from {distance:.2g} "
        f"to {rescaled:.2g}"))


def spread(reference: Reference, *, sigma_data: float) -> Finding | None:
    """A model whose ``sigma_data`` differs from the pixels' standard deviation by more than a factor of 1.6."""
    actual = reference.scatter**0.5
    if 1 / 1.6 <= sigma_data / max(actual, 1e-12) <= 1.6:
        return None
    return Finding(name="data range", numbers={"sigma_data": sigma_data, "standard_deviation": actual}, words=(
        f"the model assumes pixels of standard deviation {sigma_data:.3g}, but the images have {actual:.3g}: "
        f"train with data.sigma_data={actual:.3g}"))


def short_average(decay: Callable[[int, int], float], *, step: int, batch: int) -> Finding | None:
    """An average of weights over less than 1 % of the training so far: EDM2 finds 5 to 25 % best
    (Karras et al. 2024, figure 5). ``decay(step, batch)`` is the share of the average that a step keeps."""
    length = 1 / max(1e-12, 1 - decay(step, batch)) if step else 0.0
    if step < 100 or length >= 0.01 * step:
        return None
    return Finding(name="average too short", numbers={"steps": length, "of_steps": step}, words=(
        f"the weight average reaches back only {length:.3g} of {step} steps, so it is still as noisy as single steps; "
        "average=power always covers a fixed share of the training"))


def rounding_floor(calibrations: Sequence[Calibration]) -> Finding | None:
    """Levels at which mixed precision rounds away the score."""
    lost = [c for c in calibrations if c.rounded]
    if not lost:
        return None
    worst = max(lost, key=lambda c: c.sigma)
    return Finding(name="precision floor", numbers={"sigma": worst.sigma, "rounding": worst.rounding}, words=(
        f"up to σ = {worst.sigma:.3g} the rounding error of mixed precision is {worst.rounding:.0%} of the score; "
        "sample with precision=fp32"))


USEFUL = 0.02  # the least gain over a Gaussian with which a score guides a sampler


def unguided(losses: Sequence[float], gains: Sequence[float]) -> str | None:
    """A warning where the loss has fallen by a tenth or more, yet the best of the ``gains`` over a Gaussian at the trained
    levels shows that nothing useful was learnt; None where all is well."""
    if len(losses) < 2 or not gains or losses[-1] > 0.9 * losses[0] or max(gains) >= USEFUL:
        return None
    return (f"the loss fell from {losses[0]:.3g} to {losses[-1]:.3g}, but at no trained level does the score beat an isotropic "
            f"Gaussian (best gain {max(gains):+.1%}), so it cannot guide a sampler; a larger network, a higher learning rate "
            "or other noise levels may help")
