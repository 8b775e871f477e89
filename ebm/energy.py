"""The energy E(x, σ) of an image and its score −∇E, and the same network as a direct score for comparison."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebm.accepted import positive
from ebm.model import levels_of, per_image
from ebm.nets.derivatives import input_gradient, joint_gradient

Head = Callable[[Tensor, Tensor], Tensor]


def pooled(y: Tensor, f: Tensor) -> Tensor:
    """φ = Σ f: the network's outputs (B, C', H', W') added up, (B,)."""
    return f.flatten(1).sum(1)


def inner_product(y: Tensor, f: Tensor) -> Tensor:
    """φ = ½⟨y, f⟩: (B, C, H, W) twice -> (B,); a network trained as a score is a warm start for it."""
    return 0.5 * (y * f).flatten(1).sum(1)


def squared_residual(y: Tensor, f: Tensor) -> Tensor:
    """φ = ½‖y‖² − ½‖y − f‖²: (B, C, H, W) twice -> (B,); zero where f is, so that training starts at the Gaussian."""
    return (y * f - 0.5 * f.square()).flatten(1).sum(1)


class Preconditioned(nn.Module):
    """A network on inputs and targets of unit variance at every σ (EDM, Karras et al. 2022, table 1).

    ``network(y, c_noise)`` takes y = c_in x of shape (B, C, H, W) and c_noise = ln σ / 4 of shape (B,).
    Raises ValueError unless ``sigma_data``, the pixels' standard deviation, is positive.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float) -> None:
        super().__init__()
        positive(sigma_data=sigma_data)
        self.network = network
        self.sigma_data = sigma_data

    def features(self, y: Tensor, sigma: Tensor) -> Tensor:
        """The raw network's outputs at σ, in y's precision: what heads build on leaves mixed precision here."""
        output: Tensor = self.network(y, sigma.log() / 4)
        return output.to(y.dtype)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The score ∇ log p(x; σ) of the noised data, (B, C, H, W), (B,) -> (B, C, H, W); errors as `levels_of`."""
        raise NotImplementedError

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(σ² + σ_data²), (B,) -> (B, 1, 1, 1)."""
        return per_image((sigma.square() + self.sigma_data**2).rsqrt())

    def score_from(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        """The score −c_in² x + (σ_data/σ) c_in F, where ``output`` F (B, C, H, W) estimates (x₀ − c_skip x)/c_out."""
        c_in = self.c_in(sigma)
        return -(c_in.square()) * x + per_image(self.sigma_data / sigma) * c_in * output


class Energy(Preconditioned):
    """E(x, σ) = ‖x‖² / (2(σ² + σ_data²)) − (σ_data/σ) φ(c_in x; ln σ/4), whose score is EDM's with F = ∇φ.

    φ is made from the network's output by ``head``: see `pooled`, `inner_product` and `squared_residual`.
    E is known up to a function of σ alone, and where its slope in σ was trained too, up to a constant. Lower is likelier.
    Methods take σ as (B,), or as a number for all images, and raise ValueError as `levels_of` does.
    """

    def __init__(self, network: nn.Module, head: Head, *, sigma_data: float) -> None:
        super().__init__(network, sigma_data=sigma_data)
        self.head = head

    def potential(self, y: Tensor, sigma: Tensor) -> Tensor:
        """φ(y; ln σ/4): (B, C, H, W), (B,) -> (B,)."""
        return self.head(y, self.features(y, sigma))

    def energy(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E(x, σ): (B, C, H, W), (B,) -> (B,), in x's precision: what is read from energies are their small differences."""
        levels = levels_of(x, sigma)
        with torch.autocast(x.device.type, enabled=False):
            c_in = self.c_in(levels)
            gaussian = 0.5 * (c_in * x).square().flatten(1).sum(1)
            return gaussian - self.sigma_data / levels * self.potential(c_in * x, levels)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """−∇E(x, σ), of x's shape; differentiable, and available under ``no_grad`` (not under ``inference_mode``)."""
        levels = levels_of(x, sigma)
        gradient = input_gradient(lambda y: self.potential(y, levels).sum(), self.c_in(levels) * x)
        return self.score_from(x, levels, gradient)

    def normalised(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Ē(x, σ) = E(x, σ) + ½ d ln 2π(σ² + σ_data²), (B,), in nats: −log p(x; σ) up to one constant, where the slope was
        trained, and exactly for N(0, σ_data²) and φ = 0."""
        levels = levels_of(x, sigma)
        variance = levels.square() + self.sigma_data**2
        return self.energy(x, levels) + 0.5 * x[0].numel() * (2 * math.pi * variance).log()

    def score_and_slope(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """−∇E, of x's shape, and ∂Ē/∂ln σ, (B,), from one backward pass; differentiable, and available under ``no_grad``."""
        levels = levels_of(x, sigma)
        c_in = self.c_in(levels)
        y = c_in * x
        phi, gradient, along_sigma = joint_gradient(self.potential, y, levels)
        share = (levels * c_in.flatten()).square()  # σ²/(σ² + σ_data²): how y shrinks as σ grows, −∂ln c_in/∂ln σ
        gaussian = share * (1 - y.square()).flatten(1).sum(1)
        network = self.sigma_data / levels * (phi + share * (gradient * y).flatten(1).sum(1) - levels * along_sigma)
        return self.score_from(x, levels, gradient), gaussian + network

    def forward(self, x: Tensor, sigma: Tensor | float, slope: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The score, or `score_and_slope`: DistributedDataParallel synchronises only what goes through forward."""
        return self.score_and_slope(x, sigma) if slope else self.score(x, sigma)


class DirectScore(Preconditioned):
    """The control: the same network and preconditioning, F = f, so that there is a score but no energy behind it."""

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The network's estimate of −∇E, (B, C, H, W), (B,) -> (B, C, H, W); σ and errors as for an energy."""
        levels = levels_of(x, sigma)
        return self.score_from(x, levels, self.features(self.c_in(levels) * x, levels))

    forward = score


def check_shapes(model: Preconditioned, shape: tuple[int, int, int]) -> None:
    """Raises ValueError where model and images of ``shape`` (C, H, W) don't fit together, without computing anything."""
    y = torch.zeros(1, *shape, device="meta")
    try:
        f = on_meta(model.network)(y, y[:, 0, 0, 0])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"model: its network doesn't take images of {shape}: {error}") from error
    if f.shape != y.shape and not (isinstance(model, Energy) and model.head is pooled):
        raise ValueError(
            f"model: its network turns images {tuple(y.shape[1:])} into {tuple(f.shape[1:])}, "
            "which only the pooled head accepts; choose head=pooled or a U-Net"
        )


def knows_sigma(model: Preconditioned, shape: tuple[int, int, int]) -> bool:
    """Whether the network's output depends on the noise level, found without computing anything."""
    y = torch.zeros(1, *shape, device="meta")
    c_noise = torch.zeros(1, device="meta", requires_grad=True)
    with torch.enable_grad():
        f = on_meta(model.network).requires_grad_(False)(y, c_noise)
    return bool(f.requires_grad)


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of the network that computes shapes alone, in float32 on the meta device."""
    return copy.deepcopy(network).to("meta", torch.float32)
