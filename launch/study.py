"""A study: what is to be trained, once each, what is to be sampled from it, and the code that all of it runs."""
from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ebm.data import Dataset
from ebm.energy import Preconditioned, check_shapes
from ebm.sampling import trajectory
from ebm.train.checkpoint import NAME
from launch.build import build, naming
from launch.entry import ROOT
from launch.run import FREE, flat

STUDY = ("dry", "cluster", "sweep", "store", "code")  # keys of configs/sweep.yaml that are no run's
CODE = ("ebm", "launch", "configs", "setup.cfg", "setup.py")  # what decides a run's result, besides config and data


@dataclass(frozen=True)
class Point:
    """One job: a run of training, or a sampler on one (``of``); ``folder`` is where its results lie."""

    kind: str
    label: str
    folder: Path
    overrides: tuple[str, ...]
    steps: int = 0
    of: Point | None = None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.of.folder if self.of else self.folder

    def done(self) -> bool:
        """Whether its results are there."""
        if self.kind == "sample":
            return any(self.folder.glob("*.npz"))
        found = (NAME.fullmatch(path.name) for path in (self.folder / "checkpoints").glob("step-*.pt"))
        return any(int(match[1]) >= self.steps for match in found if match)


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
        given = {key(override) for override in sample}
        full = (*sample, *(f"{name}={value}" for name, value in sampling.items() if value is not None and name not in given))
        settings = samplers(full)
        with naming("sampler."):
            check_sampler(OmegaConf.to_yaml(settings.sampler))
        choice = next((one.split("=", 1)[1] for one in full if key(one) == "sampler"), "default")
        folder = point.folder / "samples" / f"{plain_name(choice)}-{digest(OmegaConf.to_yaml(settings))[:8]}"
        found.setdefault(folder, Point("sample", label(sample, names[1] | {"sampler"}), folder, full, of=point))
    return list(found.values())


def training(overrides: tuple[str, ...], cfg: DictConfig, label: str, *, store: Path, code: str) -> Point:
    """One run of training, in a folder named by what it is a function of: config, data and code."""
    sha256 = check(cfg)
    what = {name: value for name, value in flat(OmegaConf.to_container(cfg)).items()
            if name == "budget.images" or not any(name == free or name.startswith(free + ".") for free in FREE)}
    name = digest(json.dumps([what, sha256, code], sort_keys=True, default=str))[:12]
    steps = build(cfg.budget, key="budget").steps
    chosen = {key(one): one.split("=", 1)[1] for one in overrides if key(one) in ("model", "schedule")}
    words = [plain_name(word) for word in (str(cfg.data.name), *chosen.values(), f"seed{cfg.seed}")]
    return Point("train", label, store / "runs" / "-".join([*words, name]), overrides, steps=steps)


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
    return " ".join(override.split("=", 1)[1] if key(override) in ("schedule", "model", "sampler") else override
                    for override in overrides if key(override) in names) or "default"


def plain_name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", text)


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def freeze(store: Path) -> str:
    """Copies the code that stands here (what git tracks, as it is now) to ``store``/code/<version>; its version."""
    files = sorted(tracked())
    missing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-o", "--exclude-standard", *CODE], capture_output=True,
                             text=True, check=False).stdout.split()
    if missing:
        print(f"note: git doesn't track {', '.join(missing)}; the jobs will not have them", file=sys.stderr)
    content = {file: (ROOT / file).read_bytes() for file in files}
    version = digest(json.dumps([[file, hashlib.sha256(bytes_).hexdigest()] for file, bytes_ in content.items()
                                 if file.split("/")[0] in CODE]))[:12]
    folder = store / "code" / version
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder.parent))
        for file, bytes_ in content.items():
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            (aside / file).write_bytes(bytes_)
        try:
            os.rename(aside, folder)  # another study may have been quicker
        except OSError:
            shutil.rmtree(aside)
    return version


def tracked() -> list[str]:
    """The project's files that git tracks; all of its code where this is no checkout."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", *CODE], capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    if listed.returncode == 0 and names:
        return names
    return [str(path.relative_to(ROOT)) for name in CODE for path in [ROOT / name, *(ROOT / name).rglob("*")]
            if path.is_file() and "__pycache__" not in path.parts]
