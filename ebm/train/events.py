"""What a run does besides training: log, sample a grid, score itself on held-out images, save."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ebm.data import Dataset
from ebm.diagnose.calibration import calibrate
from ebm.diagnose.training import USEFUL, unguided
from ebm.pictures import save_grid
from ebm.randomness import generator
from ebm.samplers.step import ScoreModel
from ebm.sampling import Sampler, batches_of, draw
from ebm.train.checkpoint import Checkpoints
from ebm.train.metrics import Metrics, read
from ebm.train.trainer import Trainer


@dataclass(kw_only=True)
class Log:
    """Means since the last record: loss, gradient norm, learning rate and images/s, in metrics.jsonl and on the bar."""

    metrics: Metrics

    def __call__(self, trainer: Trainer) -> None:
        sums = {name: float(value) for name, value in trainer.running.items()}  # the one wait for the device
        trainer.running.clear()
        seconds = trainer.take_seconds()
        if trainer.world.is_main:
            steps, skipped = sums["steps"], sums["skipped"]
            values = {"loss": sums["loss"] / steps, "grad_norm": sums["grad_norm"] / max(1.0, steps - skipped)}
            if trainer.precision.scales:
                values["skipped_steps"] = skipped  # whose gradients overflowed
            self.metrics.write("train", step=trainer.step, images=trainer.images, **values,
                               learning_rate=trainer.rate(trainer.images, trainer.budget.images),
                               images_per_s=steps * trainer.budget.batch / seconds)
            trainer.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A PNG grid of ``count`` samples from the first average, always of the same noise, shared among the processes."""

    sampler: Sampler
    shape: tuple[int, int, int]
    count: int
    batch: int
    seed: int
    folder: Path

    def __call__(self, trainer: Trainer) -> None:
        world = trainer.world
        with trainer.precision.autocast(world.device):
            mine = [draw(trainer.averages[0].model, self.sampler, shape=self.shape, indices=part, seed=self.seed,
                         device=world.device)
                    for part in batches_of(self.count, batch=self.batch, rank=world.rank, world=world.size)]
        images = interleave(world.gather([part.cpu() for part in mine]))
        if world.is_main:
            save_grid(torch.cat(images), self.folder / f"images-{trainer.images:09d}.png")


def interleave(per_rank: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Batches dealt out in turn to the ranks, back in their order."""
    longest = max((len(parts) for parts in per_rank), default=0)
    return [parts[turn] for turn in range(longest) for parts in per_rank if turn < len(parts)]


@dataclass(frozen=True, kw_only=True)
class Save:
    """Saves a checkpoint, first scoring it on held-out images where there are any, so that the best is kept."""

    checkpoints: Checkpoints
    metrics: Metrics
    held_out: Callable[[Trainer], float] | None

    def __call__(self, trainer: Trainer) -> None:
        loss = None if self.held_out is None or trainer.stopping else self.held_out(trainer)
        if not trainer.world.is_main:
            return
        start = time.perf_counter()
        path = self.checkpoints.save(trainer.step, trainer.state())
        self.metrics.write("save", step=trainer.step, images=trainer.images, seconds=time.perf_counter() - start,
                           early=trainer.stopping)
        if loss is not None:
            self.metrics.write("held_out", step=trainer.step, images=trainer.images, loss=loss)
            self.checkpoints.mark_best(path, loss)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Mean loss of the first average on the first ``count`` images of a data set, always with the same noise."""

    dataset: Dataset
    count: int
    batch: int
    seed: int

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> float:
        world, model = trainer.world, trainer.averages[0].model
        total = torch.zeros((), device=world.device)
        for part in batches_of(self.count, batch=self.batch, rank=world.rank, world=world.size):
            x = self.dataset.images(torch.arange(part.start, part.stop), device=world.device)
            source = generator(world.device, self.seed, "held-out", part.start)
            sigma = trainer.schedule.draw(len(x), generator=source)
            noise = torch.randn(x.shape, generator=source, device=world.device)
            with trainer.precision.autocast(world.device):
                total += trainer.objective(model, x, sigma, noise).sum()
        return float(world.sum(total)) / self.count


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Calibration of the first average at ``levels`` quantiles of the trained noise, on the first ``count`` images of a
    data set, always with the same noise; says once, in words, when the loss falls without useful guidance.

    Process 0 measures; nothing that training draws or computes is touched.
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
        images = self.dataset.images(torch.arange(self.count), device=device)
        for sigma in sorted(set(trainer.schedule.grid(self.levels).tolist())):
            model: ScoreModel = trainer.averages[0].model  # type: ignore[assignment]
            row = calibrate(model, images, sigma=sigma, told=sigma, batch=self.count,
                            precision=trainer.precision, generator=generator(device, self.seed, "calibration", repr(sigma)))
            gains.append(row.gain)
            self.metrics.write("calibration", step=trainer.step, images=trainer.images, sigma=sigma, explained=row.explained,
                               slope=row.slope, gain=row.gain, seconds=time.perf_counter() - start)
            start = time.perf_counter()
        self.warn(trainer, gains)

    def warn(self, trainer: Trainer, gains: Sequence[float]) -> None:
        """Writes the warning on the terminal and in the metrics, once in a run however often it is started."""
        if max(gains) >= USEFUL:  # the usual case, in which nobody need read the whole past
            return
        past = list(read(self.metrics.path))
        losses = [record["loss"] for record in past if record["event"] == "train" and record.get("loss") is not None]
        words = unguided(losses, gains)
        if words is not None and not any(record["event"] == "warning" for record in past):
            self.metrics.write("warning", step=trainer.step, images=trainer.images, words=words)
            print(f"warning: {words}", file=sys.stderr, flush=True)
