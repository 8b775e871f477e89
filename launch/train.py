#!/usr/bin/env python3
"""Trains an energy: `python launch/train.py [overrides]`, or `torchrun --nproc-per-node N launch/train.py [overrides]`.

A run whose folder holds a checkpoint goes on from it. Ctrl-C, SIGTERM and SIGUSR2 save at the next step and leave.
"""
from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

import torch
from omegaconf import DictConfig, OmegaConf

from ebm.data import Dataset
from ebm.energy import Preconditioned, check_shapes
from ebm.sampling import trajectory
from ebm.train.budget import Budget
from ebm.train.checkpoint import load
from ebm.train.distributed import World, join
from ebm.train.ema import Average
from ebm.train.events import HeldOut, Log, Preview, Save
from ebm.train.metrics import Metrics
from ebm.train.precision import Precision
from ebm.train.trainer import Event, NonFiniteError, Trainer
from launch.build import best_precision, build, plain
from launch.entry import checking, refuse, run
from launch.run import RunFolder


def main(cfg: DictConfig) -> None:
    """Trains one run to its end, or to the next step after a signal asks it to stop."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, _: asked.append(received))
    with checking():
        context = join(device=cfg.device, timeout_seconds=plain(cfg, "timeout_seconds", float, least=1))
        world = context.__enter__()
    try:
        with checking():
            cfg = resolved(cfg, world)
            folder = RunFolder(Path(cfg.run))
            train, test = datasets(cfg)
            cfg.data.sha256, cfg.data.shape = train.manifest.sha256, list(train.shape)  # what the run is a function of
            trainer = make_trainer(cfg, world, folder, train, test)
            trainer.stop_asked = lambda: bool(asked)
            batches(cfg, trainer, train)  # checks its values
            if world.is_main:
                folder.claim(cfg)
            resume(trainer, folder, Path(world.share(str(newest(folder, world)))))
        done = trainer.fit(batches(cfg, trainer, train))
        if world.is_main:
            how = "trained" if done else "stopped"
            print(f"{how} at step {trainer.step} of {trainer.budget.steps}: {folder.path}", flush=True)
    except NonFiniteError as error:
        refuse(str(error), code=1)
    finally:
        context.__exit__(None, None, None)


def resolved(cfg: DictConfig, world: World) -> DictConfig:
    """The config with every reference followed, `auto` decided, and without Hydra's own part."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    if container["precision"] == "auto":
        container["precision"] = best_precision(world.device)
    return OmegaConf.create(container)


def datasets(cfg: DictConfig) -> tuple[Dataset, Dataset | None]:
    """The training images, and the held-out ones where there are any of the same size."""
    train = Dataset.open(cfg.data.train)
    test = Dataset.open(cfg.data.test) if cfg.data.test and plain(cfg, "save.held_out", int, least=0) else None
    if test is not None and test.shape != train.shape:
        raise ValueError(f"data.test: images of {test.shape} are not accepted; those of data.train are {train.shape}")
    return train, test


def make_model(cfg: DictConfig, device: torch.device) -> Preconditioned:
    """The model of a config on its device, with the same first parameters on every process."""
    torch.manual_seed(cfg.seed)
    model: Preconditioned = build(cfg.model, key="model")
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def make_trainer(cfg: DictConfig, world: World, folder: RunFolder, train: Dataset, test: Dataset | None) -> Trainer:
    """Everything that a run is made of, built and checked before the first image is read."""
    budget: Budget = build(cfg.budget, key="budget")
    plain(cfg, "seed", int)
    model = make_model(cfg, world.device)
    check_shapes(model, train.shape)
    averages = [Average(model, build(rule, key=f"average.rules[{i}]")) for i, rule in enumerate(cfg.average.rules)]
    if not averages:
        raise ValueError("average.rules: [] is not accepted; it must name at least one average")
    if cfg.compile:
        model.compile()
    metrics = Metrics(folder.metrics_file)
    sampler = build(cfg.sampler, key="sampler")
    trajectory(model, sampler, shape=train.shape, indices=[0], seed=0, device=world.device)  # checks its values
    held_out = HeldOut(dataset=test, count=min(cfg.save.held_out, test.count), batch=100, seed=cfg.seed) if test else None
    save = Save(checkpoints=folder.checkpoints(plain(cfg, "save.keep", int, least=1)), metrics=metrics, held_out=held_out)
    preview = Preview(sampler=sampler, shape=train.shape, count=plain(cfg, "preview.count", int, least=1),
                      batch=plain(cfg, "preview.batch", int, least=1), seed=cfg.seed,
                      folder=folder.path / "previews", device=world.device)
    return Trainer(
        model=model, averages=averages, objective=build(cfg.objective, key="objective"),
        schedule=build(cfg.schedule, key="schedule"), optimizer=build(cfg.optimizer, key="optimizer")(model.parameters()),
        rate=build(cfg.rate, key="rate"), budget=budget, precision=Precision(name=cfg.precision), seed=cfg.seed, world=world,
        events=[Event(every=plain(cfg, "log_every", int, least=1), action=Log(metrics=metrics), urgent=True),
                Event(every=plain(cfg, "save.every", int, least=1), action=save, urgent=True),
                Event(every=plain(cfg, "preview.every", int, least=1), action=preview, urgent=False)],
    )


def newest(folder: RunFolder, world: World) -> Path | str:
    """Path of the checkpoint to go on from, or "" where there is none; rank 0 looks, since looking reads it whole."""
    return (folder.checkpoints().newest() if world.is_main else None) or ""


def resume(trainer: Trainer, folder: RunFolder, path: Path) -> None:
    """Takes up the checkpoint at ``path``, if it is one, and cuts the metrics back to it."""
    if path.name:
        trainer.restore(load(path, trainer.world.device))
    if trainer.world.is_main:
        Metrics(folder.metrics_file).cut(trainer.step)
        if path.name:
            print(f"resumed at step {trainer.step} from {path}", flush=True)


def batches(cfg: DictConfig, trainer: Trainer, train: Dataset) -> Iterator[torch.Tensor]:
    """This process's batches from the step at hand."""
    return train.batches(
        batch=trainer.budget.batch, seed=cfg.seed, start=trainer.step, rank=trainer.world.rank, world=trainer.world.size,
        device=trainer.world.device, flip=plain(cfg, "data.flip", bool),
        resident_bytes=plain(cfg, "data.resident_bytes", int, least=0), workers=plain(cfg, "data.workers", int, least=1),
        timeout=cfg.timeout_seconds)


if __name__ == "__main__":
    run(main, config="train")
