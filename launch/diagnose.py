#!/usr/bin/env python3
"""Explains why a sampler fails on a run and how to cure it: `python launch/diagnose.py run=<folder> [sampler=…] [--try]`.

Writes diagnosis.json, diagnosis.png and diagnosis.txt to `out`. Runs as one process, on one device.
"""
from __future__ import annotations

import contextlib
import gc
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed
if __name__ == "__main__":
    gc.disable()  # until all is imported: launch.entry turns it on again

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ebm.data import Dataset
from ebm.diagnose.doctor import Diagnosis, Doctor
from ebm.diagnose.facts import Finding
from ebm.diagnose.reference import Reference
from ebm.diagnose.training import short_average, spread, unguided
from ebm.extras import extra
from ebm.schedule import NoiseSchedule
from ebm.train.budget import Budget
from ebm.train.distributed import World, join
from ebm.train.metrics import read
from launch.config.build import build, make_folder, place, plain
from launch.config.override import key
from launch.config.settings import setting
from launch.diagnosis.words import diagnosis_record, paragraph, write_diagnosis
from launch.drawing.sampling import prepare
from launch.entry import run
from launch.job.faults import checking, record_failures
from launch.run.folder import RunFolder
from launch.run.make import open_dataset
from launch.tracking.track import publish, tracking_of

ROUNDS = 3  # of prescribing and trying, at most


def main(cfg: DictConfig) -> None:
    """Diagnoses a sampler on a run, and with --try also the prescribed one."""
    with contextlib.ExitStack() as stack:
        with checking():
            place(cfg, "run")
            out = place(cfg, "out")
        stack.enter_context(record_failures(out, key="out"))
        with checking():
            timeout = setting(cfg, "timeout_seconds")
            world = stack.enter_context(join(device=cfg.device, timeout_seconds=timeout, peers_seconds=timeout))
            with extra("diagnose", "diagnoses"):
                from launch.diagnosis import figure
            if world.size > 1:
                raise ValueError(f"processes: {world.size} are not accepted; a diagnosis uses one, without torchrun")
        start = time.perf_counter()
        with checking(world):
            tracking = tracking_of(cfg)
            again = plain(cfg, "try", bool)
            doctor, sampler, about = make_doctor(cfg, world, stack.enter_context(figure.progress_bars()))
            make_folder(cfg, "out")
        with checking():
            before = doctor.diagnose(sampler)
            after, tried = try_cures(cfg, doctor, before) if again else (None, [])
        stack.close()
        if again and after is None:
            print("--try: nothing to try, as no other sampler is prescribed", flush=True)
        about |= {"seconds": round(time.perf_counter() - start, 1)}
        content = diagnosis_record(before, after, about=about | {"tried": tried}, training=findings_of_run(cfg, doctor.images))
        write_diagnosis(content, before, after, folder=Path(cfg.out))
        figure.print_diagnosis(content, paragraph(content), Path(cfg.out))
        name = f"{Path(cfg.run).resolve().name} {content['sampler']} diagnosis"
        publish(tracking, Path(cfg.out) / "diagnosis.json", name=name, kind="diagnose", config=cfg)


def try_cures(cfg: DictConfig, doctor: Doctor, before: Diagnosis) -> tuple[Diagnosis | None, list[str]]:
    """The best diagnosis with the prescriptions applied, and the overrides that led to it.

    A repaired sampler reaches states that the failing one did not, with faults of their own, so prescribing is repeated.
    """
    best: tuple[Diagnosis | None, list[str]] = (None, [])
    latest, overrides = before, list[str]()
    for _ in range(ROUNDS):
        cure = latest.prescription
        if cure is None or cure.sampler is None:
            break
        kept = [] if cure.choices else [one for one in overrides if key(one) not in {*map(key, cure.overrides)}]
        overrides = [*kept, *cure.overrides]
        latest = doctor.diagnose(sampler_with(cfg, overrides))
        if best[0] is None or rank(latest) < rank(best[0]):
            best = latest, overrides
        if latest.verdicts == ["healthy"] or rank(latest) > rank(best[0] or latest):  # not better: it is leading astray
            break
    return best


def rank(diagnosis: Diagnosis) -> tuple[bool, float]:
    """The sort key of diagnoses: healthy first, then by the final distance from the data."""
    return diagnosis.verdicts != ["healthy"], diagnosis.facts.path.records[-1].distance


def make_doctor(cfg: DictConfig, world: World, tell: Any) -> tuple[Doctor, Any, dict[str, Any]]:
    """The doctor with the run's model and held-out images, the sampler, and their description for the record."""
    pipeline = prepare(cfg, world)
    config = RunFolder(Path(cfg.run)).config()
    held_out = cfg.held_out is not None or config.data.test is not None
    data = open_dataset(cfg, "held_out") if cfg.held_out is not None else Dataset.open(config.data.test or config.data.train)
    if data.shape != pipeline.shape:
        raise ValueError(f"held_out: images of {data.shape} are not accepted; the run's are {pipeline.shape}")
    images = data.images(data.random_subset(plain(cfg, "images", int, least=16)), device=world.device)
    schedule: NoiseSchedule = build(config.schedule, key="schedule")
    ends = schedule.sigma(torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()  # levels seen often in training
    doctor = Doctor(model=pipeline.model, images=images, trained=(ends[0], ends[1]), effort=build(cfg.effort, key="effort"),
                    precision=pipeline.precision, seed=pipeline.seed, tell=tell)
    settings = OmegaConf.to_container(cfg.sampler, resolve=True)
    about = {"run": str(cfg.run), "step": pipeline.step, "unfinished": unfinished(cfg, pipeline.step),
             "data": str(data.path), "images": "held-out" if held_out else "training", "precision": pipeline.precision.name,
             "sampler": HydraConfig.get().runtime.choices["sampler"], "settings": settings}
    return doctor, pipeline.sampler, about


def unfinished(cfg: DictConfig, step: int) -> list[int] | None:
    """The images that the run has seen and those that it is to see; None at its end. ``step`` is its checkpoint's."""
    folder = RunFolder(Path(cfg.run))
    budget: Budget = build(folder.config().budget, key="budget")
    reached = max([step, *(record.get("step", 0) for record in read(folder.metrics_file))])
    return None if reached >= budget.steps else [reached * budget.batch, budget.steps * budget.batch]


def sampler_with(cfg: DictConfig, overrides: list[str]) -> Any:
    """The sampler of the same command line with ``overrides`` appended."""
    given = [o for o in HydraConfig.get().overrides.task if not o.lstrip("+").startswith(("try=", "out="))]
    if any(o.startswith("sampler=") for o in overrides):  # another sampler has other settings
        given = [o for o in given if not o.startswith(("sampler=", "sampler.", "sampler/"))]
    return build(compose("diagnose", overrides=[*given, *overrides]).sampler, key="sampler")


def findings_of_run(cfg: DictConfig, images: torch.Tensor) -> list[Finding]:
    """Findings about the run itself: its data, weight average, loss and end."""
    folder = RunFolder(Path(cfg.run))
    config, past = folder.config(), list(read(folder.metrics_file))
    found: list[Finding | None] = []
    if "sigma_data" in config.model:
        found.append(spread(Reference.fit(images, components=1), sigma_data=config.model.sigma_data))
    rule = build(config.average.rules[cfg.ema], key="average")
    found.append(short_average(rule.decay, step=max((r.get("step", 0) for r in past), default=0), batch=config.budget.batch))
    gains = [r for r in past if r["event"] == "calibration" and r.get("gain") is not None]
    losses = [r["loss"] for r in past if r["event"] == "train" and r.get("loss") is not None]
    text = unguided(losses, [r["gain"] for r in gains if r["step"] == gains[-1]["step"]])
    found.append(Finding(name="loss without guidance", words=text, numbers={}) if text else None)
    if (folder.path / "failure.json").exists():
        found.append(Finding(name="failed run", words=f"the run failed: see {folder.path / 'failure.json'}", numbers={}))
    return [one for one in found if one is not None]


if __name__ == "__main__":
    sys.argv = ["try=true" if argument == "--try" else argument for argument in sys.argv]
    run(main, config="diagnose")
