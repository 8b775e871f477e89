"""The training loop: draw, loss, backward, clip, vote, rate, step, average; then whatever is due at this step."""
from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ebm.data.order import local_rows
from ebm.graph import Recorded
from ebm.objective import DenoisingScoreMatching
from ebm.precision import Precision
from ebm.randomness import generator
from ebm.schedule import NoiseSchedule
from ebm.train.budget import Budget
from ebm.train.distributed import Lagged, World
from ebm.train.ema import Average
from ebm.train.meter import Meter, by_sigma
from ebm.train.rate import LearningRate

# Consecutive steps that fp16's scaler may skip: that many halvings of its initial scale 2^16 leave nothing of a gradient.
OVERFLOWS = 40


class NonFiniteError(RuntimeError):
    """The loss or its gradient is not finite; the parameters are those before that step."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """An action on every process at a step boundary, every ``every`` images and at the end of training.

    When a run is stopped early there may be little time, so only ``urgent`` actions are done then.
    """

    every: int
    action: Callable[[Trainer], None]
    urgent: bool

    def due(self, trainer: Trainer) -> bool:
        """Whether it is due after the step that ``trainer`` has just made."""
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
    cuda_graph: bool = False
    events: Sequence[Event] = ()
    stop_asked: Callable[[], bool] = lambda: False
    alive: Callable[[], None] = lambda: None  # called before every step and event
    step: int = 0
    stopping: bool = False
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler(self.world.device)
        self.lagged = Lagged()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.pieces = self.budget.pieces(self.world.size)
        self.parallel = self.model  # until `fit`: nothing before it waits for other processes
        self.overflows = torch.zeros((), device=self.world.device)  # skipped steps in a row
        self.differentiate = Recorded(self.gradients, self.parameters) if self.cuda_graph else self.gradients

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.step * self.budget.batch

    def fit(self, batches: Iterator[Tensor]) -> bool:
        """Trains on ``batches`` (one a step, this process's share, (b, C, H, W)); returns whether it came to the end."""
        if self.step >= self.budget.steps:
            return True
        first = next(batches)
        self.parallelise()
        self.warm_up_ddp(first)
        self.meter.begin()
        with self.progress() as self.bar:
            for images in self.meter.read(itertools.chain([first], batches)):
                self.alive()
                self.stopping = self.train_step(images)
                self.step += 1
                self.bar.update(self.budget.batch)
                ended = self.step == self.budget.steps
                if ended or any(event.due(self) for event in self.events):  # what follows waits for the device anyway
                    self.stopping |= self.accept(self.lagged.latest())
                self.stopping &= not ended  # at the end there is nothing left to stop, and all that is due is done
                for event in [event for event in self.events if event.due(self)]:
                    with self.meter.away():
                        self.alive()
                        event.action(self)
                if self.stopping or ended:
                    break
        return ended

    def parallelise(self) -> None:
        """Prepares for several processes: by DistributedDataParallel, or, since a CUDA graph can't hold its communication, by
        parameters made equal here and gradients averaged after each replay."""
        if self.cuda_graph:
            self.world.broadcast([*self.model.parameters(), *self.model.buffers()])
        else:
            self.parallel = self.world.parallel(self.model)

    def train_step(self, images: Tensor) -> bool:
        """One step on this process's share of the batch; returns whether all processes agreed to stop after it."""
        sigma, noise = self.draw(images)
        losses = self.differentiate(images, sigma, noise)
        if self.parallel is self.model:
            self.world.all_reduce_mean([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.budget.clip, foreach=True)
        stop = self.vote(losses, sigma, norm)
        self.update()
        return stop

    def gradients(self, images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Loss of each image, (b,); leaves the gradients of its mean, times the scaler's scale, in the parameters."""
        losses = []
        parts = list(zip(*(t.chunk(self.pieces) for t in (images, sigma, noise)), strict=True))
        for index, part in enumerate(parts):
            with self.unsynchronised(index < len(parts) - 1):
                with self.precision.autocast(images.device):
                    loss = self.objective(self.parallel, *part)
                self.scaler.scale(loss.mean() / self.pieces).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """This process's rows of the global batch's noise levels, (b,), and noise, (b, C, H, W)."""
        # Drawn whole on every process, so that an image's noise depends on (seed, step, its place in the batch) alone.
        batch, here = self.budget.batch, local_rows(self.budget.batch, self.world.rank, self.world.size)
        source = generator(images.device, self.seed, "noise", self.step)
        sigma = self.schedule.draw(batch, generator=source)
        noise = torch.randn(batch, *images.shape[1:], generator=source, device=images.device)
        return sigma[here], noise[here]

    def vote(self, losses: Tensor, sigma: Tensor, norm: Tensor) -> bool:
        """Sums this step's numbers over all processes and reads those of the step before, which the device has finished by now.

        Raises NonFiniteError on every process at the same step; the scaler has kept the parameters as they were.
        """
        skipped = (~norm.isfinite()).float()
        self.overflows = (self.overflows + 1) * skipped
        bad = ~losses.isfinite()
        lost = bad.any() | (self.overflows > (OVERFLOWS if self.precision.scales else 0))
        asked = torch.full_like(norm, float(self.stop_asked()))
        mean, levels = losses.mean() / self.world.size, by_sigma(losses, sigma)
        votes, levels = self.world.all_reduce(torch.cat([torch.stack([mean, lost.float(), asked]), levels.flatten()])).split(
            [3, levels.numel()])
        self.meter.add(loss=votes[0], grad_norm=norm.detach().nan_to_num(0, 0, 0), skipped=skipped,
                       steps=torch.ones_like(norm), by_sigma=levels.view(2, -1))
        # After the sums, this process's own: the range of levels at which its losses are not finite.
        own = torch.stack([sigma.masked_fill(~bad, torch.inf).min(), sigma.masked_fill(~bad, 0).max()])
        return self.accept(self.lagged.exchange(self.step, torch.cat([votes, own])))

    def accept(self, votes: tuple[int, list[float]] | None) -> bool:
        """Raises NonFiniteError if any process voted that the step was bad; returns whether any asked to stop."""
        if votes is None:
            return False
        step, (_, lost, asked, *own) = votes
        if lost:  # every process reads the same vote, so all of them get here
            where = [f"rank {rank}, σ from {low:.3g} to {high:.3g}" for rank, (low, high)
                     in enumerate(self.world.all_gather(own)) if high > 0]
            what = f"the loss was not finite ({'; '.join(where)})" if where else "the gradient was not finite"
            raise NonFiniteError(f"step {step}: {what}; the parameters are those before that step")
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

    def warm_up_ddp(self, images: Tensor) -> None:
        """One pass whose gradients are thrown away: DistributedDataParallel orders its buckets after the first pass, and a
        resumed run must add gradients in the same order as one that was never interrupted."""
        if self.parallel is self.model:
            return
        part = images.chunk(self.pieces)[0]
        with self.precision.autocast(part.device):
            loss = self.objective(self.parallel, part, torch.ones_like(part[:, 0, 0, 0]), torch.zeros_like(part)).sum()
        loss.backward()
        self.optimizer.zero_grad()

    def unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Context in which gradients stay on this process."""
        return self.parallel.no_sync() if wanted and self.parallel is not self.model else contextlib.nullcontext()  # type: ignore

    def progress(self) -> tqdm[Any]:
        """The progress bar on rank 0, with images/s and time left; in a log, at most one line every half minute."""
        total = self.budget.steps * self.budget.batch
        return tqdm(total=total, initial=self.images, unit="img", unit_scale=True, dynamic_ncols=True, desc="train",
                    disable=not self.world.is_main, mininterval=0.5 if sys.stderr.isatty() else 30)

    def communication(self) -> float | None:
        """Seconds per step spent waiting for other processes' gradients, as DistributedDataParallel measured them last; None
        where several processes do without it, so that nothing is measured."""
        if self.parallel is self.model:
            return 0.0 if self.world.size == 1 else None
        times: dict[str, int] = self.parallel._get_ddp_logging_data()  # type: ignore[operator]
        return max(0, times.get("backward_comm_time", 0) - times.get("backward_compute_comm_overlap_time", 0)) / 1e9

    def restore(self, state: dict[str, Any]) -> None:
        """Loads a state made by `state`; raises RuntimeError if it is another model's."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.model.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():  # perhaps saved in another memory format
            moments |= {name: torch.empty_like(parameter).copy_(value) for name, value in moments.items()
                        if value.shape == parameter.shape and value.stride() != parameter.stride()}
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
