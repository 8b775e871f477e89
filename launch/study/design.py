"""The points of a study: each training once, and the samplers on it."""
from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from launch.config.keys import flat
from launch.config.manual import CONFIGS
from launch.config.override import key
from launch.run.identity import is_free
from launch.study.point import Point

RUN = ("model", "objective", "schedule", "data")  # what samplings and metrics ask of a run's config
MEASURING = ["run", "metrics", "metric", "extractor", "n", "batch", "samples", "train", "held_out"]  # what metrics check
STUDY = ("dry", "cluster", "sweep", "store", "code", "again", "report")  # keys of configs/sweep.yaml that are no run's


def split(overrides: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A point's overrides, split into those of training and of sampling; the last of each key counts."""
    train: dict[str, str] = {}
    sample: dict[str, str] = {}
    for override in overrides:
        name = key(override)
        if name in STUDY:
            continue
        if name == "run":
            raise ValueError(f"{override}: a study names its own runs, in store=; leave run= out")
        if name.startswith("track"):  # of both
            sample[name] = override
        part = sample if re.match(r"sample\.|sampler($|[./])", name) or is_measuring(override) else train
        part.pop(name, None)
        if not re.fullmatch(r"sample\.\w+=null", override):  # the default in sample.yaml
            part[name] = override.removeprefix("sample.")
    return tuple(train.values()), tuple(sample.values())


def is_measuring(override: str) -> bool:
    """Whether an override sets what is measured on samples rather than how they are drawn."""
    return re.match(r"metrics$|metric\.|extractor($|\.)", key(override)) is not None


def make_points(jobs: Sequence[Sequence[str]], *, compose: Callable[[str, Sequence[str]], DictConfig],
           check: Callable[[str, str], Any], store: Path, code: str, sampling: Mapping[Any, Any]) -> list[Point]:
    """The points of a multirun, checked, each training once; raises ValueError for one that can't run."""
    trained: dict[tuple[str, ...], Point] = {}
    configs: dict[tuple[str, ...], Any] = {}
    found: dict[Path, Point] = {}
    composed = functools.lru_cache(None)(lambda entry, sample: compose(entry, ["run=x", *sample]))
    parts = [split(overrides) for overrides in jobs]
    names = varying_keys([train for train, _ in parts]), varying_keys([sample for _, sample in parts])
    for train, sample in tqdm(parts, desc="checking", unit="point", disable=len(parts) < 20 or None):
        if train not in trained:
            cfg = compose("train", ["run=x", *train])
            sha256, steps, batch = check("train", OmegaConf.to_yaml(cfg))
            folder = store / "runs" / run_name(train, cfg, sha256=sha256, code=code)
            trained[train] = Point("train", label(train, names[0]), folder, train, steps=steps, batch=batch)
            configs[train] = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in RUN}
            configs[train]["averages"] = len(cfg.average.rules)
        point = found.setdefault(trained[train].folder, trained[train])
        experiment = next((one for one in train if key(one) == "experiment"), "experiment=null")
        brought = () if experiment.endswith("=null") else sampler_of(experiment.split("=", 1)[1])
        shown = sample
        if brought and "sampler" not in {key(override) for override in sample}:  # an experiment may be a sampler's, too
            sample, shown = tuple({key(one): one for one in (*brought, *sample)}.values()), (experiment, *sample)
        given = {key(override) for override in sample}
        full = (*sample, *(f"{name}={value}" for name, value in sampling.items() if value is not None and name not in given))
        drawing, measured = tuple(one for one in full if not is_measuring(one)), any(key(one) == "metrics" for one in full)
        if len(drawing) < len(full) and not measured:
            raise ValueError("metrics: metric settings are given but no metric is selected; add e.g. metrics=[quality]")
        if measured:  # samples are drawn to be measured, as many as the metrics need
            evaluation = composed("evaluate", full)
            measuring = OmegaConf.masked_copy(evaluation, MEASURING)
            check("evaluate", OmegaConf.to_yaml(OmegaConf.create({"evaluation": measuring, "run": configs[train]})))
            full = (*full, f"label={sha256_of(config_text(evaluation))[:8]}")
            drawing += tuple(f"{name}={evaluation[name]}" for name in ("n", "batch") if name not in {*map(key, drawing)})
        settings = composed("sample", drawing)
        drawn = OmegaConf.masked_copy(settings, ["sampler", "n", "batch", "seed", "ema", "precision", "device",
                                                   "cuda_graph"])
        of = {name: configs[train][name] for name in ("model", "averages")}
        check("sample", OmegaConf.to_yaml(OmegaConf.merge(drawn, of)))
        choice = next((one.split("=", 1)[1] for one in full if key(one) == "sampler"), "default")
        folder = point.folder / "samples" / f"{plain_name(choice)}-{sha256_of(config_text(settings))[:8]}"
        made = Point("sample", label(shown, names[1] | {"sampler", "experiment"}), folder, full, of=point)
        if measured and found.setdefault(folder, made).overrides != full:
            raise ValueError(f"metrics: {made.label} would measure the same samples in two ways; make a study of each")
        found.setdefault(folder, made)
    return list(found.values())


def config_text(cfg: DictConfig) -> str:
    """A config as text, without what changes no result."""
    return OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in ("track", "cuda_graph")]))


def run_name(overrides: tuple[str, ...], cfg: DictConfig, *, sha256: str, code: str) -> str:
    """The folder name of a run, by everything that determines it: config, data and code."""
    what = {name: value for name, value in flat(OmegaConf.to_container(cfg)).items()
            if name == "budget.images" or not is_free(name)}
    chosen = {key(one): one.split("=", 1)[1] for one in overrides if key(one) in ("model", "schedule")}
    parts = [chosen[name] for name in ("model", "schedule") if name in chosen]  # always in this order
    words = [plain_name(word) for word in (str(cfg.data.name), *parts, f"seed{cfg.seed}")]
    return "-".join([*words, sha256_of(json.dumps([what, sha256, code], sort_keys=True, default=str))[:12]])


def sampler_of(name: str) -> tuple[str, ...]:
    """The sampler that an experiment sets, as overrides, after those of the experiments it is based on."""
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


def varying_keys(parts: Sequence[tuple[str, ...]]) -> set[str]:
    """The keys that distinguish the points: those that not all have with the same value."""
    values: dict[str, set[str]] = {}
    for overrides in parts:
        for override in overrides:
            values.setdefault(key(override), set()).add(override)
    everywhere = set.intersection(*({key(one) for one in overrides} for overrides in parts)) if parts else set()
    return {name for name, different in values.items() if len(different) > 1 or name not in everywhere}


def label(overrides: Iterable[str], names: set[str]) -> str:
    """The overrides that distinguish a point, as readers want them: `schedule=single seed=1` becomes `single seed=1`."""
    return " ".join(override.split("=", 1)[1] if key(override) in ("schedule", "model", "sampler", "experiment") else override
                    for override in overrides if key(override) in names) or "default"


def plain_name(text: str) -> str:
    """A text made safe as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", text)


def sha256_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
