"""Log-likelihood by the probability-flow ODE (Song et al. 2021, eq. 39), for any model with a score."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm.accepted import positive
from ebm.data.quantum import QUANTUM
from ebm.model import ScoreModel, sigma_of
from ebm.randomness import generator
from ebm.schedule import LogUniform

Array = NDArray[np.float64]


def bits_per_dim(nll: Array, *, d: int) -> Array:
    """Bits per dimension of 8-bit images from negative log-densities in nats of images in [-1, 1]; any shape, d values each."""
    bits: Array = np.asarray(nll, np.float64) / (d * math.log(2)) - math.log2(QUANTUM)
    return bits


def rademacher(x: Tensor, *, probes: int, seed: int, indices: Sequence[int]) -> Tensor:
    """Random signs ±1, (probes, B, C, H, W): those of image i depend on (seed, i) alone, on every device."""
    signs = [torch.randint(0, 2, (probes, *x.shape[1:]), generator=generator("cpu", seed, "probe", i)) for i in indices]
    return (2 * torch.stack(signs, 1) - 1).to(x)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The probability-flow ODE dx/dσ = −σ s(x, σ) from ``sigma_min``, where images are assumed to lie, to ``sigma_max``.

    The prior at σ_max is N(0, σ_max² + σ_data²); its error is `prior_error`. The solver is Runge-Kutta 4(5) with absolute
    and relative ``tolerance`` and one step size for the batch, as in Song et al. 2021. Raises ValueError for unusable numbers.
    """

    sigma_min: float
    sigma_max: float
    tolerance: float

    def __post_init__(self) -> None:
        LogUniform(sigma_min=self.sigma_min, sigma_max=self.sigma_max)  # refuses what is no range
        positive(tolerance=self.tolerance)

    def nll(self, model: ScoreModel, x: Tensor, *, sigma_data: float, probes: Tensor | None) -> tuple[Array, int]:
        """−log p(x; σ_min) in nats for each of the ``probes`` (K, B, C, H, W), (B, K), and the number of score evaluations.

        Each probe v estimates the trace of the score's Jacobian J by vᵀJv (Hutchinson; Grathwohl et al. 2019, section 3.1);
        without probes the trace is exact, at d times the cost, and K = 1. Raises ValueError where the score is not finite or
        no step size is small enough.
        """
        solve = import_solver()
        batch, d = len(x), x[0].numel()
        motion = _Motion(model, x, sigma_data=sigma_data, probes=probes)
        count = 1 if probes is None else len(probes)
        v_min = self.sigma_min**2 + sigma_data**2
        start = np.concatenate([(x.double() / math.sqrt(v_min)).reshape(batch, d).cpu().numpy(), np.zeros((batch, count))], 1)
        path = solve(motion, [math.log(sigma) for sigma in (self.sigma_min, self.sigma_max)], start.reshape(-1), method="RK45",
                     rtol=self.tolerance, atol=self.tolerance)
        if not path.success:
            raise ValueError(f"tolerance: {self.tolerance} is not accepted; no step size is small enough: {path.message}")
        end = path.y[:, -1].reshape(batch, -1)
        gaussian = 0.5 * (end[:, :d] ** 2).sum(1) + 0.5 * d * math.log(2 * math.pi * v_min)  # of y, and x = y √v_min
        return gaussian[:, None] - end[:, d:], motion.count


class _Motion:
    """d/d ln σ of y = x/√(σ² + σ_data²), whose scale is the same at every σ, and of the log-determinant of the flow.

    With EDM's F = (σ/(σ_data c_in)) (s + c_in² x) it is −(σ σ_data c_in²) F: zero for a Gaussian of width σ_data, so that steps
    are spent where the data differ from that. At equal tolerance this took fewer scores than integrating x in σ or ln σ.
    """

    def __init__(self, model: ScoreModel, x: Tensor, *, sigma_data: float, probes: Tensor | None) -> None:
        self.model, self.like, self.sigma_data, self.probes, self.count = model, x, sigma_data, probes, 0

    def __call__(self, ln_sigma: float, state: Array) -> Array:
        batch, d = len(self.like), self.like[0].numel()
        y = torch.from_numpy(state.reshape(batch, -1)[:, :d]).to(self.like).reshape(self.like.shape).requires_grad_()
        with torch.enable_grad(), torch.autocast(y.device.type, enabled=False):
            motion = self.motion(y, math.exp(ln_sigma))
            trace = self.divergence(motion, y)  # (B, K)
        self.count += 1
        moved = torch.cat([motion.detach().flatten(1), trace.to(motion)], 1).double().cpu().numpy()
        if not np.isfinite(moved).all():
            raise ValueError(f"model: its score is not finite at σ = {math.exp(ln_sigma):.3g}, so there is no likelihood")
        flat: Array = moved.reshape(-1)
        return flat

    def motion(self, y: Tensor, sigma: float) -> Tensor:
        """dy/d ln σ, (B, C, H, W)."""
        root = math.sqrt(sigma**2 + self.sigma_data**2)
        score = self.model.score(root * y, sigma_of(y, sigma=sigma))
        return -(sigma**2 / root) * (score + y / root)

    def divergence(self, motion: Tensor, y: Tensor) -> Tensor:
        """The divergence of the motion: estimates (B, K), or the exact value (B, 1)."""
        if self.probes is None:
            units = torch.eye(y[0].numel(), dtype=y.dtype, device=y.device).view(-1, 1, *y.shape[1:])
            return torch.stack([self.quadratic_form(motion, y, unit.expand_as(y)) for unit in units]).sum(0)[:, None]
        return torch.stack([self.quadratic_form(motion, y, v) for v in self.probes], 1)

    def quadratic_form(self, motion: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """vᵀ(∂motion/∂y) v for each image, (B,); for the score of an energy by a Hessian-vector product."""
        product, = torch.autograd.grad(motion, y, v, retain_graph=True, materialize_grads=True)
        return (product * v).flatten(1).sum(1)


def prior_error(mean: Array, eigenvalues: Array, *, sigma_max: float, sigma_data: float) -> float:
    """KL divergence in nats from the distribution of noised images at ``sigma_max`` to the prior N(0, σ_max² + σ_data²).

    The images are taken as Gaussian, with ``mean`` (d,) and the nonzero ``eigenvalues`` of their covariance.
    """
    d, v = mean.size, sigma_max**2 + sigma_data**2
    ratio = np.concatenate([eigenvalues + sigma_max**2, np.full(d - len(eigenvalues), sigma_max**2)]) / v
    return float(0.5 * ((mean**2).sum() / v + (ratio - 1 - np.log(ratio)).sum()))


def import_solver() -> Any:
    """SciPy's ODE solver; raises ValueError where SciPy isn't installed."""
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        raise ValueError("scipy: not installed; likelihoods need pip install -e '.[evaluate]'") from None
    return solve_ivp
