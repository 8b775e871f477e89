#!/usr/bin/env python3
"""Draws samples from a trained run: `python launch/sample.py run=<folder> sampler=<name> n=<count> seed=<int>`.

Image i depends on the seed and on i alone, so any number of processes (`torchrun`) draws the same images. Batches are put
aside as they are drawn: what was interrupted goes on from there.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ebm.data import to_float, to_uint8
from ebm.energy import Preconditioned
from ebm.files import write_atomically
from ebm.pictures import save_grid
from ebm.samplers.step import Step
from ebm.sampling import Sampler, batches_of, last, trajectory
from ebm.train.checkpoint import load
from ebm.train.distributed import World, join
from ebm.train.precision import Precision
from launch.build import best_precision, build, naming, plain
from launch.entry import checking, run
from launch.faults import recorded
from launch.job import STOP_SIGNALS
from launch.preflight import meeting
from launch.run import RunFolder
from launch.train import make_model


def main(cfg: DictConfig) -> None:
    """Draws the images and writes them as one .npz and one .png."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a study's jobs start with them blocked
    with contextlib.ExitStack() as stack:
        stack.enter_context(recorded(Path(cfg.out)))
        with checking(), meeting():
            seconds = {name: plain(cfg, name, float, least=1) for name in ("timeout_seconds", "peers_seconds")}
            world = stack.enter_context(join(device=cfg.device, **seconds))
        with checking(world):
            artist, step = prepare(cfg, world)
            parts = batches_of(plain(cfg, "n", int), batch=plain(cfg, "batch", int), rank=world.rank, world=world.size)
            if world.is_main:
                Path(cfg.out).mkdir(parents=True, exist_ok=True)  # before the work: it may not be allowed
        aside = world.share(Path(cfg.out) / f".{fingerprint(cfg, step, artist)}")  # by rank 0's words: paths may differ
        for part in progress(parts, world):
            put_aside(aside, part, artist)
        world.everyone(None)  # the last batch has been written
        if world.is_main:
            write(collect(aside, plain(cfg, "n", int), batch=cfg.batch), Path(cfg.out), name(cfg, step))
            shutil.rmtree(aside)


@dataclass(frozen=True, kw_only=True)
class Artist:
    """A trained model with a sampler, a seed and the precision in which it is called."""

    model: Preconditioned
    sampler: Sampler
    shape: tuple[int, int, int]
    seed: int
    precision: Precision
    device: torch.device

    def trajectory(self, part: range) -> Iterator[Step]:
        """The sampler's steps for the images of these numbers."""
        return trajectory(self.model, self.sampler, shape=self.shape, indices=part, seed=self.seed, device=self.device)

    def draw(self, part: range) -> torch.Tensor:
        """The images of these numbers, uint8 (len(part), C, H, W) on the CPU."""
        with self.precision.autocast(self.device):
            return to_uint8(last(self.trajectory(part)).x).cpu()


def prepare(cfg: DictConfig, world: World) -> tuple[Artist, int]:
    """All that the images are a function of, checked, and the step of the checkpoint they come from."""
    folder = RunFolder(Path(cfg.run))
    config = folder.config()
    state = load(folder.checkpoint(cfg.checkpoint), world.device)
    averages = state["averages"]
    if not 0 <= plain(cfg, "ema", int) < len(averages):
        raise ValueError(f"ema: {cfg.ema!r} is not accepted; the run has {len(averages)}, counted from 0")
    model = make_model(config, world.device)
    model.load_state_dict(averages[cfg.ema])
    precision = best_precision(world.device) if cfg.precision == "auto" else cfg.precision
    artist = Artist(
        model=model.eval().requires_grad_(False), sampler=build(cfg.sampler, key="sampler"), shape=tuple(config.data.shape),
        seed=plain(cfg, "seed", int), precision=Precision(name=precision), device=world.device)
    with naming("sampler."):  # the samplers check their values when they are called, before any work
        artist.trajectory(range(1))
    return artist, int(state["step"])


def name(cfg: DictConfig, step: int) -> str:
    """A file name that tells apart the images of other samplers, settings, averages and checkpoints of a run."""
    hydra = HydraConfig.get()
    settings = [override[len("sampler"):].lstrip("./").replace("/", ".") for override in hydra.overrides.task
                if override.startswith(("sampler.", "sampler/"))]
    parts = [hydra.runtime.choices["sampler"], *sorted(settings), f"n{cfg.n}", f"seed{cfg.seed}", f"step{step}"]
    return "-".join([*parts, *([f"ema{cfg.ema}"] if cfg.ema else [])])


def fingerprint(cfg: DictConfig, step: int, artist: Artist) -> str:
    """A name for all that the batches put aside are a function of."""
    what = [OmegaConf.to_container(cfg.sampler, resolve=True), artist.seed, cfg.batch, cfg.ema, step, artist.precision.name,
            artist.device.type]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def put_aside(folder: Path, part: range, artist: Artist) -> None:
    """Draws a batch and writes it, unless that was done before."""
    path = folder / batch_name(part)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, artist.draw(part).numpy())
        write_atomically(path, buffer.getbuffer())


def collect(folder: Path, count: int, *, batch: int) -> torch.Tensor:
    """The batches put aside in order, uint8 (count, C, H, W)."""
    parts = batches_of(count, batch=batch, rank=0, world=1)
    return torch.cat([torch.from_numpy(np.load(folder / batch_name(part))) for part in parts])


def batch_name(part: range) -> str:
    """The file of one batch: the numbers of its images."""
    return f"{part.start:09d}-{part.stop:09d}.npy"


def progress(parts: list[range], world: World) -> Iterator[range]:
    """The batches of this process, with a bar on rank 0."""
    with tqdm(total=sum(map(len, parts)), unit="img", desc="sample", disable=not world.is_main, dynamic_ncols=True) as bar:
        for part in parts:
            yield part
            bar.update(len(part))


def write(images: torch.Tensor, folder: Path, name: str) -> None:
    """Writes uint8 images (n, C, H, W) as `images` (n, H, W, C) in an .npz, and the first hundred as a picture."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.permute(0, 2, 3, 1).numpy())
    write_atomically(folder / f"{name}.npz", buffer.getbuffer())
    save_grid(to_float(images[:100]), folder / f"{name}.png")
    print(f"{len(images)} images: {folder / name}.npz, picture: {folder / name}.png", flush=True)


if __name__ == "__main__":
    run(main, config="sample")
