#!/usr/bin/env python3
"""Measures a trained run: `python launch/evaluate.py run=<folder> metrics=[quality,likelihood,…] n=<count> sampler=<name>`.

Any number of processes (`torchrun`) gives the same samples and the same figures. Each metric leaves a record: its figures, and
the protocol by which they were measured. What was interrupted goes on from there.
"""
from __future__ import annotations

import contextlib
import gc
import json
import math
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed
if __name__ == "__main__":
    gc.disable()  # until all is imported: launch.entry turns it on again

import torch
from omegaconf import DictConfig, OmegaConf

from ebm.data import Dataset
from ebm.files import write_atomically
from ebm.train.distributed import World
from launch.config.build import place, plain
from launch.drawing.sampling import agreed, prepare
from launch.drawing.sampling import name as sample_name
from launch.entry import run
from launch.job.faults import BAD_INPUT, Refused, checking, record_failures
from launch.job.preflight import processes
from launch.job.process import STOP_SIGNALS, leave_verdict
from launch.metrics.chosen import chosen, named
from launch.metrics.evaluation import Metric, Work, digest, write
from launch.run.folder import RunFolder
from launch.run.make import open_dataset
from launch.tracking.track import Tracking, publish, tracking_of


def main(cfg: DictConfig) -> None:
    """Measures the run by each metric asked for, and writes a record of each."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a study's jobs start with them blocked
    with contextlib.ExitStack() as stack:
        with checking():
            place(cfg, "run")
            failures = place(cfg, "out" if cfg.label is None else "samples")  # a point of a study is its samples
        stack.enter_context(record_failures(failures))
        with checking():
            metrics = chosen(cfg)
        world = stack.enter_context(processes(cfg))
        with checking(world):
            tracking = tracking_of(cfg)
            work = prepared(cfg, world)
            if cfg.label is not None and Path(plain(cfg, "label", str)).name != cfg.label:
                raise ValueError(f"label: {cfg.label!r} is not accepted; it is part of a file's name")
            for name, metric in metrics.items():
                with named(name, metric):
                    metric.check(work)
        with checking():  # it asks every process itself
            agreed(work.artist, world)
        if work.given:
            work.samples()  # refused before any work, where they can't be measured
        with checking(world):
            if world.is_main:
                Path(cfg.out).mkdir(parents=True, exist_ok=True)  # before the work: it may not be allowed
        paths = [evaluated(work, name, metric, tracking) for name, metric in metrics.items()]
        if world.is_main:
            (failures / "failure.json").unlink(missing_ok=True)  # an earlier start's
        if world.is_main and cfg.label is not None:
            done = json.dumps([path.name for path in paths]).encode()
            write_atomically(Path(cfg.out) / f"evaluation-{cfg.label}.json", done)


def prepared(cfg: DictConfig, world: World) -> Work:
    """The run with its data; raises ValueError or OSError where something is missing."""
    artist, step = prepare(cfg, world)
    folder = RunFolder(Path(cfg.run))
    config = folder.config()
    plain(cfg, "again", bool)
    train = Dataset.open(config.data.train) if cfg.train is None else open_dataset(cfg, "train")
    own = None if config.data.test is None else Dataset.open(config.data.test)
    test = own if cfg.held_out is None else open_dataset(cfg, "held_out")
    for key, data in {"train": train, "held_out": test}.items():
        if data is not None and data.shape != artist.shape:
            raise ValueError(f"{key}: images of {data.shape} are not accepted; the run's are {artist.shape}")
    return Work(artist=artist, world=world, cfg=cfg, config=config, train=train, held_out=test,
                n=plain(cfg, "n", int, least=1), batch=plain(cfg, "batch", int, least=1), step=step,
                checkpoint=artist.checkpoint)


def evaluated(work: Work, name: str, metric: Metric, tracking: Tracking) -> Path:
    """Measures by one metric unless there is a record of just that; the record's place."""
    cfg = work.cfg
    stem = f"{name}-{label(work, metric)}-{digest(request(work, metric))[:8]}"
    path = Path(cfg.out) / f"{stem}.json"
    if work.world.share(path.exists() and not cfg.again):
        if work.world.is_main:
            print(f"{name}: measured before: {path}", flush=True)
        return path
    work = replace(work, stem=stem)
    try:
        # What reads the model itself says that it is of float32, and cuDNN's own default on a GPU is TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=metric.of_samples), named(name, metric):
            figures = metric(work)
    except ValueError as error:  # the others notice that this process is gone
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        leave_verdict("failed")  # it would end so again
        raise Refused(BAD_INPUT, str(error)) from error
    if metric.of_samples:
        work.samples()  # on every process, since the record tells of them
    work.world.everyone(None)  # nobody reads what was put aside any more
    if figures is not None and work.world.is_main:
        write(work, name, figures, of_samples=metric.of_samples)
        print(f"{name}: {words(figures.values)}\n  {path}", flush=True)
        shutil.rmtree(work.aside, ignore_errors=True)
        publish(tracking, path, name=f"{Path(cfg.run).resolve().name} {stem}", kind="evaluate", config=cfg)
    return path


def label(work: Work, metric: Metric) -> str:
    """What a figure is about, as part of a file's name: the samples, or the model alone."""
    if metric.of_samples:
        return Path(work.cfg.samples).stem if work.given else sample_name(work.cfg, work.step)
    return f"step{work.step}" + (f"-ema{work.cfg.ema}" if work.cfg.ema else "")


def request(work: Work, metric: Metric) -> list[Any]:
    """All that a figure depends on, but for the code."""
    cfg, held_out = work.cfg, work.held_out
    what = [repr(metric), work.checkpoint, cfg.ema, work.artist.seed, work.artist.precision.name, work.world.device.type,
            work.train.manifest.sha256, held_out.manifest.sha256 if held_out else None]
    if metric.of_samples:
        what += [OmegaConf.to_container(cfg.sampler, resolve=True), work.n, work.batch,
                 work.samples().subject["sha256"] if work.given else str(Path(cfg.samples).resolve())]
    return [*what, *(metric.inputs(work) if hasattr(metric, "inputs") else [])]


def words(values: dict[str, float]) -> str:
    """Numbers for people, each with its standard error where there is one."""
    told = []
    for key, value in values.items():
        if not key.endswith("_stderr"):
            error = values.get(f"{key}_stderr")
            shown = f"{value:.5g}" if isinstance(value, (int, float)) and math.isfinite(value) else str(value)
            told.append(f"{key} {shown}" + (f" ± {error:.2g}" if error is not None else ""))
    return ", ".join(told)


if __name__ == "__main__":
    run(main, config="evaluate")
