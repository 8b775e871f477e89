"""What is measured during training on held-out images: the loss, calibration by noise level, and energies."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm.data import Dataset
from ebm.data.quantum import dequantised
from ebm.diagnose.calibration import calibrate
from ebm.diagnose.training import USEFUL, unguided
from ebm.energy import Energy
from ebm.model import ScoreModel, sigma_of
from ebm.randomness import generator
from ebm.sampling import batches_of
from ebm.train.metrics import Metrics, read
from ebm.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Mean loss of the first average on ``count`` images of a data set, always the same, with the same noise."""

    dataset: Dataset
    count: int
    batch: int
    seed: int
    dequantise: bool

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> float:
        world, model = trainer.world, trainer.averages[0].model
        total = torch.zeros((), device=world.device)
        for part in batches_of(self.count, batch=self.batch, rank=world.rank, world=world.size):
            chosen = self.dataset.random_subset(self.count)[part.start:part.stop]
            x = self.dataset.images(chosen, device=world.device)
            x = dequantised(x, seed=self.seed, indices=chosen.tolist()) if self.dequantise else x
            source = generator(world.device, self.seed, "held-out", part.start)
            sigma = trainer.schedule.draw(len(x), generator=source)
            noise = torch.randn(x.shape, generator=source, device=world.device)
            with trainer.precision.autocast(world.device):
                total += trainer.objective(model, x, sigma, noise).sum()
        return float(world.all_reduce(total)) / self.count


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Calibration of the first average at ``levels`` quantiles of the trained noise, on ``count`` images of a data set,
    always the same, with the same noise; warns once when the loss falls without useful guidance.

    Only process 0 measures; nothing that training draws or computes is affected.
    """

    dataset: Dataset
    count: int
    levels: int
    metrics: Metrics
    seed: int

    def __call__(self, trainer: Trainer) -> None:
        if not trainer.world.is_main:
            return
        device, start, gains = trainer.world.device, time.perf_counter(), []
        images = self.dataset.images(self.dataset.random_subset(self.count), device=device)
        for sigma in trainer.schedule.probes(self.levels):
            model: ScoreModel = trainer.averages[0].model  # type: ignore[assignment]
            row = calibrate(model, images, sigma=sigma, conditioning_sigma=sigma, batch=self.count,
                            precision=trainer.precision, generator=generator(device, self.seed, "calibration", repr(sigma)))
            gains.append(row.gain)
            self.metrics.write("calibration", step=trainer.step, images=trainer.images, sigma=sigma, explained=row.explained,
                               slope=row.slope, gain=row.gain, seconds=time.perf_counter() - start)
            start = time.perf_counter()
        self.warn(trainer, gains)

    def warn(self, trainer: Trainer, gains: Sequence[float]) -> None:
        """Writes the warning to the terminal and to the metrics, once per run however often it is started."""
        if max(gains) >= USEFUL:  # the usual case, in which the metrics file need not be read
            return
        records = list(read(self.metrics.path))
        losses = [record["loss"] for record in records if record["event"] == "train" and record.get("loss") is not None]
        words = unguided(losses, gains)
        if words is not None and not any(record["event"] == "warning" for record in records):
            self.metrics.write("warning", step=trainer.step, images=trainer.images, words=words)
            print(f"warning: {words}", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Energies:
    """Mean and standard deviation of the first average's E(x, σ) on held-out images, on white noise of the data's width and
    on samples, at the 10 % quantile of the trained levels: the images should be the most likely, the noise the least.

    Only process 0 measures, on as many of each as there are samples; a direct score has no energy to measure.
    """

    dataset: Dataset
    metrics: Metrics
    seed: int
    batch: int

    @torch.no_grad()
    def __call__(self, trainer: Trainer, samples: Tensor) -> None:
        model = trainer.averages[0].model
        if not isinstance(model, Energy):
            return
        device, count = trainer.world.device, min(len(samples), self.dataset.count)
        level = float(trainer.schedule.sigma(torch.tensor(0.1, dtype=torch.float64)))
        noise = torch.randn(count, *samples.shape[1:], generator=generator(device, self.seed, "energies"), device=device)
        data = self.dataset.images(self.dataset.random_subset(count), device=device)
        images = {"data": data, "noise": model.sigma_data * noise, "samples": samples[:count].to(device)}
        for name, x in images.items():
            energy = torch.cat([model.energy(part, sigma_of(part, sigma=level)) for part in x.split(self.batch)])
            self.metrics.write("energy", step=trainer.step, images=trainer.images, at=name, sigma=level,
                               mean=float(energy.mean()), std=float(energy.std(correction=0)))
