"""What is measured: the project's own configs, models and trainer, built as `launch/train.py` builds them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ebm.data import Dataset
from ebm.data.beton import write_beton
from ebm.data.shapes import shapes
from ebm.energy import Preconditioned
from ebm.graph import Recorded
from ebm.objective import DenoisingScoreMatching
from ebm.precision import Precision
from ebm.train.distributed import World
from ebm.train.trainer import Trainer
from launch.config.build import best_precision, build
from launch.run.folder import RunFolder
from launch.run.make import make_model, make_trainer, resolve
from tools.bench.measure import ROOT

torch.backends.cudnn.deterministic = True  # as `ebm.train.distributed.join` has it


def config(*overrides: str, device: torch.device) -> DictConfig:
    """configs/train.yaml with overrides, every reference followed and `precision=auto` decided."""
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = hydra.compose("train", overrides=["run=bench", *overrides])
    return resolve(cfg, World(rank=0, size=1, device=device))


def model(name: str, *, device: torch.device, compiled: bool) -> Preconditioned:
    """The model of ``configs/model``, moved off its start at zero, so that no gradient is zero throughout."""
    made = make_model(config(f"model={name}", device=device), device)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if compiled:
        made.compile()
    return made


def step(model: Preconditioned, *, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """Forward and backward of the denoising loss on ``batch`` images, recorded as a CUDA graph as training does it on a GPU;
    gradients dropped afterwards."""
    objective: DenoisingScoreMatching = build(config(device=device).objective, key="objective")
    mode = Precision(name=precision)
    x, sigma = noisy(batch, device=device)
    noise = torch.randn_like(x)

    def work(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        with mode.autocast(device):
            losses = objective(model, x, sigma, noise)
        losses.mean().backward()
        return losses.detach()

    gradients = recorded(work, model, [*model.parameters()])

    def once() -> None:
        gradients(x, sigma, noise)
        model.zero_grad()

    return once


def recorded(work: Callable[..., Tensor], model: nn.Module, parameters: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The model's work as it is on a CPU or compiled, and on a GPU as a CUDA graph, with these parameters' gradients."""
    compiled, on_gpu = model._compiled_call_impl is not None, next(model.parameters()).is_cuda
    return Recorded(work, parameters) if on_gpu and not compiled else work


def noisy(batch: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs of a model: images (batch, 3, 32, 32) and their noise levels, (batch,)."""
    return torch.randn(batch, 3, 32, 32, device=device), torch.linspace(0.05, 5.0, batch, device=device)


def precisions(device: torch.device) -> list[str]:
    """fp32, and what training would choose here, if it is another."""
    return list(dict.fromkeys(["fp32", best_precision(device)]))


def dataset(path: Path, *, count: int, seed: int = 0) -> Dataset:
    """A .beton file of the embedded coloured shapes, made here and opened."""
    source = shapes(count=count, size=32, seed=seed)
    write_beton(path, source.images(), source=source.name, count=count, progress=False)
    return Dataset.open(path)


def trainer(cfg: DictConfig, folder: Path, *, train: Dataset, test: Dataset | None, device: torch.device) -> Trainer:
    """The trainer of a run in ``folder``."""
    return make_trainer(cfg, World(rank=0, size=1, device=device), RunFolder(folder), train, test)


def training(trainer: Trainer, images: Tensor) -> Callable[[], None]:
    """Whole training steps, optimiser and average included, on the same images."""
    def once() -> None:
        trainer.train_step(images)
        trainer.step += 1

    return once
