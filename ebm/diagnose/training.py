"""What a failing run shows outside its samplers: data, averages, precision, and a loss that says too much."""
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
                       words=f"the images lie from {low:.3g} to {high:.3g}, which looks like {seen}; models here take [-1, 1]")
    return None


def sample_range(samples: Tensor, reference: Reference) -> Finding | None:
    """Clean samples (B, C, H, W) in [0, 1] whose statistics become the data's when they are stretched to [-1, 1]."""
    if not bool(samples.isfinite().all()) or float((samples < -0.1).float().mean()) > 0.01:
        return None
    here, there = (reference.distance(x, sigma=0.0) for x in (samples, 2 * samples - 1))
    if there > 0.5 * here or here < 0.3:
        return None
    return Finding(name="data range", numbers={"distance": here, "distance_rescaled": there}, words=(
        f"the samples look like images in [0, 1]: stretched to [-1, 1], their distance from the data falls from {here:.2g} "
        f"to {there:.2g}"))


def spread(reference: Reference, *, sigma_data: float) -> Finding | None:
    """A model made for pixels of another standard deviation than the data's, by a factor beyond 1.6."""
    actual = reference.scatter**0.5
    if 1 / 1.6 <= sigma_data / max(actual, 1e-12) <= 1.6:
        return None
    return Finding(name="data range", numbers={"sigma_data": sigma_data, "standard_deviation": actual}, words=(
        f"the model is made for pixels of standard deviation {sigma_data:.3g} and the images have {actual:.3g}: "
        f"train with data.sigma_data={actual:.3g}"))


def short_average(decay: Callable[[int, int], float], *, step: int, batch: int) -> Finding | None:
    """An average of weights over less than 1 % of the training so far: EDM2 finds 5 to 25 % best
    (Karras et al. 2024, figure 5). ``decay(step, batch)`` is the share kept at a step."""
    length = 1 / max(1e-12, 1 - decay(step, batch)) if step else 0.0
    if step < 100 or length >= 0.01 * step:
        return None
    return Finding(name="average too short", numbers={"steps": length, "of_steps": step}, words=(
        f"the average of weights reaches back {length:.3g} of {step} steps, so it still carries the noise of single ones; "
        "average=power covers a share of any training"))


def rounding_floor(calibrations: Sequence[Calibration]) -> Finding | None:
    """Levels at which mixed precision rounds away the score."""
    lost = [c for c in calibrations if c.rounded]
    if not lost:
        return None
    worst = max(lost, key=lambda c: c.sigma)
    return Finding(name="precision floor", numbers={"sigma": worst.sigma, "rounding": worst.rounding}, words=(
        f"up to σ = {worst.sigma:.3g} rounding in mixed precision is {worst.rounding:.0%} of the score; "
        "sample with precision=fp32"))


USEFUL = 0.02  # gain over a Gaussian from which a score guides a sampler


def unguided(losses: Sequence[float], gains: Sequence[float]) -> str | None:
    """A warning where the loss has fallen by a tenth or more, and the best of the ``gains`` over a Gaussian at the trained
    levels says that nothing useful was learnt; None where all is well."""
    if len(losses) < 2 or not gains or losses[-1] > 0.9 * losses[0] or max(gains) >= USEFUL:
        return None
    return (f"the loss fell from {losses[0]:.3g} to {losses[-1]:.3g}, but at no trained level does the score beat an isotropic "
            f"Gaussian (best gain {max(gains):+.1%}): it guides no sampler; a larger network, a higher rate or other levels "
            "may help")
