"""The settings of a training run that go to no `_target_`: the type and range of each, for a run and for a study's check."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ebm.accepted import positive
from ebm.data.stream import check_loader
from ebm.precision import DTYPES
from ebm.train.budget import Budget
from ebm.train.distributed import check_device_name
from launch.config.build import best_precision, build, naming, plain, seed
from launch.config.override import ELSEWHERE

LONGEST = 1e9  # seconds, some thirty years: the clocks that time a wait hold no more
SETTINGS: dict[str, tuple[type, float | None]] = {  # type and smallest value
    "compile": (bool, None), "data.flip": (bool, None), "data.dequantise": (bool, None), "data.loader": (str, None),
    "data.workers": (int, 1), "data.resident_bytes": (int, 0),
    "log_every": (int, 1), "save.every": (int, 1), "save.keep": (int, 1), "save.held_out": (int, 0),
    "preview.every": (int, 1), "preview.count": (int, 1), "preview.batch": (int, 1),
    "diagnose.every": (int, 1), "diagnose.count": (int, 2), "diagnose.levels": (int, 1),
    "timeout_seconds": (float, 1), "peers_seconds": (float, 1), "hang_seconds": (float, 1),
    "preflight.memory_gb": (float, 0), "preflight.disk_gb": (float, 0), "preflight.write_mb_s": (float, 0),
}


def setting(cfg: DictConfig, key: str) -> Any:
    """The value of a key; raises ValueError if it is of another type or out of range."""
    kind, least = SETTINGS[key]
    return plain(cfg, key, kind, least=least, most=LONGEST if key.endswith("_seconds") else None)


def switch(cfg: DictConfig, key: str, *, auto: bool) -> bool:
    """The value of a key that is true, false or "auto", which stands for ``auto``; raises ValueError for any other."""
    value = cfg[key]
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"{key}: {value!r} is not accepted; choose auto, true or false")
    return auto if value == "auto" else value


def cuda_graph(cfg: DictConfig, *, gpu: bool) -> bool:
    """Whether training steps are recorded as a CUDA graph; "auto" means wherever that works."""
    works = gpu and not setting(cfg, "compile")
    wanted = switch(cfg, "cuda_graph", auto=works)
    if wanted and not works:
        raise ValueError("cuda_graph: True is not accepted; it needs a GPU and compile=false")
    return wanted


def sampling_graph(cfg: DictConfig, trained: DictConfig, *, gpu: bool) -> bool:
    """Whether the model's score is recorded as a CUDA graph; "auto" means on a GPU, unless the run was trained without.

    The doctor's config doesn't ask for it: it looks at the model in other ways than samplers do.
    """
    wanted = "cuda_graph" in cfg and switch(cfg, "cuda_graph", auto=gpu and trained.get("cuda_graph") is not False)
    if wanted and not gpu:
        raise ValueError("cuda_graph: True is not accepted; it needs a GPU")
    return wanted


def precision(cfg: DictConfig, device: torch.device, *, before: str | None = None) -> str:
    """The requested precision; "auto" means the one used ``before``, if any, else the best for the device."""
    if cfg.precision not in ("auto", *DTYPES):
        raise ValueError(f"precision: {cfg.precision!r} is not accepted; choose auto, {', '.join(DTYPES)}")
    return before or best_precision(device) if cfg.precision == "auto" else str(cfg.precision)


def rules(cfg: DictConfig) -> list[Any]:
    """The rules of the parameter averages, at least one."""
    if not OmegaConf.is_list(cfg.average.rules):
        raise ValueError(f"average.rules: {cfg.average.rules!r} is not accepted; it must be a list, as in configs/average/")
    if not cfg.average.rules:
        raise ValueError("average.rules: [] is not accepted; it must name at least one average")
    for index, rule in enumerate(cfg.average.rules):
        if not isinstance(rule, DictConfig):
            raise ValueError(f"average.rules.{index}: {rule!r} is not accepted; it must have a _target_, as in "
                             "configs/average/")
    return [build(rule, key=f"average.rules.{index}") for index, rule in enumerate(cfg.average.rules)]


def check_sigma_data(cfg: DictConfig) -> None:
    """Raises ValueError unless `data.sigma_data` is a positive number: the model that is given it would not name this key."""
    with naming("data."):
        positive(sigma_data=plain(cfg, "data.sigma_data", float))


def optimizer(cfg: DictConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``parameters``; raises ValueError for settings that it does not accept."""
    if "lr" in cfg.optimizer:
        raise ValueError(f"optimizer.lr: {cfg.optimizer.lr!r} is not accepted; set {ELSEWHERE['optimizer.lr']} instead")
    betas = cfg.optimizer.get("betas")
    if "betas" in cfg.optimizer and not (OmegaConf.is_list(betas) and len(betas) == 2):
        raise ValueError(f"optimizer.betas: {betas!r} is not accepted; it must be two numbers, as in [0.9,0.99]")
    make = build(cfg.optimizer, key="optimizer")
    try:
        made: torch.optim.Optimizer = make(parameters)
    except (ValueError, TypeError, LookupError, RuntimeError) as error:  # PyTorch names no key
        settings = {str(key): value for key, value in cfg.optimizer.items() if not str(key).startswith("_")}
        told = error if isinstance(error, ValueError) else f"{settings} is not accepted ({error})"
        raise ValueError(f"optimizer: {told}") from error
    return made


def check_settings(cfg: DictConfig) -> Budget:
    """The budget of a training run; raises ValueError for a setting that is wrong on any data and any device."""
    seed(cfg)
    for key in SETTINGS:
        setting(cfg, key)
    switch(cfg, "channels_last", auto=False)
    cuda_graph(cfg, gpu=cfg.device != "cpu")
    precision(cfg, torch.device("cpu"))
    check_device_name(cfg.device)
    with naming("data."):
        check_loader(cfg.data.loader)
    check_sigma_data(cfg)
    rules(cfg)
    optimizer(cfg, [torch.nn.Parameter(torch.zeros(1))])
    budget: Budget = build(cfg.budget, key="budget")
    return budget
