#!/usr/bin/env python3
"""Draws samples from a trained run: `python launch/sample.py run=<folder> sampler=<name> n=<count> seed=<int>`.

Images depend only on (seed, index), so any number of processes (`torchrun`) draws the same ones (on CPUs, bit for bit only
with equal thread counts). Finished batches are cached, so an interrupted run resumes.
"""
from __future__ import annotations

import contextlib
import gc
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed
if __name__ == "__main__":
    gc.disable()  # until all is imported: launch.entry turns it on again

from omegaconf import DictConfig

from launch.config.build import make_folder, place, plain
from launch.drawing.sampling import check_agreement, draw_batches, prepare, write_samples
from launch.drawing.task import assign_task
from launch.entry import run
from launch.job.faults import checking, record_failures
from launch.job.preflight import processes
from launch.job.process import STOP_SIGNALS
from launch.tracking.track import publish, tracking_of


def main(cfg: DictConfig) -> None:
    """Draws the images and writes them as one .npz and one .png."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a study's jobs start with them blocked
    with contextlib.ExitStack() as stack:
        with checking():
            place(cfg, "run")
            out = place(cfg, "out")
        stack.enter_context(record_failures(out, key="out"))
        world = stack.enter_context(processes(cfg))
        with checking(world):
            tracking = tracking_of(cfg)
            pipeline = prepare(cfg, world)
            pipeline = assign_task(cfg, pipeline, lambda other: prepare(other, world))
            for key in ("n", "batch"):
                plain(cfg, key, int, least=1)
        with checking():  # it asks every process by itself
            check_agreement(pipeline, world)
        with checking(world):
            if world.is_main:
                make_folder(cfg, "out")
        batches = draw_batches(cfg, pipeline, world)
        if world.is_main:
            protocol = write_samples(cfg, pipeline, batches=batches)
            (out / "failure.json").unlink(missing_ok=True)  # an earlier start's
            publish(tracking, protocol, name=f"{Path(cfg.run).resolve().name} {protocol.stem}", kind="sample", config=cfg)


if __name__ == "__main__":
    run(main, config="sample")
