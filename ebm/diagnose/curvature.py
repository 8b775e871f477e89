"""Curvature of an energy where a sampler walks, by Lanczos on Hessian–vector products."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm.model import ScoreModel, has_energy, sigma_of

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Eigenvalues of −∂s/∂x at one level: the Hessian of E or, for a score without an energy, its Jacobian's symmetric part."""

    sigma: float
    largest: float  # L, the greatest over all images: moves x + a s are stable below a = 2/L
    smallest: float  # the least over all images; negative between modes
    mean: float  # trace/D, averaged over the images: how fast a typical direction relaxes
    asymmetry: float  # ‖(J − Jᵀ)v‖/‖(J + Jᵀ)v‖, 0 for an energy


def curvature(model: ScoreModel, x: Tensor, *, sigma: float, iterations: int, generator: torch.Generator) -> Curvature:
    """Curvature at x, (B, C, H, W), at the level ``sigma``, from one score and ``iterations`` backward passes (Lanczos 1950).

    Raises FloatingPointError where the score or its derivative is not finite.
    """
    product, asymmetry = _product(model, x, sigma=sigma)
    start = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    diagonal, side = _lanczos(product, start, iterations=min(iterations, x[0].numel()))
    if not (diagonal.isfinite().all() and side.isfinite().all()):
        raise FloatingPointError("curvature: the score's derivative is not finite")
    ritz = torch.linalg.eigvalsh(torch.diag_embed(diagonal) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1))
    return Curvature(sigma=sigma, largest=float(ritz[:, -1].max()), smallest=float(ritz[:, 0].min()),
                     mean=float(diagonal[:, 0].mean()), asymmetry=asymmetry(start))


def _product(model: ScoreModel, x: Tensor, *, sigma: float) -> tuple[Product, Callable[[Tensor], float]]:
    """v -> Hv, with each image's own H, and a measure of the asymmetry along a vector."""
    symmetric = has_energy(model)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        score = model.score(leaf, sigma_of(x, sigma=sigma))
        dummy = torch.zeros_like(score, requires_grad=True)
        back = None if symmetric else torch.autograd.grad(score, leaf, dummy, create_graph=True)[0]  # linear in the dummy

    def transposed(v: Tensor) -> Tensor:
        return -torch.autograd.grad(score, leaf, v, retain_graph=True)[0]

    def direct(v: Tensor) -> Tensor:
        assert back is not None
        return -torch.autograd.grad(back, dummy, v, retain_graph=True)[0]

    def both(v: Tensor) -> Tensor:
        return (transposed(v) + direct(v)) / 2

    def asymmetry(v: Tensor) -> float:
        return 0.0 if symmetric else float((direct(v) - transposed(v)).norm() / (2 * both(v).norm()))

    return transposed if symmetric else both, asymmetry


def _lanczos(product: Product, start: Tensor, *, iterations: int) -> tuple[Tensor, Tensor]:
    """Diagonal (B, k) and off-diagonal (B, k − 1) of each image's tridiagonal matrix, in float64."""
    shape, flat = start.shape, start.flatten(1).double()
    v = flat / flat.norm(dim=1, keepdim=True)
    basis = [v]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    for step in range(iterations):
        w = product(v.view(shape).to(start.dtype)).flatten(1).double()
        alpha = (v * w).sum(1)
        if step:  # once an invariant subspace is exhausted, repeat a value inside the spectrum and couple nothing to it
            alpha = torch.where(off_diagonal[-1] > 0, alpha, diagonal[0])
        diagonal.append(alpha)
        if step == iterations - 1:
            break
        previous = torch.stack(basis, 2)  # (B, D, k)
        for _ in range(2):  # orthogonalised against all previous vectors, twice for the last digits
            w = w - (previous @ (previous.transpose(1, 2) @ w[:, :, None]))[:, :, 0]
        beta = w.norm(dim=1)
        alive = beta > 1e-5 * diagonal[0].abs()
        off_diagonal.append(torch.where(alive, beta, 0.0))
        v = torch.where(alive[:, None], w / beta.clamp(min=1e-300)[:, None], 0.0)
        basis.append(v)
    side = torch.stack(off_diagonal, 1) if off_diagonal else start.new_zeros(len(start), 0, dtype=torch.float64)
    return torch.stack(diagonal, 1), side
