"""Checks that a config can become a run or a sampling, without their memory or time."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ebm.data import Dataset
from ebm.energy import Preconditioned, check_shapes
from ebm.precision import Precision
from ebm.sampling import batches_of, trajectory
from ebm.train.distributed import World, check_device_name
from launch.config.build import build, naming, plain, seed
from launch.config.settings import check_settings, precision, switch
from launch.job.faults import missing_value
from launch.run.make import find_init, load_init, open_dataset, open_datasets
from launch.tracking.track import tracking_of

KEPT: dict[tuple[int, int, int], dict[str, Any]] = {}  # what metrics load, by image shape, once for all points


def check(kind: str, text: str) -> tuple[str, int, int] | None:
    """Checks a config in YAML, of a "train", "sample" or "evaluate" point.

    For "train", returns what `check_run` does. Raises ValueError, naming the key.
    """
    try:
        if kind == "evaluate":
            return check_metrics(text)
        return check_run(text) if kind == "train" else check_sampler(text)
    except (OSError, OmegaConfBaseException) as error:  # not all of them can be pickled
        raise ValueError(missing_value(error) or str(error)) from None


def check_run(text: str) -> tuple[str, int, int]:
    """The SHA-256 of a run's data, and the checkpoint whose weights it begins with, if any; the number of steps; the batch."""
    cfg = parse(text)
    tracking_of(cfg)
    budget = check_settings(cfg)
    for part in ("schedule", "rate"):
        build_once(part, OmegaConf.to_yaml(cfg[part]))
    data, _ = cached_datasets(OmegaConf.to_yaml({"data": {"train": cfg.data.train, "test": cfg.data.test}}))
    check_model(OmegaConf.to_yaml(cfg.model), OmegaConf.to_yaml(cfg.objective), data.shape)
    beginning = check_init(OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, ["init", "model"])))
    return data.manifest.sha256 + beginning, budget.steps, budget.batch


@functools.lru_cache(None)
def cached_datasets(text: str) -> tuple[Dataset, Dataset | None]:
    """The training images and the held-out ones of the same shape, each pair opened once for all points."""
    return open_datasets(parse(text))


@functools.lru_cache(None)
def build_once(name: str, text: str) -> None:
    """Builds a part of a config to check it."""
    build(parse(text), key=name)


@functools.lru_cache(None)
def build_on_meta(text: str) -> Preconditioned:
    """The model on the meta device, which takes neither memory nor time."""
    with torch.device("meta"):
        model: Preconditioned = build(parse(text), key="model")
    return model


@functools.lru_cache(None)
def check_model(text: str, objective: str, shape: tuple[int, int, int]) -> None:
    """Checks a model against the images' shape and its objective, once for all points that have it."""
    model = build_on_meta(text)
    check_shapes(model, shape)
    build(parse(objective), key="objective").check(model, shape)


@functools.lru_cache(None)
def check_init(text: str) -> str:
    """Checks that the run whose weights a model begins with is there and has the same model; its checkpoint's name, or ""."""
    cfg = parse(text)
    if path := find_init(cfg):
        load_init(path, cfg, build_on_meta(OmegaConf.to_yaml(cfg.model)), device=torch.device("meta"))
    return path.name if path else ""


@functools.lru_cache(None)
def check_sampler(text: str) -> None:
    """Builds a sampler and begins a trajectory, which makes it check its values and its model."""
    cfg = parse(text)
    with naming("sample."):
        seed(cfg)
        batches_of(plain(cfg, "n", int), batch=plain(cfg, "batch", int), rank=0, world=1)  # checks its values
        plain(cfg, "ema", int, least=0, most=cfg.averages - 1)
        precision(cfg, torch.device("cpu"))
        check_device_name(cfg.device)
        switch(cfg, "cuda_graph", auto=False)
    model, sampler = build_on_meta(OmegaConf.to_yaml(cfg.model)), build(cfg.sampler, key="sampler")
    with naming("sampler."):
        trajectory(model, sampler, shape=(1, 8, 8), indices=[0], seed=0, device=torch.device("cpu"))


@functools.lru_cache(None)
def check_metrics(text: str) -> None:
    """Has the selected metrics check everything that they will check of the trained ``run``."""
    from launch.drawing.pipeline import Pipeline  # only here: most studies measure nothing
    from launch.metrics.evaluation import Work
    from launch.metrics.selection import naming_argument, select_metrics

    cfg, device = parse(text), torch.device("cpu")
    asked, run = cfg.evaluation, cfg.run
    train, test = cached_datasets(OmegaConf.to_yaml({"data": {"train": run.data.train, "test": run.data.test}}))
    train = train if asked.train is None else open_dataset(asked, "train")
    test = test if asked.held_out is None else open_dataset(asked, "held_out")
    # It draws nothing, so that samplers and seeds, on which nothing here depends, are not checked repeatedly.
    pipeline = Pipeline(model=build_on_meta(OmegaConf.to_yaml(run.model)), sampler=lambda *_, **__: iter(()), shape=train.shape,
                        seed=0, precision=Precision(name="fp32"), device=device)
    work = Work(pipeline=pipeline, world=World(rank=0, size=1, device=device), cfg=asked, run_config=run, train=train,
                held_out=test, n=asked.n, batch=asked.batch, kept=KEPT.setdefault(train.shape, {}))
    for name, metric in select_metrics(asked).items():
        with naming_samples(), naming_argument(name, metric):
            metric.check(work)


@contextlib.contextmanager
def naming_samples() -> Iterator[None]:
    """Context in which errors about n and batch name them as in a study's config: sample.n, sample.batch."""
    try:
        yield
    except ValueError as error:
        own = str(error).startswith(("n:", "batch:"))
        raise ValueError(f"sample.{error}" if own else str(error)) from error


def parse(text: str) -> DictConfig:
    """A config from YAML."""
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig)
    return cfg
