"""Statistics of a run's steps: sums that stay on the device until they are needed, and where the time goes."""
from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIRST, BANDS = -6, 12  # half-decades of σ: from 10^(-6/2) to 10^(6/2); levels beyond count towards the outermost


@dataclass
class Meter:
    """Sums over the steps since they were last taken; no step waits for the device because of them."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    began: float = 0.0  # when the time being counted began; all times here in seconds
    elsewhere: float = 0.0  # saving, sampling, scoring
    reading: float = 0.0  # waiting for images

    def begin(self) -> None:
        """Starts the clock."""
        self.began, self.elsewhere, self.reading = time.perf_counter(), 0.0, 0.0

    def add(self, **values: Tensor) -> None:
        """Adds one step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Context for what is not part of a step."""
        start = time.perf_counter()
        yield
        self.elsewhere += time.perf_counter() - max(start, self.began)

    def read(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """The batches; counts the time that steps wait for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.reading += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def take(self) -> tuple[dict[str, Tensor], float, float]:
        """The sums, the seconds spent on steps and those of them spent waiting for images, since the last call."""
        sums, seconds, reading = self.sums, time.perf_counter() - self.began - self.elsewhere, self.reading
        self.sums = {}
        self.begin()
        return sums, seconds, reading


def by_sigma(losses: Tensor, sigma: Tensor) -> Tensor:
    """Sum and number of the losses in each half-decade of σ: (b,), (b,) -> (2, BANDS)."""
    band = (2 * sigma.log10()).floor().sub(FIRST).clamp(0, BANDS - 1)
    member = (band == torch.arange(BANDS, device=sigma.device)[:, None]).to(losses.dtype)  # (BANDS, b)
    return torch.stack([member @ losses, member.sum(1)])


def middle(band: int) -> float:
    """The geometric middle of a half-decade."""
    return float(10 ** ((band + FIRST + 0.5) / 2))


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held, of the GPU's memory or, on a CPU, resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
