#!/usr/bin/env python3
"""Trains an energy-based model: `python launch/train.py [overrides]`, or `torchrun --nproc-per-node N launch/train.py …`.

Resumes from the newest checkpoint in the run folder. Ctrl-C, SIGTERM or SIGUSR2 saves after the current step and exits.
"""
from __future__ import annotations

import contextlib
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed
if __name__ == "__main__":
    gc.disable()  # until all is imported: launch.entry turns it on again

from omegaconf import DictConfig

from ebm.train.checkpoint import load
from ebm.train.distributed import device_name
from ebm.train.metrics import Metrics
from ebm.train.trainer import NonFiniteError, Trainer
from launch.config.build import place
from launch.config.settings import setting
from launch.entry import run
from launch.job.clock import Start
from launch.job.faults import checking, record_failures, recording, refuse, watchdog
from launch.job.preflight import check_data, check_devices, check_node, processes
from launch.job.process import STOP_SIGNALS, job_number, leave_verdict, node_name
from launch.run.folder import RunFolder
from launch.run.make import find_init, load_init, make_batches, make_trainer, open_datasets, resolve
from launch.run.version import version
from launch.tracking.track import mirroring, tracking_of


def main(cfg: DictConfig) -> None:
    """Trains a run to its end, or until the step after a signal to stop."""
    asked = catch_stops()
    start = Start()
    start.ended("imports")
    with contextlib.ExitStack() as stack:
        with checking():
            folder = RunFolder(place(cfg, "run"))
        stack.enter_context(record_failures(folder.path))
        world = stack.enter_context(processes(cfg))
        start.ended("process group")
        with checking(world):
            cfg = resolve(cfg, world, before=folder.precision())
            images = place(cfg, "data.train")
            limits = {name: setting(cfg, f"preflight.{name}") for name in ("disk_gb", "write_mb_s")}
            memory_gb = setting(cfg, "preflight.memory_gb")
        cfg.precision = world.broadcast_object(cfg.precision)  # of several kinds of node, one choice
        with checking():  # it asks every process itself
            check_devices(world, memory_gb=memory_gb)
            check_data(world, images)
        with checking(world):
            train, test = open_datasets(cfg)
            cfg.data.sha256, cfg.data.shape = train.manifest.sha256, list(train.shape)  # what the run is a function of
            trainer = make_trainer(cfg, world, folder, train, test)
            trainer.stop_asked = lambda: bool(asked)
            tracking = tracking_of(cfg)
            hang = setting(cfg, "hang_seconds")
            make_batches(cfg, trainer, train)  # checks its values
        init = begin_from_init(cfg, trainer, folder)
        start.ended("data and model")
        with checking():
            check_node(world, folder=folder.path, **limits)
        start.ended("preflight")
        with checking(world):
            path = claim(cfg, folder, stack, steps=trainer.budget.steps) if world.is_main else None
        path = world.broadcast_object(path)
        with checking(world):
            resume(trainer, folder, path)
        start.ended("checkpoint")
        if world.is_main:
            name = folder.path.resolve().name
            mirror = stack.enter_context(mirroring(tracking, folder=folder.path, name=name, kind="train", config=cfg))
        beat = stack.enter_context(watchdog(folder.path, hang))
        metrics, begun = Metrics(folder.metrics_file), trainer.step
        trainer.alive = first_steps(beat, start, trainer, metrics, init=init)
        try:
            with recording(world):
                done = trainer.fit(make_batches(cfg, trainer, train))
        except NonFiniteError as error:  # of the sum of all processes, so that all end so
            refuse(str(error), code=1, world=world)
        # As a shell reports a signal, so that what was to follow the training does not.
        how, code = ("trained", 0) if done else ("stopped", 128 + (asked or [signal.SIGTERM])[-1])
        if world.is_main:
            if trainer.step > begun or not metrics.ended():  # the last start may have been killed before this record
                metrics.write("end", step=trainer.step, images=trainer.images, how=how)
            print(f"{how} at step {trainer.step} of {trainer.budget.steps}: {folder.path}", flush=True)
            if not done:
                leave_verdict("again")
                mirror.end(how, code=code)
        world.barrier()  # rank 0 must be done with all that before anyone exits: the first to exit ends all
    if code:
        raise SystemExit(code)


def first_steps(beat: Callable[[], None], start: Start, trainer: Trainer, metrics: Metrics, *,
                init: str | None) -> Callable[[], None]:
    """``beat``, which after the first step also records how long the start has taken, and the checkpoint whose weights it
    began with, if any."""
    begun, code = trainer.step, version() if trainer.world.is_main else ""

    def alive() -> None:
        beat()
        if "first step" in start.parts:
            return
        start.ended("first batch" if trainer.step == begun else "first step")
        if "first step" in start.parts and trainer.world.is_main:
            metrics.write("start", step=begun, images=begun * trainer.budget.batch, processes=trainer.world.size,
                          node=node_name(), device=device_name(trainer.world.device), job=job_number(), version=code,
                          seconds=round(start.last, 2), **start.parts, **({"init": init} if init else {}))

    return alive


def catch_stops() -> list[int]:
    """Catches the signals to stop and returns the list to which they are added; a second Ctrl-C ends the process at once."""
    asked: list[int] = []

    def take(received: int, frame: FrameType | None) -> None:
        # torchrun forwards the Ctrl-C that its workers have already had from the terminal: there a second one means nothing.
        if received == signal.SIGINT and asked and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.default_int_handler(received, frame)
        if not asked and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping after this step is finished and saved\n")  # print is not safe in a handler
        asked.append(received)

    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(stop, take)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a study's jobs start with them blocked
    return asked


def begin_from_init(cfg: DictConfig, trainer: Trainer, folder: RunFolder) -> str | None:
    """Gives a run without a checkpoint of its own the weights of the run `init`, if it names one: the same on every process.
    Returns the name of their checkpoint."""
    world = trainer.world
    with checking(world):
        begins = world.is_main and cfg.init is not None and folder.checkpoints().newest() is None
        path = find_init(cfg) if begins else None
    path = world.broadcast_object(path)
    if path is None:
        return None
    with checking(world):
        load_init(path, cfg, trainer.model, *(average.model for average in trainer.averages), device=world.device)
    if world.is_main:
        print(f"begins with the weights of {path}", flush=True)
    return path.name


def claim(cfg: DictConfig, folder: RunFolder, stack: contextlib.ExitStack, *, steps: int) -> Path | None:
    """Claims the folder for this run as long as ``stack`` lasts; the path of the checkpoint to resume from, if there is one.

    For rank 0 alone.
    """
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # its last start may still be dying on another node
    stack.enter_context(folder.held(wait_seconds=90 if requeued else 0))
    folder.claim(cfg, steps=steps, command=shlex.join(["python", "launch/train.py", *sys.argv[1:]]))
    (folder.path / "failure.json").unlink(missing_ok=True)  # an earlier start's
    return folder.checkpoints().newest()


def resume(trainer: Trainer, folder: RunFolder, path: Path | None) -> None:
    """Restores the checkpoint at ``path``, if there is one, and truncates the metrics to its step."""
    if path is not None:
        trainer.restore(load(path, trainer.world.device))
    if trainer.world.is_main:
        Metrics(folder.metrics_file).cut(trainer.step)
        if path is not None:
            print(f"resumed at step {trainer.step} from {path}", flush=True)


if __name__ == "__main__":
    run(main, config="train")
