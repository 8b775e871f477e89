"""A law that is known exactly in the place of a trained run, so that metrics can be held to the truth."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from exact import Gaussian
from omegaconf import OmegaConf
from torch import Tensor, nn

from ebm.data import Dataset
from ebm.data.beton import write_beton
from ebm.nets.derivatives import input_gradient
from ebm.precision import Precision
from ebm.train.distributed import World
from launch.drawing.pipeline import Pipeline
from launch.metrics.evaluation import Work

SIZE, MEAN, STD = 8, 0.1, 0.25
CPU = torch.device("cpu")


class Score(nn.Module):
    """The score of images with independent pixels N(0.1, 0.25²), read from a network that hands on what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.sigma_data = nn.Identity(), STD
        self.law = Gaussian(mean=torch.full((3, SIZE, SIZE), MEAN), std=torch.full((3, SIZE, SIZE), STD))

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W)."""
        return self.law.score(self.network(x), sigma)


class Energy(Score):
    """The energy of the same law, whose score is taken through the network as a trained energy's is."""

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B,)."""
        return self.law.energy(self.network(x), sigma)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W)."""
        return -input_gradient(lambda y: self.energy(y, sigma).sum(), x)


def dataset(path: Path, *, count: int, seed: int) -> Dataset:
    """Images drawn from the law, as a file."""
    draws = MEAN + STD * torch.randn(count, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed))
    pixels = ((draws + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    write_beton(path, iter(np.ascontiguousarray(pixels)), source=f"gaussian {seed}", count=count, progress=False)
    return Dataset.open(path)


def work(folder: Path, model: Any, *, sampler: Any = None, train: int = 400, held_out: int = 200, batch: int = 50) -> Work:
    """What a metric is called with, for the law in the place of a trained run."""
    pipeline = Pipeline(model=model, sampler=sampler, shape=(3, SIZE, SIZE), seed=0, precision=Precision(name="fp32"),
                        device=CPU, checkpoint="none")
    config = {"schedule": {"_target_": "ebm.schedule.LogUniform", "sigma_min": 0.01, "sigma_max": 10.0}}
    return Work(pipeline=pipeline, world=World(rank=0, size=1, device=CPU), run_config=OmegaConf.create(config), n=20,
                batch=batch, cfg=OmegaConf.create({"out": str(folder / "out"), "samples": str(folder / "samples"), "ema": 0}),
                train=dataset(folder / "train.beton", count=train, seed=1),
                held_out=dataset(folder / "test.beton", count=held_out, seed=2))
