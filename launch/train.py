#!/usr/bin/env python3
"""Trains an energy: `python launch/train.py [overrides]`, or `torchrun --nproc-per-node N launch/train.py [overrides]`.

A run whose folder holds a checkpoint goes on from it. Ctrl-C, SIGTERM and SIGUSR2 save at the next step and leave.
"""
from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

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
from ebm.train.events import Calibrated, HeldOut, Log, Preview, Save
from ebm.train.metrics import Metrics
from ebm.train.precision import Precision
from ebm.train.trainer import Event, NonFiniteError, Trainer
from launch.build import best_precision, build, naming, plain
from launch.clock import Start
from launch.entry import checking, refuse, run
from launch.faults import recorded, watchdog
from launch.job import STOP_SIGNALS, verdict
from launch.preflight import meeting, preflight, readable
from launch.run import RunFolder


def main(cfg: DictConfig) -> None:
    """Trains one run to its end, or to the next step after a signal asks it to stop."""
    asked = listen()
    start = Start()
    start.ended("imports")
    with contextlib.ExitStack() as stack:
        stack.enter_context(recorded(Path(cfg.run)))
        with checking(), meeting():
            seconds = {name: plain(cfg, name, float, least=1) for name in ("timeout_seconds", "peers_seconds")}
            world = stack.enter_context(join(device=cfg.device, **seconds))
        start.ended("process group")
        with checking(world):
            cfg = resolved(cfg, world)
            folder = RunFolder(Path(cfg.run))
            limits = {name: plain(cfg, f"preflight.{name}", float, least=0) for name in cfg.preflight}
        with checking():  # it asks every process itself
            readable(world, Path(cfg.data.train))
        with checking(world):
            train, test = datasets(cfg)
            cfg.data.sha256, cfg.data.shape = train.manifest.sha256, list(train.shape)  # what the run is a function of
            trainer = make_trainer(cfg, world, folder, train, test)
            trainer.stop_asked = lambda: bool(asked)
            hang = plain(cfg, "hang_seconds", float, least=1)
            batches(cfg, trainer, train)  # checks its values
        start.ended("data and model")
        with checking():
            preflight(world, folder=folder.path, **limits)
        start.ended("preflight")
        with checking(world):
            path = begin(cfg, folder, stack) if world.is_main else None
        path = world.share(path)
        with checking(world):
            resume(trainer, folder, path)
        start.ended("checkpoint")
        beat = stack.enter_context(watchdog(folder.path, hang))
        trainer.alive = first_steps(beat, start, trainer, Metrics(folder.metrics_file))
        try:
            done = trainer.fit(batches(cfg, trainer, train))
        except NonFiniteError as error:
            refuse(str(error), code=1, world=world)
        if not done and world.is_main:
            verdict("again")
        world.everyone(None)  # nobody leaves before rank 0 has saved: the first to leave ends all
        if world.is_main:
            how = "trained" if done else "stopped"
            print(f"{how} at step {trainer.step} of {trainer.budget.steps}: {folder.path}", flush=True)
    if not done:  # as a shell reports a signal, so that what was to follow the training does not
        raise SystemExit(128 + (asked or [signal.SIGTERM])[-1])


def first_steps(beat: Callable[[], None], start: Start, trainer: Trainer, metrics: Metrics) -> Callable[[], None]:
    """``beat``, which also notes how long the start has taken as soon as the first step is over."""
    begun = trainer.step

    def alive() -> None:
        beat()
        if "first step" in start.parts:
            return
        start.ended("first batch" if trainer.step == begun else "first step")
        if "first step" in start.parts and trainer.world.is_main:
            metrics.write("start", step=begun, seconds=round(start.last, 2), **start.parts)

    return alive


def listen() -> list[int]:
    """The signals that have asked this process to stop, as they come; a second Ctrl-C ends it at once."""
    asked: list[int] = []

    def take(received: int, frame: FrameType | None) -> None:
        # torchrun passes on the Ctrl-C that its workers have had from the terminal: there the second means nothing.
        if received == signal.SIGINT and asked and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.default_int_handler(received, frame)
        if not asked and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping: this step is finished and saved first\n")  # print is not safe in a handler
        asked.append(received)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, take)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a study's jobs start with them blocked
    return asked


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
    torch.manual_seed(plain(cfg, "seed", int))
    model: Preconditioned = build(cfg.model, key="model")
    if plain(cfg, "channels_last", bool):
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def make_trainer(cfg: DictConfig, world: World, folder: RunFolder, train: Dataset, test: Dataset | None) -> Trainer:
    """Everything that a run is made of, built and checked before the first image is read."""
    budget: Budget = build(cfg.budget, key="budget")
    model = make_model(cfg, world.device)
    check_shapes(model, train.shape)
    averages = [Average(model, build(rule, key=f"average.rules[{i}]")) for i, rule in enumerate(cfg.average.rules)]
    if not averages:
        raise ValueError("average.rules: [] is not accepted; it must name at least one average")
    if plain(cfg, "compile", bool):
        model.compile()
    metrics = Metrics(folder.metrics_file)
    sampler = build(cfg.sampler, key="sampler")
    with naming("sampler."):  # the samplers check their values when they are called, before any work
        trajectory(model, sampler, shape=train.shape, indices=[0], seed=0, device=world.device)
    held_out = HeldOut(dataset=test, count=min(cfg.save.held_out, test.count), batch=100, seed=cfg.seed) if test else None
    save = Save(checkpoints=folder.checkpoints(plain(cfg, "save.keep", int, least=1)), metrics=metrics, held_out=held_out)
    preview = Preview(sampler=sampler, shape=train.shape, count=plain(cfg, "preview.count", int, least=1),
                      batch=plain(cfg, "preview.batch", int, least=1), seed=cfg.seed,
                      folder=folder.path / "previews")
    every, calibrated = plain(cfg, "diagnose.every", int, least=1), calibration(cfg, test, metrics)
    with naming("budget."):
        budget.pieces(world.size)
    make_optimizer = build(cfg.optimizer, key="optimizer")
    with naming("optimizer: "):  # torch names no key
        optimizer = make_optimizer(model.parameters())
    return Trainer(
        model=model, averages=averages, objective=build(cfg.objective, key="objective"),
        schedule=build(cfg.schedule, key="schedule"), optimizer=optimizer,
        rate=build(cfg.rate, key="rate"), budget=budget, precision=Precision(name=cfg.precision), seed=cfg.seed, world=world,
        events=[Event(every=plain(cfg, "log_every", int, least=1), action=Log(metrics=metrics), urgent=True),
                Event(every=plain(cfg, "save.every", int, least=1), action=save, urgent=True),
                Event(every=plain(cfg, "preview.every", int, least=1), action=preview, urgent=False),
                *([Event(every=every, action=calibrated, urgent=False)] if calibrated else [])],
    )


def calibration(cfg: DictConfig, test: Dataset | None, metrics: Metrics) -> Calibrated | None:
    """The doctor's part in training, where there are held-out images."""
    count, levels = plain(cfg, "diagnose.count", int, least=2), plain(cfg, "diagnose.levels", int, least=1)
    if test is None:
        return None
    return Calibrated(dataset=test, count=min(count, test.count), levels=levels, metrics=metrics, seed=cfg.seed)


def begin(cfg: DictConfig, folder: RunFolder, stack: contextlib.ExitStack) -> Path | None:
    """Makes the folder this run's own, as long as ``stack`` lasts; path of the checkpoint to go on from, if there is one.

    Rank 0 alone does this.
    """
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # its last start may still be dying on another node
    stack.enter_context(folder.held(wait_seconds=90 if requeued else 0))
    folder.claim(cfg)
    (folder.path / "failure.json").unlink(missing_ok=True)  # an earlier start's
    return folder.checkpoints().newest()


def resume(trainer: Trainer, folder: RunFolder, path: Path | None) -> None:
    """Takes up the checkpoint at ``path``, if there is one, and cuts the metrics back to it."""
    if path is not None:
        trainer.restore(load(path, trainer.world.device))
    if trainer.world.is_main:
        Metrics(folder.metrics_file).cut(trainer.step)
        if path is not None:
            print(f"resumed at step {trainer.step} from {path}", flush=True)


def batches(cfg: DictConfig, trainer: Trainer, train: Dataset) -> Iterator[torch.Tensor]:
    """This process's batches from the step at hand."""
    flip, workers = plain(cfg, "data.flip", bool), plain(cfg, "data.workers", int, least=1)
    resident_bytes = plain(cfg, "data.resident_bytes", int, least=0)
    with naming("budget."):
        return train.batches(
            batch=trainer.budget.batch, seed=cfg.seed, start=trainer.step, rank=trainer.world.rank, world=trainer.world.size,
            device=trainer.world.device, flip=flip, resident_bytes=resident_bytes, workers=workers, timeout=cfg.timeout_seconds)


if __name__ == "__main__":
    run(main, config="train")
