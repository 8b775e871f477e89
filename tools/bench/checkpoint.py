"""The share of training time that goes into saving checkpoints and into the doctor's calibration."""
from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ebm.train.events import Save
from ebm.train.held_out import Calibrated
from tools.bench.measure import ROOT, Row, Setting, Spread, alternate, at_most
from tools.bench.subject import config, dataset, noisy, trainer, training

TITLE = "Saving and calibrating"
NOTE = ("The default run (`configs/train.yaml`, `model=unet`, an energy): time of one save, with its fsync, on the disk of "
        "`runs/`, against the time in which training gets from one save to the next at its speed measured here. The held-out "
        "score that comes with a save is evaluation, not saving, so it has its own line and no target.")


def rows(setting: Setting) -> list[Row]:
    """The lines of the report."""
    torch.set_num_threads(setting.threads[-1])
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT / "runs") as folder:
        return shares(Path(folder), setting)


def shares(folder: Path, setting: Setting) -> list[Row]:
    """Saving and scoring in units of training."""
    cfg = config(*(["budget.batch=32", "save.held_out=100"] if setting.quick else []), device=setting.device)
    train = dataset(folder / "train.beton", count=cfg.budget.batch)
    test = dataset(folder / "test.beton", count=max(100, cfg.save.held_out), seed=1)
    subject = trainer(cfg, folder, train=train, test=test, device=setting.device)
    save = next(event.action for event in subject.events if isinstance(event.action, Save))
    assert save.held_out is not None
    calibrated = next(event.action for event in subject.events if isinstance(event.action, Calibrated))
    batch, held_out = int(cfg.budget.batch), save.held_out

    def save_once() -> None:
        subject.step += 1  # another step, another file
        save.checkpoints.save(subject.step, subject.state())

    seconds = alternate({"training": training(subject, noisy(batch, device=setting.device)[0]), "save": save_once,
                         "score": lambda: held_out(subject), "calibrate": lambda: calibrated(subject)}, setting=setting)
    size = save.checkpoints.paths()[0].stat().st_size
    speed, every = batch / Spread(seconds["training"]).median, int(cfg.save.every)
    against = f"training {every:,} images at {speed:,.0f} images/s"
    between = {name: [images / batch * s for s in seconds["training"]]
               for name, images in (("save", every), ("score", every), ("calibrate", int(cfg.diagnose.every)))}
    percent = {name: Spread([100 * s / (s + b) for s, b in zip(seconds[name], between[name], strict=True)]) for name in between}
    return [
        Row(what="one save", measured=f"{Spread(seconds['save']):.3f} s", against=f"{size / 1e6:.0f} MB"),
        at_most("share of time spent saving", percent["save"], 2, against=against, spec=".3f", unit="%"),
        Row(what=f"share of time spent on the held-out score ({cfg.save.held_out} images)",
            measured=f"{percent['score']:.2f} %", against=against),
        at_most(f"share of time spent on calibration ({cfg.diagnose.levels} levels of {cfg.diagnose.count} images)",
                percent["calibrate"], 1, against=f"training {int(cfg.diagnose.every):,} images", spec=".2f", unit="%"),
    ]
