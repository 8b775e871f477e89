#!/usr/bin/env python3
"""Draws samples from a trained run: `python launch/sample.py run=<folder> sampler=<name> n=<count> seed=<int>`.

Image i depends on the seed and on i alone, so any number of processes (`torchrun`) draws the same images; to the last bit on
a CPU where each has as many threads, whose number orders a convolution's sums. Batches are put aside as they are drawn: what
was interrupted goes on from there.
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

from ebm.sampling import batches_of
from launch.config.build import place, plain
from launch.drawing.sampling import agreed, drawn_aside, gathered, prepare
from launch.drawing.task import assigned
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
        stack.enter_context(record_failures(out))
        world = stack.enter_context(processes(cfg))
        with checking(world):
            tracking = tracking_of(cfg)
            artist, step = prepare(cfg, world)
            artist = assigned(cfg, artist, lambda other: prepare(other, world))
            parts = batches_of(plain(cfg, "n", int), batch=plain(cfg, "batch", int), rank=world.rank, world=world.size)
        with checking():  # it asks every process itself
            agreed(artist, world)
        with checking(world):
            if world.is_main:
                out.mkdir(parents=True, exist_ok=True)  # before the work: it may not be allowed
        aside = drawn_aside(cfg, artist, step, world, parts=parts)
        if world.is_main:
            protocol = gathered(cfg, artist, step, aside=aside)
            (out / "failure.json").unlink(missing_ok=True)  # an earlier start's
            publish(tracking, protocol, name=f"{Path(cfg.run).resolve().name} {protocol.stem}", kind="sample", config=cfg)


if __name__ == "__main__":
    run(main, config="sample")
