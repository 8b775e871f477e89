"""The training loop: draw, loss, backward, clip, vote, rate, step, average; then whatever is due at this step."""
from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ebm.objective import DenoisingScoreMatching
from ebm.randomness import generator
from ebm.schedule import NoiseSchedule
from ebm.train.budget import Budget
from ebm.train.distributed import Lagged, World
from ebm.train.ema import Average
from ebm.train.precision import Precision
from ebm.train.rate import LearningRate


class NonFiniteError(RuntimeError):
    """The loss or its gradient is not finite; the parameters are those before that step."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something done on every process at a step boundary, every ``every`` images and at the end of training.

    When a run is stopped early there may be little time, so only what is ``urgent`` is done then.
    """

    every: int
    action: Callable[[Trainer], None]
    urgent: bool

    def due(self, trainer: Trainer) -> bool:
        """Whether it is done after the step that ``trainer`` has just made."""
        if trainer.stopping:
            return self.urgent
        return trainer.step % max(1, round(self.every / trainer.budget.batch)) == 0 or trainer.step == trainer.budget.steps


@dataclass(kw_only=True)
class Trainer:
    """One run of training; everything it does is a function of (seed, step) and the data."""

    model: nn.Module
    averages: Sequence[Average]
    objective: DenoisingScoreMatching
    schedule: NoiseSchedule
    optimizer: torch.optim.Optimizer
    rate: LearningRate
    budget: Budget
    precision: Precision
    seed: int
    world: World
    events: Sequence[Event] = ()
    stop_asked: Callable[[], bool] = lambda: False
    step: int = 0
    stopping: bool = False
    running: dict[str, Tensor] = field(default_factory=dict)  # sums on the device since they were last read

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler(self.world.device)
        self.lagged = Lagged()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.pieces = self.budget.pieces(self.world.size)
        self.parallel = self.model
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids)

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.step * self.budget.batch

    def fit(self, batches: Iterator[Tensor]) -> bool:
        """Trains on ``batches`` (one a step, this process's share, (b, C, H, W)); says whether it came to the end."""
        if self.step >= self.budget.steps:
            return True
        first = next(batches)
        self.settle(first)
        self.began = time.perf_counter()
        with self.progress() as self.bar:
            for images in itertools.chain([first], batches):
                self.stopping = self.train_step(images)
                self.step += 1
                self.bar.update(self.budget.batch)
                if any(event.due(self) for event in self.events):  # what follows waits for the device anyway
                    self.stopping |= self.accept(self.lagged.latest())
                for event in [event for event in self.events if event.due(self)]:
                    event.action(self)
                if self.stopping or self.step == self.budget.steps:
                    break
        return self.step == self.budget.steps

    def train_step(self, images: Tensor) -> bool:
        """One step on this process's share of the batch; says whether all processes agreed to stop after it."""
        sigma, noise = self.draw(images)
        total = torch.zeros((), device=images.device)
        parts = list(zip(*(t.chunk(self.pieces) for t in (images, sigma, noise)), strict=True))
        for index, part in enumerate(parts):
            with self.unsynchronised(index < len(parts) - 1):
                with self.precision.autocast(images.device):
                    loss = self.objective(self.parallel, *part).mean() / self.pieces
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.budget.clip, foreach=True)
        stop = self.vote(total, norm)
        self.update()
        return stop

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels (b,) and noise (b, C, H, W): the rows of the global batch's that are this process's."""
        # Drawn whole on every process, so that an image's noise depends on (seed, step, its place in the batch) alone.
        batch, here = self.budget.batch, slice(self.world.rank * len(images), (self.world.rank + 1) * len(images))
        source = generator(images.device, self.seed, "noise", self.step)
        sigma = self.schedule.draw(batch, generator=source)
        noise = torch.randn(batch, *images.shape[1:], generator=source, device=images.device)
        return sigma[here], noise[here]

    def vote(self, loss: Tensor, norm: Tensor) -> bool:
        """Adds this step's numbers over all processes and reads those of the step before, which the device has by now.

        Raises NonFiniteError on every process at the same step; the scaler has kept the parameters as they were.
        """
        bad = ~loss.isfinite() if self.precision.scales else ~(loss.isfinite() & norm.isfinite())
        asked = torch.full_like(loss, float(self.stop_asked()))
        votes = self.world.sum(torch.stack([loss / self.world.size, bad.float(), asked]))
        for name, value in (("loss", votes[0]), ("grad_norm", norm.detach()), ("steps", torch.ones_like(norm))):
            self.running[name] = self.running.get(name, 0) + value
        before = self.lagged.exchange(torch.cat([votes, votes.new_tensor([self.step])]))
        return self.accept(before)

    def accept(self, votes: list[float] | None) -> bool:
        """Raises NonFiniteError if any process voted that the step was bad; says whether any asked to stop."""
        if votes is None:
            return False
        _, bad, asked, step = votes
        if bad:
            raise NonFiniteError(f"step {int(step)}: the loss or its gradient was not finite on {int(bad)} of "
                            f"{self.world.size} processes; the parameters are those before that step")
        return asked > 0

    def update(self) -> None:
        """Sets the learning rate and moves the parameters and their averages."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for average in self.averages:
            average.update(self.model, step=self.step + 1, batch=self.budget.batch)

    @property
    def learning_rate(self) -> float:
        """The rate of the step in progress."""
        return self.rate(self.images + self.budget.batch, self.budget.images)

    def settle(self, images: Tensor) -> None:
        """One pass whose gradients are thrown away: DDP orders its buckets after the first pass, and a resumed run
        must add in the same order as one that was never interrupted."""
        if self.world.size == 1:
            return
        one = images[:1]
        with self.precision.autocast(one.device):
            loss = self.objective(self.parallel, one, torch.ones_like(one[:, 0, 0, 0]), torch.zeros_like(one)).sum()
        loss.backward()
        self.optimizer.zero_grad()

    def unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Context in which gradients stay on this process."""
        return self.parallel.no_sync() if wanted and self.world.size > 1 else contextlib.nullcontext()  # type: ignore

    def progress(self) -> tqdm[Any]:
        """The bar on rank 0: images of all, images/s, time left; in a log, one line at most every half minute."""
        return tqdm(total=self.budget.images, initial=self.images, unit="img", unit_scale=True, dynamic_ncols=True,
                    disable=not self.world.is_main, mininterval=0.5 if sys.stderr.isatty() else 30, desc="train")

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state made by `state`; raises RuntimeError where it is of another model."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.model.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs besides its configuration."""
        return {
            "step": self.step,
            "images": self.images,
            "model": self.model.state_dict(),
            "averages": [average.model.state_dict() for average in self.averages],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
