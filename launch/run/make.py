"""Makes the parts of a run from its config: data, model, trainer and batches, with every value checked before any work."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ebm.data import Dataset
from ebm.data.order import local_rows
from ebm.data.quantum import dequantised_batches
from ebm.data.stream import uses_ffcv
from ebm.energy import Preconditioned, check_shapes
from ebm.precision import Precision
from ebm.sampling import trajectory
from ebm.train.budget import Budget
from ebm.train.checkpoint import load
from ebm.train.distributed import World
from ebm.train.ema import Average
from ebm.train.events import Log, Preview, Save
from ebm.train.held_out import Calibrated, Energies, HeldOut
from ebm.train.metrics import Metrics
from ebm.train.trainer import Event, Trainer
from ebm.train.work import flop_per_image, peak_of
from launch.config.build import build, naming, place, seed
from launch.config.settings import check_sigma_data, cuda_graph, optimizer, precision, rules, setting, switch
from launch.run.folder import RunFolder
from launch.run.identity import difference


def resolve(cfg: DictConfig, world: World, *, before: str | None = None) -> DictConfig:
    """The config with every reference resolved and without Hydra's own part.

    `precision=auto` becomes the precision that a resumed run had ``before``, or else the best of the device.
    """
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return OmegaConf.create({**container, "precision": precision(cfg, world.device, before=before)})


def open_datasets(cfg: DictConfig) -> tuple[Dataset, Dataset | None]:
    """The training images and the held-out ones, if there are any; raises ValueError if their shapes differ."""
    train = open_dataset(cfg, "data.train")
    test = None if cfg.data.test is None else open_dataset(cfg, "data.test")
    if test is not None and test.shape != train.shape:
        raise ValueError(f"data.test: images of {test.shape} are not accepted; those of data.train are {train.shape}")
    return train, test


def open_dataset(cfg: DictConfig, key: str) -> Dataset:
    """Opens the data set at the path in a key; raises ValueError, naming the key, if there is none."""
    path = place(cfg, key)
    with naming(f"{key}: ", OSError):
        return Dataset.open(path)


def make_model(cfg: DictConfig, device: torch.device) -> Preconditioned:
    """The model of a config on a device, with the same initial parameters on every process."""
    torch.manual_seed(seed(cfg))
    model: Preconditioned = build(cfg.model, key="model")
    if switch(cfg, "channels_last", auto=device.type == "cuda"):
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def load_model(folder: RunFolder, *, checkpoint: str, ema: int, device: torch.device) -> tuple[Preconditioned, str, int]:
    """Loads a trained model with the weights of average number ``ema``; the model, the checkpoint's name and its step.

    ``checkpoint`` is "newest", "best" or a name. Raises FileNotFoundError without such a run or checkpoint, ValueError if it is
    damaged, has no such average or is of another model.
    """
    path = folder.checkpoint(checkpoint)
    state = load(path, device)
    averages = state["averages"]
    if not 0 <= ema < len(averages):
        raise ValueError(f"ema: {ema!r} is not accepted; the run has {len(averages)}, counted from 0")
    model = make_model(folder.config(), device)
    with naming(f"checkpoint: {path.name} is of another model than {folder.config_file}: ", RuntimeError):
        model.load_state_dict(averages[ema])
    return model.eval().requires_grad_(False), path.name, int(state["step"])


def find_init(cfg: DictConfig) -> Path | None:
    """The newest checkpoint of the run whose weights the config begins with, None if it names none; raises ValueError where
    there is no such run or checkpoint."""
    if cfg.init is None:
        return None
    folder = RunFolder(place(cfg, "init"))
    if not folder.config_file.exists():
        raise ValueError(f"init: {folder.path} holds no config.yaml; give the folder of a trained run")
    path = folder.checkpoints().newest()
    if path is None:
        raise ValueError(f"init: {folder.path} holds no checkpoint; give the folder of a run that has saved one")
    return path


def load_init(path: Path, cfg: DictConfig, *models: torch.nn.Module, device: torch.device) -> None:
    """Loads the first average of another run's checkpoint into models of the config; raises ValueError if they differ."""
    weights = load(path, device)["averages"][0]
    for model in models:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:  # it lists every parameter
            there = RunFolder(path.parents[1]).config()
            old, new = ({name: tuple(value.shape) for name, value in state.items()} for state in (weights, model.state_dict()))
            parameters = [f"{name}: {old.get(name)} -> {new.get(name)}" for name in sorted({*old, *new})
                          if old.get(name) != new.get(name)]
            differing = difference(OmegaConf.create({"model": there.model}), OmegaConf.create({"model": cfg.model}))
            raise ValueError(f"init: {cfg.init} is a run of another model: {'; '.join(differing or parameters[:3])}") from error


def make_trainer(cfg: DictConfig, world: World, folder: RunFolder, train: Dataset, test: Dataset | None) -> Trainer:
    """The trainer of a run, with all parts built and checked before the first image is read."""
    budget: Budget = build(cfg.budget, key="budget")
    check_sigma_data(cfg)
    model = make_model(cfg, world.device)
    check_shapes(model, train.shape)
    objective = build(cfg.objective, key="objective")
    objective.check(model, train.shape)
    averages = [Average(model, rule) for rule in rules(cfg)]
    if setting(cfg, "compile"):
        model.compile()
    metrics = Metrics(folder.metrics_file)
    sampler = build(cfg.sampler, key="sampler")
    with naming("sampler."):  # the samplers check their values when they are called, before any work
        trajectory(model, sampler, shape=train.shape, indices=[0], seed=0, device=world.device)
    scored, dequantise = setting(cfg, "save.held_out"), setting(cfg, "data.dequantise")
    held_out = None if test is None or not scored else HeldOut(
        dataset=test, count=min(scored, test.count), batch=100, seed=cfg.seed, dequantise=dequantise)
    save = Save(checkpoints=folder.checkpoints(setting(cfg, "save.keep")), metrics=metrics, held_out=held_out)
    preview = Preview(sampler=sampler, shape=train.shape, count=setting(cfg, "preview.count"),
                      batch=setting(cfg, "preview.batch"), seed=cfg.seed,
                      folder=folder.path / "previews", metrics=metrics, energies=None if test is None else Energies(
                          dataset=test, metrics=metrics, seed=cfg.seed, batch=cfg.preview.batch))
    peak = peak_of(world.device, precision=cfg.precision)
    log = Log(metrics=metrics, peak_rate=peak / flop_per_image(model, train.shape) if peak else None)
    calibrated = make_calibration(cfg, test, metrics)
    with naming("budget."):
        budget.pieces(world.size)
    return Trainer(
        model=model, averages=averages, objective=objective,
        schedule=build(cfg.schedule, key="schedule"), optimizer=optimizer(cfg, model.parameters()),
        rate=build(cfg.rate, key="rate"), budget=budget, precision=Precision(name=cfg.precision), seed=cfg.seed, world=world,
        cuda_graph=cuda_graph(cfg, gpu=world.device.type == "cuda"),
        # Saving comes last: events of a step that a kill prevents are then repeated by the next start.
        events=[Event(every=setting(cfg, "log_every"), action=log, urgent=True),
                Event(every=setting(cfg, "preview.every"), action=preview, urgent=False),
                *([Event(every=setting(cfg, "diagnose.every"), action=calibrated, urgent=False)] if calibrated else []),
                Event(every=setting(cfg, "save.every"), action=save, urgent=True)],
    )


def make_calibration(cfg: DictConfig, test: Dataset | None, metrics: Metrics) -> Calibrated | None:
    """The measurement of calibration during training, None without held-out images."""
    count, levels = setting(cfg, "diagnose.count"), setting(cfg, "diagnose.levels")
    if test is None:
        return None
    return Calibrated(dataset=test, count=min(count, test.count), levels=levels, metrics=metrics, seed=cfg.seed)


def make_batches(cfg: DictConfig, trainer: Trainer, train: Dataset) -> Iterator[torch.Tensor]:
    """This process's batches from the trainer's current step on."""
    flip, workers, resident_bytes = (setting(cfg, f"data.{name}") for name in ("flip", "workers", "resident_bytes"))
    batch, rank, world = trainer.budget.batch, trainer.world.rank, trainer.world.size
    with naming("data."):
        ffcv = uses_ffcv(setting(cfg, "data.loader"))
    with naming("budget."):
        images = train.batches(
            batch=batch, seed=cfg.seed, start=trainer.step, rank=rank, world=world, device=trainer.world.device, flip=flip,
            resident_bytes=resident_bytes, workers=workers, timeout=cfg.timeout_seconds, ffcv=ffcv)
    if not setting(cfg, "data.dequantise"):
        return images
    return dequantised_batches(images, seed=cfg.seed, start=trainer.step, batch=batch, rows=local_rows(batch, rank, world))
