"""Random streams: every draw in the project takes a generator, and every generator is made here from a key."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*key: int | str) -> int:
    """Seed in [0, 2^63) for a key such as ``(seed, "noise", step)``; equal keys give equal seeds everywhere."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Generator on ``device`` whose stream depends on the key alone, so that no random state is ever saved."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def image_generators(device: torch.device | str, seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator for each sample index: sample i is the same whatever batch or process draws it."""
    return [generator(device, seed, "sample", index) for index in indices]


def normal_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of x's shape, (B, ...), image i drawn from ``generators[i]``."""
    return torch.stack([torch.randn(x.shape[1:], generator=g, device=x.device, dtype=x.dtype) for g in generators])


def uniform(generators: Sequence[torch.Generator], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """One uniform number in [0, 1) for each generator, (B,), on the generators' device."""
    return torch.cat([torch.rand(1, generator=g, device=g.device, dtype=dtype) for g in generators])
