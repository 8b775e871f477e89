"""Whether a config can be made into a run or a sampling, tried without their memory or time."""
from __future__ import annotations

import functools

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ebm.data import Dataset
from ebm.energy import Preconditioned, check_shapes
from ebm.sampling import trajectory
from launch.build import build, naming, seed
from launch.track import tracked


def check(kind: str, text: str) -> tuple[str, int] | None:
    """Tries a config in YAML: a "train" one, for SHA-256 of its data and number of its steps, a "sample" one's sampler, or
    what an "evaluate" one measures.

    Raises ValueError, naming the key, where no run can be made of it.
    """
    try:
        if kind == "evaluate":
            return check_metrics(text)
        return check_run(text) if kind == "train" else check_sampler(text)
    except (OSError, OmegaConfBaseException) as error:  # which not all come whole from one process to another
        raise ValueError(str(error)) from None


def check_run(text: str) -> tuple[str, int]:
    """SHA-256 of a run's data and number of its steps."""
    cfg = parsed(text)
    tracked(cfg)
    seed(cfg)
    for part in ("objective", "schedule", "rate", "optimizer"):
        build_once(part, OmegaConf.to_yaml(cfg[part]))
    data = opened(cfg.data.train)
    check_model(OmegaConf.to_yaml(cfg.model), OmegaConf.to_yaml(cfg.objective), data.shape)
    return data.manifest.sha256, build(cfg.budget, key="budget").steps


@functools.lru_cache(None)
def opened(path: str) -> Dataset:
    """A data set, once."""
    return Dataset.open(path)


@functools.lru_cache(None)
def build_once(name: str, text: str) -> None:
    """Builds a part of a config, to see whether it can be."""
    build(parsed(text), key=name)


@functools.lru_cache(None)
def check_model(text: str, objective: str, shape: tuple[int, int, int]) -> None:
    """Builds a model without memory or time of its own, and holds it against the images' shape."""
    with torch.device("meta"):
        model: Preconditioned = build(parsed(text), key="model")
    check_shapes(model, shape)
    build(parsed(objective), key="objective").check(model, shape)


@functools.lru_cache(None)
def check_sampler(text: str) -> None:
    """Builds a sampler and begins a trajectory, which is when samplers check their values."""
    with naming("sampler."):
        trajectory(Preconditioned(torch.nn.Identity(), sigma_data=0.5), build(parsed(text), key="sampler"),
                   shape=(1, 8, 8), indices=[0], seed=0, device=torch.device("cpu"))


@functools.lru_cache(None)
def check_metrics(text: str) -> None:
    """Builds the metrics asked for."""
    from launch.evaluate import chosen  # an entry, which most studies do without
    from launch.metrics.quality import Quality

    for metric in chosen(parsed(text)).values():
        if isinstance(metric, Quality):
            metric.extractor.load(torch.device("cpu"))  # its weights are there


def parsed(text: str) -> DictConfig:
    """A config from YAML."""
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig)
    return cfg
