#!/usr/bin/env python3
"""Draws samples from a trained run: `python launch/sample.py run=<folder> sampler=<name> n=<count> seed=<int>`.

Image i depends on the seed and on i alone, so any number of processes (`torchrun`) draws the same images.
"""
from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from ebm.data import to_uint8
from ebm.energy import Preconditioned
from ebm.pictures import save_grid
from ebm.sampling import Sampler, batches_of, draw, trajectory
from ebm.train.checkpoint import load, write_atomically
from ebm.train.distributed import World, join
from ebm.train.events import interleave
from ebm.train.precision import Precision
from launch.build import best_precision, build, plain
from launch.entry import checking, run
from launch.run import RunFolder
from launch.train import make_model


def main(cfg: DictConfig) -> None:
    """Draws the images and writes them as one .npz and one .png."""
    name = f"{HydraConfig.get().runtime.choices['sampler']}-n{cfg.n}-seed{cfg.seed}"
    with checking():
        context = join(device=cfg.device, timeout_seconds=plain(cfg, "timeout_seconds", float, least=1))
        world = context.__enter__()
    try:
        with checking():
            model, shape = trained(cfg, world.device)
            sampler: Sampler = build(cfg.sampler, key="sampler")
            trajectory(model, sampler, shape=shape, indices=[0], seed=0, device=world.device)  # checks its values
            parts = batches_of(plain(cfg, "n", int), batch=plain(cfg, "batch", int), rank=world.rank, world=world.size)
        images = [sample(cfg, world, model, sampler, shape, part) for part in progress(parts, world)]
        whole = interleave(world.gather(images))
        if world.is_main:
            write(torch.cat(whole), Path(cfg.out), name)
    finally:
        context.__exit__(None, None, None)


def trained(cfg: DictConfig, device: torch.device) -> tuple[Preconditioned, tuple[int, int, int]]:
    """One average of a run's model, and the shape (C, H, W) of its images."""
    folder = RunFolder(Path(cfg.run))
    config = folder.config()
    state = load(folder.checkpoint(cfg.checkpoint), device)
    averages = state["averages"]
    if not 0 <= plain(cfg, "ema", int) < len(averages):
        raise ValueError(f"ema: {cfg.ema!r} is not accepted; the run has {len(averages)}, counted from 0")
    model = make_model(config, device)
    model.load_state_dict(averages[cfg.ema])
    shape: tuple[int, int, int] = tuple(config.data.shape)
    return model.eval().requires_grad_(False), shape


def sample(
    cfg: DictConfig, world: World, model: Preconditioned, sampler: Sampler, shape: tuple[int, int, int], part: range
) -> torch.Tensor:
    """The images of one batch, uint8 (len(part), C, H, W) on the CPU."""
    precision = Precision(name=best_precision(world.device) if cfg.precision == "auto" else cfg.precision)
    with precision.autocast(world.device):
        return to_uint8(draw(model, sampler, shape=shape, indices=part, seed=cfg.seed, device=world.device)).cpu()


def progress(parts: list[range], world: World) -> Iterator[range]:
    """The batches of this process, with a bar on rank 0."""
    with tqdm(total=sum(map(len, parts)), unit="img", desc="sample", disable=not world.is_main, dynamic_ncols=True) as bar:
        for part in parts:
            yield part
            bar.update(len(part))


def write(images: torch.Tensor, folder: Path, name: str) -> None:
    """Writes uint8 images (n, C, H, W) as `images` (n, H, W, C) in an .npz, and the first hundred as a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.permute(0, 2, 3, 1).numpy())
    write_atomically(folder / f"{name}.npz", buffer.getvalue())
    save_grid(images[:100].float() / 127.5 - 1, folder / f"{name}.png")
    print(f"{len(images)} images: {folder / name}.npz, picture: {folder / name}.png", flush=True)


if __name__ == "__main__":
    run(main, config="sample")
