"""What a run does besides training: log, sample a grid, save."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ebm.pictures import save_grid
from ebm.sampling import Sampler, batches_of, draw
from ebm.train.checkpoint import Checkpoints
from ebm.train.meter import middle, peak_memory
from ebm.train.metrics import Metrics
from ebm.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Log:
    """Means since the last record: loss, gradient norm, speed and where the time went, in metrics.jsonl and on the bar.

    ``peak_rate`` is the images/s of one device at its arithmetic peak; None where that isn't known.
    """

    metrics: Metrics
    peak_rate: float | None

    def __call__(self, trainer: Trainer) -> None:
        device_sums, seconds, reading = trainer.meter.take()
        levels = device_sums.pop("by_sigma").tolist()  # this waits for the device
        sums = {name: float(value) for name, value in device_sums.items()}
        if not trainer.world.is_main:
            return
        now, loss = {"step": trainer.step, "images": trainer.images}, sums["loss"] / sums["steps"]
        self.metrics.write("train", **now, loss=loss, grad_norm=sums["grad_norm"] / max(1.0, sums["steps"] - sums["skipped"]),
                           learning_rate=trainer.rate(trainer.images, trainer.budget.images),
                           average_distance=trainer.averages[0].distance(trainer.model),
                           peak_memory_gb=peak_memory(trainer.world.device) / 1e9,
                           **self.speed(trainer, sums["steps"], seconds, reading), **scaling(trainer, sums["skipped"]))
        for band, (total, count) in enumerate(zip(*levels, strict=True)):
            if count:
                self.metrics.write("loss_by_sigma", **now, sigma=middle(band), loss=total / count, share=count / sum(levels[1]))
        trainer.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def speed(self, trainer: Trainer, steps: float, seconds: float, reading: float) -> dict[str, float]:
        """Images/s of all processes, and a step's seconds: waiting for images, for other processes, and the rest."""
        rate, communication = steps * trainer.budget.batch / seconds, trainer.communication()
        parts = {"images_per_s": rate, "data_s": reading / steps,
                 "compute_s": max(0.0, (seconds - reading) / steps - (communication or 0.0))}
        if communication is not None:
            parts["communication_s"] = communication
        if self.peak_rate is not None:
            parts["peak_share"] = rate / (self.peak_rate * trainer.world.size)
        return parts


def scaling(trainer: Trainer, skipped: float) -> dict[str, float]:
    """What fp16 adds: its loss scale, and the steps whose gradients overflowed."""
    return {"loss_scale": trainer.scaler.get_scale(), "skipped_steps": skipped} if trainer.precision.scales else {}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A PNG grid of ``count`` samples from the first average, always from the same noise, drawn by all processes together.

    ``energies`` is called with the samples, where there are held-out images to compare them with.
    """

    sampler: Sampler
    shape: tuple[int, int, int]
    count: int
    batch: int
    seed: int
    folder: Path
    metrics: Metrics
    energies: Callable[[Trainer, Tensor], None] | None

    def __call__(self, trainer: Trainer) -> None:
        world, start = trainer.world, time.perf_counter()
        with trainer.precision.autocast(world.device):
            own = [draw(trainer.averages[0].model, self.sampler, shape=self.shape, indices=part, seed=self.seed,
                        device=world.device)
                   for part in batches_of(self.count, batch=self.batch, rank=world.rank, world=world.size)]
        images = interleave(world.gather([part.cpu() for part in own]))
        if not world.is_main:
            return
        path, samples = self.folder / f"images-{trainer.images:09d}.png", torch.cat(images)
        save_grid(samples, path)
        self.metrics.write("preview", step=trainer.step, images=trainer.images, path=f"{self.folder.name}/{path.name}",
                           count=self.count, seconds=time.perf_counter() - start)
        if self.energies is not None:
            self.energies(trainer, samples)


def interleave(per_rank: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Batches that were dealt out to the ranks in turn, back in their original order."""
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
        if loss is not None:
            self.metrics.write("held_out", step=trainer.step, images=trainer.images, loss=loss)
        start = time.perf_counter()
        path = self.checkpoints.save(trainer.step, trainer.state())
        if loss is not None:
            self.checkpoints.mark_best(path, loss)
        self.metrics.write("save", step=trainer.step, images=trainer.images, seconds=time.perf_counter() - start,
                           early=trainer.stopping)
