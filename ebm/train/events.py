"""What a run does besides training: log, sample a grid, score itself on held-out images, save."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ebm.data import Dataset
from ebm.pictures import save_grid
from ebm.randomness import generator
from ebm.sampling import Sampler, batches_of, draw
from ebm.train.checkpoint import Checkpoints
from ebm.train.metrics import Metrics
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
