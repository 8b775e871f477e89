"""Reading images: this project's batches through FFCV against a torchvision DataLoader, and the wait for the first."""
from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed
from torchvision import transforms

from ebm.data import Dataset, to_float
from ebm.data.beton import read_beton
from ebm.data.loader import flipped
from ebm.data.stream import uses_ffcv
from tools.bench.measure import Row, Setting, Spread, at_least, at_most, fresh, progress, ratio
from tools.bench.subject import dataset

TITLE = "Reading images"
NOTE = ("32×32 images, batches of 256 in random order, flipped at random, float32 in [-1, 1] on the device. The baseline is "
        "what torchvision's tutorials do: a CIFAR-like data set of PIL images with RandomHorizontalFlip, ToTensor and "
        "Normalize in a DataLoader with two workers; torch itself has one thread, as the cores are the readers'. "
        "\"First batch\" counts from making the loader; cold is a process's "
        "first, with torch and ebm.data imported; warm is its second.")
BATCH = 256
Stream = Iterator[Tensor]


class Pictures(Indexed[tuple[Tensor, int]]):
    """What torchvision.datasets.CIFAR10 is: an array in memory, a PIL image and its class for each index."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.transform = transforms.Compose([
            transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), 0


def torchvision(path: Path, device: torch.device) -> Stream:
    """The baseline, without end."""
    loader = DataLoader(Pictures(read_beton(path)), batch_size=BATCH, shuffle=True, num_workers=2, drop_last=True,
                        persistent_workers=True, pin_memory=device.type == "cuda")
    while True:
        for images, _ in loader:
            yield images.to(device, non_blocking=True)


def ours(path: Path, device: torch.device, resident_bytes: int) -> Stream:
    """This project's batches, a set that streams with the baseline's number of workers."""
    return Dataset.open(path).batches(batch=BATCH, seed=0, start=0, rank=0, world=1, device=device, flip=True,
                                      resident_bytes=resident_bytes, workers=2, timeout=600.0, ffcv=True)


def streaming(path: Path, device: torch.device) -> Stream:
    """Ours where the set is larger than what may be kept on the device."""
    return ours(path, device, 0)


def resident(path: Path, device: torch.device) -> Stream:
    """Ours where the set is kept on the device."""
    return ours(path, device, 1 << 40)


def arithmetic(path: Path, device: torch.device) -> Stream:
    """Conversion and flip of one batch again and again: what no reader that ends in float32 images can beat."""
    pixels = torch.from_numpy(read_beton(path)[:BATCH]).permute(0, 3, 1, 2).contiguous().to(device)
    while True:
        yield to_float(flipped(pixels, seed=0, step=0, batch=BATCH, rows=slice(0, BATCH)))


KINDS: dict[str, Callable[[Path, torch.device], Stream]] = {
    "torchvision": torchvision, "streaming": streaming, "resident": resident, "arithmetic": arithmetic}


def images_per_second(stream: Stream, *, setting: Setting) -> float:
    """Speed over the setting's seconds, once the batches that were made ahead during the others' turns are gone."""
    for _ in range(10):
        next(stream)
    setting.wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < setting.seconds:
        next(stream)
        count += BATCH
    setting.wait()
    return count / (time.perf_counter() - start)


def first_batches(path: Path, kind: str, device: torch.device) -> tuple[float, float]:
    """Seconds to the first batch of this process's first loader, and of its second."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        stream = KINDS[kind](path, device)
        next(stream)
        seconds.append(time.perf_counter() - start)
        stream.close()  # type: ignore[attr-defined]
    return seconds[0], seconds[1]


def rows(setting: Setting) -> list[Row]:
    """The lines of the report; raises ValueError without FFCV, whose speed this is about."""
    uses_ffcv("ffcv")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shapes.beton")
        dataset(path, count=5_000 if setting.quick else 50_000)
        progress("data set written")
        return [*speeds(path, setting), *waits(path, setting)]


def speeds(path: Path, setting: Setting) -> list[Row]:
    """Images per second, the four ways taking turns."""
    streams = {kind: make(path, setting.device) for kind, make in KINDS.items()}
    speed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(setting.repeats):
        for kind in list(KINDS)[:: 1 if turn % 2 == 0 else -1]:
            speed[kind].append(images_per_second(streams[kind], setting=setting))
        progress(f"round {turn + 1} of {setting.repeats}")
    for stream in streams.values():
        stream.close()  # type: ignore[attr-defined]
    return [
        Row(what="torchvision DataLoader, 2 workers", measured=f"{Spread(speed['torchvision']):,.0f} images/s"),
        *(Row(what=f"ours, {kind}", measured=f"{Spread(speed[kind]):,.0f} images/s") for kind in ("streaming", "resident")),
        *(at_least(f"ours, {kind}", ratio(speed[kind], speed["torchvision"]), 20, against="torchvision DataLoader")
          for kind in ("streaming", "resident")),
        *(Row(what=f"ours, {kind}", measured=f"{ratio(speed[kind], speed['arithmetic']):.0%}",
              against="conversion and flip alone, nothing read") for kind in ("streaming", "resident")),
    ]


def waits(path: Path, setting: Setting) -> list[Row]:
    """Seconds to the first batch, each round in processes of their own."""
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ("torchvision", "streaming", "resident")}
    for turn in range(setting.repeats):
        for kind in seconds:
            seconds[kind].append(fresh(first_batches, path, kind, setting.device))
        progress(f"first batches, round {turn + 1} of {setting.repeats}")
    cold = {kind: Spread([pair[0] for pair in pairs]) for kind, pairs in seconds.items()}
    warm = {kind: Spread([pair[1] for pair in pairs]) for kind, pairs in seconds.items()}
    return [
        *(at_most(f"first batch, {kind}, warm", warm[kind], 3, against=f"torchvision: {warm['torchvision'].median:.2f} s",
                  unit="s") for kind in ("streaming", "resident")),
        *(Row(what=f"first batch, {kind}, cold", measured=f"{cold[kind]:.2f} s",
              against=f"torchvision: {cold['torchvision'].median:.2f} s") for kind in ("streaming", "resident")),
    ]
