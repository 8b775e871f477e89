#!/usr/bin/env python3
"""Measures a trained run: `python launch/evaluate.py run=<folder> metrics=[quality,likelihood,…] n=<count> sampler=<name>`.

Any number of processes (`torchrun`) gives the same samples and figures. Each metric writes a record: its figures and the
protocol by which they were measured. An interrupted evaluation resumes.
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
from omegaconf import DictConfig

from ebm.data import Dataset
from ebm.files import write_atomically
from ebm.train.distributed import World
from launch.config.build import make_folder, place, plain
from launch.drawing.batches import digest
from launch.drawing.sampling import check_agreement, identity, prepare, sample_stem
from launch.entry import run
from launch.job.faults import BAD_INPUT, Refused, checking, record_failures, recording
from launch.job.preflight import processes
from launch.job.process import STOP_SIGNALS, leave_verdict
from launch.metrics.evaluation import Metric, Work, write_record
from launch.metrics.selection import naming_argument, select_metrics
from launch.run.folder import RunFolder
from launch.run.make import open_dataset
from launch.tracking.track import Tracking, publish, tracking_of


def main(cfg: DictConfig) -> None:
    """Measures the run by each metric asked for, and writes a record of each."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a study's jobs start with them blocked
    with contextlib.ExitStack() as stack:
        with checking():
            place(cfg, "run")
            results = "out" if cfg.label is None else "samples"  # in a study, a point is its samples
            failures = place(cfg, results)
        stack.enter_context(record_failures(failures, key=results))
        with checking():
            metrics = select_metrics(cfg)
        world = stack.enter_context(processes(cfg))
        with checking(world):
            tracking = tracking_of(cfg)
            work = prepare_work(cfg, world)
            if cfg.label is not None and Path(plain(cfg, "label", str)).name != cfg.label:
                raise ValueError(f"label: {cfg.label!r} is not accepted; it is part of a file's name")
            for name, metric in metrics.items():
                with naming_argument(name, metric):
                    metric.check(work)
        with checking():  # it asks every process by itself
            check_agreement(work.pipeline, world)
        if work.given:
            work.samples()  # raises before any work where they can't be measured
        with checking(world):
            if world.is_main:
                make_folder(cfg, "out")
        paths = [evaluate(work, name, metric, tracking) for name, metric in metrics.items()]
        if world.is_main:
            (failures / "failure.json").unlink(missing_ok=True)  # an earlier start's
        if world.is_main and cfg.label is not None:
            done = json.dumps([path.name for path in paths]).encode()
            write_atomically(Path(cfg.out) / f"evaluation-{cfg.label}.json", done)


def prepare_work(cfg: DictConfig, world: World) -> Work:
    """The run with its data; raises ValueError or OSError where something is missing or unusable."""
    pipeline = prepare(cfg, world)
    folder = RunFolder(Path(cfg.run))
    config = folder.config()
    plain(cfg, "again", bool)
    train = Dataset.open(config.data.train) if cfg.train is None else open_dataset(cfg, "train")
    own = None if config.data.test is None else Dataset.open(config.data.test)
    test = own if cfg.held_out is None else open_dataset(cfg, "held_out")
    for key, data in {"train": train, "held_out": test}.items():
        if data is not None and data.shape != pipeline.shape:
            raise ValueError(f"{key}: images of {data.shape} are not accepted; the run's are {pipeline.shape}")
    return Work(pipeline=pipeline, world=world, cfg=cfg, run_config=config, train=train, held_out=test,
                n=plain(cfg, "n", int, least=1), batch=plain(cfg, "batch", int, least=1))


def evaluate(work: Work, name: str, metric: Metric, tracking: Tracking) -> Path:
    """Measures by one metric unless its record exists; the record's path."""
    cfg = work.cfg
    stem = f"{name}-{subject_label(work, metric)}-{digest(record_identity(work, metric))[:8]}"
    path = Path(cfg.out) / f"{stem}.json"
    if work.world.broadcast_object(path.exists() and not cfg.again):
        if work.world.is_main:
            print(f"{name}: measured before: {path}", flush=True)
        return path
    work = replace(work, stem=stem)
    try:
        # Metrics of the model itself are computed in float32; cuDNN's default on a GPU is TF32.
        cudnn = torch.backends.cudnn
        flags = cudnn.flags(enabled=True, deterministic=cudnn.deterministic, allow_tf32=metric.of_samples)
        with flags, recording(work.world, key="sample.cuda_graph"), naming_argument(name, metric):
            figures = metric(work)
    except ValueError as error:  # the other processes notice that this one has ended
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        leave_verdict("failed")  # it would fail again
        raise Refused(BAD_INPUT, str(error)) from error
    finally:
        work.pipeline.recorded.release()
    if metric.of_samples:
        work.samples()  # on every process, as the record describes them
    work.world.barrier()  # all processes have read the batches
    if figures is not None and work.world.is_main:
        write_record(work, name, figures, of_samples=metric.of_samples)
        print(f"{name}: {format_values(figures.values)}\n  {path}", flush=True)
        shutil.rmtree(work.batches, ignore_errors=True)
        publish(tracking, path, name=f"{Path(cfg.run).resolve().name} {stem}", kind="evaluate", config=cfg)
    return path


def subject_label(work: Work, metric: Metric) -> str:
    """The part of a file name that identifies the samples, or the model alone."""
    if metric.of_samples:
        return Path(work.cfg.samples).stem if work.given else sample_stem(work.cfg, work.pipeline.step)
    return f"step{work.pipeline.step}" + (f"-ema{work.cfg.ema}" if work.cfg.ema else "")


def record_identity(work: Work, metric: Metric) -> list[Any]:
    """All that a figure depends on, except the code."""
    cfg, held_out, sampled = work.cfg, work.held_out, identity(work.cfg, work.pipeline)
    # Records are found by the digest of this list, so its order must stay.
    what = [repr(metric), *(sampled[key] for key in ("checkpoint", "ema", "seed", "precision")), work.world.device.type,
            work.train.manifest.sha256, held_out.manifest.sha256 if held_out else None]
    if metric.of_samples:
        what += [*(sampled[key] for key in ("settings", "n", "batch")),
                 work.samples().subject["sha256"] if work.given else str(Path(cfg.samples).resolve())]
    return [*what, *(metric.inputs(work) if hasattr(metric, "inputs") else [])]


def format_values(values: dict[str, float]) -> str:
    """Numbers as text, each with its standard error where there is one."""
    told = []
    for key, value in values.items():
        if not key.endswith("_stderr"):
            error = values.get(f"{key}_stderr")
            shown = f"{value:.5g}" if isinstance(value, (int, float)) and math.isfinite(value) else str(value)
            told.append(f"{key} {shown}" + (f" ± {error:.2g}" if error is not None else ""))
    return ", ".join(told)


if __name__ == "__main__":
    run(main, config="evaluate")
