"""A study: what is to be trained, once each, and what is to be sampled from it."""
from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ebm.data import Dataset
from ebm.energy import Preconditioned, check_shapes
from ebm.sampling import trajectory
from launch.build import build, naming
from launch.entry import CONFIGS
from launch.point import Point
from launch.run import flat, is_free

STUDY = ("dry", "cluster", "sweep", "store", "code")  # keys of configs/sweep.yaml that are no run's


def key(override: str) -> str:
    """What an override sets."""
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def split(overrides: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A point's overrides as those of training and those of sampling, the last of each key alone."""
    train: dict[str, str] = {}
    sample: dict[str, str] = {}
    for override in overrides:
        name = key(override)
        if name in STUDY:
            continue
        part = sample if re.match(r"sample\.|sampler($|[./])", name) else train
        part.pop(name, None)
        part[name] = override.removeprefix("sample.")
    return tuple(train.values()), tuple(sample.values())


def points(jobs: Sequence[Sequence[str]], *, compose: Callable[[str, Sequence[str]], DictConfig], store: Path, code: str,
           sampling: Mapping[Any, Any]) -> list[Point]:
    """The points of a multirun, each training once, each checked; raises ValueError where a run can't be made of one."""
    trained: dict[tuple[str, ...], Point] = {}
    found: dict[Path, Point] = {}
    samplers = functools.lru_cache(None)(lambda sample: compose("sample", ["run=x", *sample]))
    parts = [split(overrides) for overrides in jobs]
    names = varying([train for train, _ in parts]), varying([sample for _, sample in parts])
    for train, sample in tqdm(parts, desc="checking", unit="point", disable=len(parts) < 20 or None):
        if train not in trained:
            cfg = compose("train", ["run=x", *train])
            trained[train] = training(train, cfg, label(train, names[0]), store=store, code=code)
        point = found.setdefault(trained[train].folder, trained[train])
        experiment = next((one for one in train if key(one) == "experiment"), "experiment=null")
        brought = () if experiment.endswith("=null") else sampler_of(experiment.split("=", 1)[1])
        shown = sample
        if brought and "sampler" not in {key(override) for override in sample}:  # an experiment may be a sampler's, too
            sample, shown = split((*brought, *sample))[1], (experiment, *sample)
        given = {key(override) for override in sample}
        full = (*sample, *(f"{name}={value}" for name, value in sampling.items() if value is not None and name not in given))
        settings = samplers(full)
        with naming("sampler."):
            check_sampler(OmegaConf.to_yaml(settings.sampler))
        choice = next((one.split("=", 1)[1] for one in full if key(one) == "sampler"), "default")
        folder = point.folder / "samples" / f"{plain_name(choice)}-{digest(OmegaConf.to_yaml(settings))[:8]}"
        found.setdefault(folder, Point("sample", label(shown, names[1] | {"sampler", "experiment"}), folder, full, of=point))
    return list(found.values())


def training(overrides: tuple[str, ...], cfg: DictConfig, label: str, *, store: Path, code: str) -> Point:
    """One run of training, in a folder named by what it is a function of: config, data and code."""
    sha256 = check(cfg)
    what = {name: value for name, value in flat(OmegaConf.to_container(cfg)).items()
            if name == "budget.images" or not is_free(name)}
    name = digest(json.dumps([what, sha256, code], sort_keys=True, default=str))[:12]
    steps = build(cfg.budget, key="budget").steps
    chosen = {key(one): one.split("=", 1)[1] for one in overrides if key(one) in ("model", "schedule")}
    parts = [chosen[name] for name in ("model", "schedule") if name in chosen]  # in this order, whatever the command line's
    words = [plain_name(word) for word in (str(cfg.data.name), *parts, f"seed{cfg.seed}")]
    return Point("train", label, store / "runs" / "-".join([*words, name]), overrides, steps=steps)


def sampler_of(name: str) -> tuple[str, ...]:
    """The sampler that an experiment brings, as overrides: its choices and values, after those of experiments it stands on."""
    tree = OmegaConf.load(CONFIGS / "experiment" / f"{name}.yaml")
    assert isinstance(tree, DictConfig)
    found: list[str] = []
    for entry in tree.get("defaults", []):
        if isinstance(entry, str):
            found += sampler_of(entry.removeprefix("/experiment/")) if entry.startswith("/experiment/") else ()
        else:
            found += [f"{str(group).removeprefix('override /')}={choice}" for group, choice in entry.items()
                      if str(group).startswith("override /sampler")]
    values = flat(OmegaConf.to_container(tree), "")
    found += [f"{key}={'null' if value is None else value}" for key, value in values.items() if key.startswith("sampler.")]
    return tuple(found)


def varying(parts: Sequence[tuple[str, ...]]) -> set[str]:
    """The keys that not all points have with the same value: what tells them apart."""
    values: dict[str, set[str]] = {}
    for overrides in parts:
        for override in overrides:
            values.setdefault(key(override), set()).add(override)
    everywhere = set.intersection(*({key(one) for one in overrides} for overrides in parts)) if parts else set()
    return {name for name, different in values.items() if len(different) > 1 or name not in everywhere}


def check(cfg: DictConfig) -> str:
    """Raises ValueError or OSError, naming the key, where no run can be made of a config; SHA-256 of its data."""
    for part in ("objective", "schedule", "rate", "optimizer"):
        build_once(part, OmegaConf.to_yaml(cfg[part]))
    data = opened(cfg.data.train)
    check_model(OmegaConf.to_yaml(cfg.model), data.shape)
    return data.manifest.sha256


@functools.lru_cache(None)
def opened(path: str) -> Dataset:
    """A data set, once."""
    return Dataset.open(path)


@functools.lru_cache(None)
def build_once(name: str, text: str) -> None:
    """Builds a part of a config, to see whether it can be."""
    build(parsed(text), key=name)


@functools.lru_cache(None)
def check_model(text: str, shape: tuple[int, int, int]) -> None:
    """Builds a model without memory or time of its own, and holds it against the images' shape."""
    with torch.device("meta"):
        model: Preconditioned = build(parsed(text), key="model")
    check_shapes(model, shape)


@functools.lru_cache(None)
def check_sampler(text: str) -> None:
    """Builds a sampler and begins a trajectory, which is when samplers check their values."""
    trajectory(Preconditioned(torch.nn.Identity(), sigma_data=0.5), build(parsed(text), key="sampler"),
               shape=(1, 8, 8), indices=[0], seed=0, device=torch.device("cpu"))


def parsed(text: str) -> DictConfig:
    """A config from YAML."""
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig)
    return cfg


def label(overrides: Iterable[str], names: set[str]) -> str:
    """The overrides that tell a point apart, as a reader wants them: `schedule=single seed=1` is `single seed=1`."""
    return " ".join(override.split("=", 1)[1] if key(override) in ("schedule", "model", "sampler", "experiment") else override
                    for override in overrides if key(override) in names) or "default"


def plain_name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", text)


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
