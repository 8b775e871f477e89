"""From a run's config to its trainer, its batches and its folder: every setting arrives, and earlier starts are recognised."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from test_study import compose
from torch import Tensor

from ebm.data.beton import write_beton
from ebm.data.quantum import QUANTUM
from ebm.data.shapes import shapes
from ebm.train.distributed import World
from ebm.train.events import Preview, Save
from ebm.train.metrics import Metrics, read
from ebm.train.trainer import Trainer
from launch import train
from launch.run.folder import RunFolder
from launch.run.identity import difference
from launch.run.make import make_batches, make_trainer, open_datasets, resolve

CPU = World(rank=0, size=1, device=torch.device("cpu"))


def make(tiny: list[str], folder: Path, *overrides: str) -> tuple[DictConfig, Trainer]:
    """A run's config and its trainer."""
    cfg = resolve(compose("train", [*tiny, f"run={folder}", *overrides]), CPU)
    return cfg, make_trainer(cfg, CPU, RunFolder(folder), *open_datasets(cfg))


def first_batches(cfg: DictConfig, trainer: Trainer, count: int) -> Tensor:
    """Its first batches, (count, B, 3, H, W)."""
    return torch.stack([*islice(make_batches(cfg, trainer, open_datasets(cfg)[0]), count)])


def test_a_seed_decides_parameters_noise_and_order(tiny: list[str], tmp_path: Path) -> None:
    def drawn(seed: int) -> list[Tensor]:
        cfg, trainer = make(tiny, tmp_path, f"seed={seed}")
        x = first_batches(cfg, trainer, 2)
        first = torch.cat([p.detach().flatten() for p in trainer.parameters if p.std() > 0])
        return [first, *trainer.draw(x[0]), x]

    one, again, other = drawn(1), drawn(1), drawn(2)
    for name, a, b, c in zip(("parameters", "levels", "noise", "images"), one, again, other, strict=True):
        assert torch.equal(a, b), f"{name} differ for the same seed"
        assert (a != c).float().mean() > 0.5, f"{name} do not depend on the seed"


def test_images_are_flipped_and_dequantised_where_that_is_asked_for(tiny: list[str], tmp_path: Path) -> None:
    plain, flipped, both = (first_batches(*make(tiny, tmp_path, f"data.flip={flip}", f"data.dequantise={noise}"), 6)
                            for flip, noise in (("false", "false"), ("true", "false"), ("true", "true")))
    mirrored = (flipped == plain.flip(-1)).flatten(2).all(2)
    assert ((flipped == plain).flatten(2).all(2) ^ mirrored).all()
    assert 0.2 < mirrored.float().mean() < 0.8
    noise = both - flipped
    assert 0.45 * QUANTUM < noise.abs().max() < 0.501 * QUANTUM
    cfg, trainer = make(tiny, tmp_path, "data.flip=true", "data.dequantise=true")
    trainer.step = 4
    assert torch.equal(first_batches(cfg, trainer, 2), both[4:]), "a resumed run reads other batches"


def test_every_average_has_its_rule_and_every_event_its_settings(tiny: list[str], tmp_path: Path) -> None:
    cfg, trainer = make(tiny, tmp_path, "average=several", "save.keep=3", "save.held_out=7", "save.every=40", "log_every=24",
                        "preview.count=5", "preview.batch=4", "preview.every=32", "diagnose.every=48")
    rules = [repr(average.rule) for average in trainer.averages]
    assert len({*rules}) == len(cfg.average.rules) == 3
    for rule, config in zip(rules, cfg.average.rules, strict=True):
        assert all(str(value) in rule for name, value in config.items() if name != "_target_")
    actions: dict[str, Any] = {type(event.action).__name__: event for event in trainer.events}
    assert {name: event.every for name, event in actions.items()} == {"Log": 24, "Preview": 32, "Calibrated": 48, "Save": 40}
    assert [*actions][-1] == "Save", "what a kill prevents at a step would not be repeated"
    preview, save = actions["Preview"].action, actions["Save"].action
    assert isinstance(preview, Preview) and isinstance(save, Save)
    assert (preview.count, preview.batch, save.checkpoints.keep, save.held_out.count) == (5, 4, 3, 7)
    for overrides, optimizer in ((["+optimizer.weight_decay=0.25"], {"weight_decay": 0.25}),
                                 (["optimizer.betas=[0.5,0.75]"], {"betas": (0.5, 0.75)})):
        group = make(tiny, tmp_path, *overrides)[1].optimizer.param_groups[0]
        assert {name: tuple(group[name]) if name == "betas" else group[name] for name in optimizer} == optimizer


def test_held_out_images_of_another_size_are_refused(tiny: list[str], tmp_path: Path) -> None:
    write_beton(tmp_path / "small.beton", shapes(count=9, size=8, seed=1).images(), source="s", count=9, progress=False)
    with pytest.raises(ValueError, match=r"^data\.test: images of \(3, 8, 8\) are not accepted; those of data\.train are"):
        make(tiny, tmp_path / "run", f"data.test={tmp_path}/small.beton")


@pytest.mark.parametrize(("restarts", "waits"), [("0", 0), ("", 0), ("1", 90)])
def test_only_a_requeued_job_waits_for_its_last_start_and_every_start_forgets_an_earlier_failure(
    restarts: str, waits: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    @contextlib.contextmanager
    def held(_self: RunFolder, *, wait_seconds: float = 0) -> Iterator[None]:
        waited.append(wait_seconds)
        yield

    monkeypatch.setattr(RunFolder, "held", held)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if restarts:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    (tmp_path / "failure.json").write_text("{}")
    with contextlib.ExitStack() as stack:
        assert train.claim(OmegaConf.create({"seed": 0}), RunFolder(tmp_path), stack, steps=5) is None
    assert waited == [waits]
    assert not (tmp_path / "failure.json").exists(), "a start that works would be shown as failed"


def test_the_best_checkpoint_is_not_the_newest_and_a_finished_run_may_be_started_again(tmp_path: Path) -> None:
    folder, cfg = RunFolder(tmp_path), OmegaConf.create({"seed": 0, "budget": {"images": 16, "batch": 8}})
    folder.claim(cfg, steps=2, command="")
    checkpoints = folder.checkpoints(keep=2)
    for step, loss in ((1, 0.1), (2, 0.2)):
        checkpoints.mark_best(checkpoints.save(step, {"step": step}), loss)
    assert [folder.checkpoint(which).name[5:14] for which in ("newest", "best")] == ["000000002", "000000001"]
    folder.claim(cfg, steps=2, command="")
    with pytest.raises(ValueError, match="has seen 16 already"):
        folder.claim(cfg, steps=1, command="")


@pytest.mark.parametrize(("old", "new", "differs"), [
    ({"data": {"dequantise": False}}, {"data": {"dequantise": True}}, ["data.dequantise: False -> True"]),
    ({"rate": {"peak": 1}}, {"rate": {"peak": 2}}, ["rate.peak: 1 -> 2"]),
    ({"average": {"rules": [1]}}, {"average": {"rules": [2]}}, ["average.rules: [1] -> [2]"]),
    ({"save": {"every": 1}, "device": "cpu"}, {"save": {"every": 2}, "device": "cuda"}, []),
    ({"save": {"held_out": 1}}, {"save": {"held_out": 2}}, ["save.held_out: 1 -> 2"])])
def test_which_keys_make_another_run(old: dict[str, Any], new: dict[str, Any], differs: list[str]) -> None:
    assert difference(OmegaConf.create(old), OmegaConf.create(new)) == differs


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tiny: list[str], tmp_path: Path) -> None:
    (_, there), (_, here) = make(tiny, tmp_path), make(tiny, tmp_path, "seed=1")
    folder, there.step = RunFolder(tmp_path), 3
    path = folder.checkpoints().save(3, there.state())
    metrics = Metrics(folder.metrics_file)
    for step in range(1, 6):
        metrics.write("train", step=step)
    train.resume(here, folder, path)
    assert here.step == 3
    assert [record["step"] for record in read(folder.metrics_file)] == [1, 2, 3], "repeated steps would be recorded twice"
    for one, other in zip(here.model.parameters(), there.model.parameters(), strict=True):
        assert torch.equal(one, other)
