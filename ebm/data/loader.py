"""Batches of a `.beton` file for training: a function of (seed, step), whatever reads them and on however many processes.

Pixels are uint8 outside and v / 127.5 - 1, in [-1, 1], inside.
"""
from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import count as counting
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm.accepted import whole
from ebm.data.beton import Beton
from ebm.data.manifest import Manifest
from ebm.data.order import batch_indices, local_rows, steps_per_epoch
from ebm.data.stream import ffcv_batches, guarded, import_ffcv
from ebm.randomness import generator

PART = 4 << 20  # bytes that FFCV reads at a time, or one batch if that is more


def to_float(x: Tensor) -> Tensor:
    """uint8 pixels of any shape as float32 in [-1, 1]."""
    return x.to(torch.float32, copy=True).div_(127.5).sub_(1)  # in place, as this is memory-bound on a CPU


def to_uint8(x: Tensor) -> Tensor:
    """Pixels in [-1, 1], clamped to that range, as the nearest uint8."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def flipped(x: Tensor, *, seed: int, step: int, batch: int, rows: slice) -> Tensor:
    """Each image of (b, C, H, W) mirrored left to right with probability ½, by its row in the global batch."""
    coins = torch.rand(batch, generator=generator(x.device, seed, "flip", step), device=x.device)[rows] < 0.5
    # Selects whole images from both: torch.where goes byte by byte, which takes five times as long on a CPU.
    both = torch.cat([x, x.flip(-1)])
    return both.index_select(0, torch.arange(len(x), device=x.device) + len(x) * coins)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A `.beton` file that agrees with its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Raises FileNotFoundError or ValueError, with the cure, if it is absent or not what its manifest says."""
        manifest = Manifest.load(path)
        manifest.check(path, whole=False)
        beton = Beton.open(path)
        if (beton.count, beton.height, beton.width) != (manifest.count, manifest.height, manifest.width):
            raise ValueError(f"{path}: holds other images than its manifest says; make it again, with --force")
        return cls(path=Path(path), manifest=manifest)

    @property
    def count(self) -> int:
        """Number of images."""
        return self.manifest.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, H, W) of one image."""
        return 3, self.manifest.height, self.manifest.width

    def images(self, indices: Tensor, *, device: torch.device | str) -> Tensor:
        """The images at ``indices`` (n,), unflipped, (n, 3, H, W) float32 in [-1, 1]; raises IndexError beyond the count."""
        return to_float(self.pixels(indices.cpu().numpy()).to(device))

    def pixels(self, indices: NDArray[np.int64]) -> Tensor:
        """The images at ``indices`` (n,) as stored in the file, (n, 3, H, W) uint8 on the CPU."""
        return torch.from_numpy(self.beton.rows(indices)).permute(0, 3, 1, 2).contiguous()

    def random_subset(self, count: int) -> Tensor:
        """Indices of ``count`` images drawn at random, always the same, (count,) int64: a file may be sorted by class.
        A smaller subset is the beginning of a larger one."""
        return torch.randperm(self.count, generator=generator("cpu", 0, "some"))[:count]

    @cached_property
    def beton(self) -> Beton:
        """The file, mapped when it is first read from."""
        return Beton.open(self.path)

    def batches(
        self, *, batch: int, seed: int, start: int, rank: int, world: int, device: torch.device | str, flip: bool,
        resident_bytes: int, workers: int, timeout: float, ffcv: bool,
    ) -> Iterator[Tensor]:
        """Rank's share of the global batch of each step from ``start``, (batch / world, 3, H, W) float32, without end.

        A set of at most ``resident_bytes`` bytes is read once and kept on the device; a larger one streams through
        FFCV with ``workers`` threads, or through a plain loop without ``ffcv``. Raises ValueError for a batch that does
        not fit, TimeoutError in place of a hang.
        """
        rows = local_rows(batch, rank, world)
        steps_per_epoch(count=self.count, batch=batch)
        whole(0, start=start)
        whole(1, workers=workers)
        if ffcv:
            import_ffcv()  # in this thread, not the one that reads, as it restores torch's number of threads
        reader = Reader(dataset=self, batch=batch, seed=seed, rows=rows, device=torch.device(device), workers=workers,
                        timeout=timeout, ffcv=ffcv)
        resident = self.count * int(np.prod(self.shape)) <= resident_bytes
        return reader.floats(start, flip=flip, resident=resident)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The three ways to read one process's share, ``rows``, of every global batch; all give the same bits."""

    dataset: Dataset
    batch: int
    seed: int
    rows: slice
    device: torch.device
    workers: int
    timeout: float
    ffcv: bool

    def floats(self, start: int, *, flip: bool, resident: bool) -> Iterator[Tensor]:
        """Batches (b, 3, H, W) in [-1, 1] from step ``start``."""
        pixels = self.resident(start) if resident else self.streamed(start) if self.ffcv else self.gathered(start)
        with closing(pixels):  # closing the batches ends the reading threads
            for step, x in zip(counting(start), pixels, strict=False):
                # Flipped as bytes: floats would be four times as much to move.
                x = flipped(x, seed=self.seed, step=step, batch=self.batch, rows=self.rows) if flip else x
                yield to_float(x)

    def indices(self, step: int) -> Tensor:
        """This process's images of ``step``, (b,) int64."""
        return batch_indices(count=self.dataset.count, batch=self.batch, seed=self.seed, step=step)[self.rows]

    def resident(self, start: int) -> Generator[Tensor]:
        """Batches (b, 3, H, W) uint8 from the whole set, which is copied to the device in one pass over the file."""
        images = torch.empty(self.dataset.count, *self.dataset.shape, dtype=torch.uint8, device=self.device)
        copied = 0
        for part in self.parts():
            images[copied:copied + len(part)] = part.to(self.device, non_blocking=True)
            copied += len(part)
        for step in counting(start):
            indices = self.indices(step)
            if self.device.type == "cuda":
                indices = indices.pin_memory()  # so that the copy doesn't wait for the device
            yield images.index_select(0, indices.to(self.device, non_blocking=True))

    def parts(self) -> Iterable[Tensor]:
        """The whole set once, in the file's order, (n, 3, H, W) uint8 on the CPU, part by part."""
        indices, size = np.arange(self.dataset.count), max(1, PART // int(np.prod(self.dataset.shape)))
        if self.ffcv:  # one thread copies a GB per second, and compiling for several takes a second longer
            source = ffcv_batches(self.dataset.path, [indices], batch=min(size, len(indices)), workers=1, device=self.device)
            return guarded(source, timeout=self.timeout, path=self.dataset.path)
        return (self.dataset.pixels(indices[i:i + size]) for i in range(0, len(indices), size))

    def streamed(self, start: int) -> Generator[Tensor]:
        """Batches (b, 3, H, W) uint8 through FFCV, several at a time, as each hand-over between its threads takes time."""
        size = self.rows.stop - self.rows.start
        at_once = max(1, PART // (size * int(np.prod(self.dataset.shape))))
        source = ffcv_batches(self.dataset.path, self.epochs(start), batch=size * at_once, workers=self.workers,
                              device=self.device)
        with closing(guarded(source, timeout=self.timeout, path=self.dataset.path)) as parts:
            for part in parts:
                for x in part.split(size):
                    yield x.to(self.device, non_blocking=True)

    def epochs(self, start: int) -> Iterator[NDArray[np.int64]]:
        """Indices of this process's images from step ``start`` to its epoch's end, then epoch by epoch, each (n,) int64."""
        steps = steps_per_epoch(count=self.dataset.count, batch=self.batch)
        while True:
            end = (start // steps + 1) * steps
            yield np.concatenate([self.indices(step).numpy() for step in range(start, end)])
            start = end

    def gathered(self, start: int) -> Generator[Tensor]:
        """Batches (b, 3, H, W) uint8 read from the mapped file one by one."""
        for step in counting(start):
            yield self.dataset.pixels(self.indices(step).numpy()).to(self.device, non_blocking=True)
