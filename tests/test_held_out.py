"""Measurements during training are of the first average, on the same images and noise on any number of processes."""
from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import make_trainer
from torch import Tensor

from ebm.data import Dataset
from ebm.data.beton import write_beton
from ebm.data.quantum import dequantised
from ebm.data.shapes import shapes
from ebm.diagnose.calibration import calibrate
from ebm.precision import Precision
from ebm.randomness import generator
from ebm.samplers.step import Step
from ebm.train.checkpoint import Checkpoints
from ebm.train.distributed import World
from ebm.train.events import Preview, Save, interleave
from ebm.train.held_out import Calibrated, Energies, HeldOut
from ebm.train.metrics import Metrics, read
from ebm.train.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "test.beton"
    write_beton(path, shapes(count=40, size=8, seed=1).images(), source="shapes", count=40, progress=False)
    return Dataset.open(path)


@pytest.fixture
def trainer() -> Trainer:
    """A trainer whose average is far from its model."""
    made = make_trainer()
    with torch.no_grad():
        for parameter in made.averages[0].model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return made


class Other(World):
    """One of two processes; the other adds 1000 to every sum."""

    def all_reduce(self, values: Tensor) -> Tensor:
        return values + 1000


def by_hand(trainer: Trainer, data: Dataset, *, dequantise: bool) -> list[float]:
    """The sum of the losses in each batch of 8 of 20 images."""
    found, chosen = [], data.random_subset(20)
    for start in (0, 8, 16):
        indices = chosen[start:start + 8]
        x = data.images(indices, device="cpu")
        x = dequantised(x, seed=3, indices=indices.tolist()) if dequantise else x
        source = generator("cpu", 3, "held-out", start)
        sigma = trainer.schedule.draw(len(x), generator=source)
        noise = torch.randn(x.shape, generator=source)
        found.append(float(trainer.objective(trainer.averages[0].model.score, x, sigma, noise).detach().sum()))
    return found


@pytest.mark.parametrize("dequantise", [False, True])
def test_the_held_out_loss_is_the_averages_over_all_images(dequantise: bool, data: Dataset, trainer: Trainer) -> None:
    measure = HeldOut(dataset=data, count=20, batch=8, seed=3, dequantise=dequantise)
    first, second, third = by_hand(trainer, data, dequantise=dequantise)
    assert measure(trainer) == pytest.approx((first + second + third) / 20, rel=1e-5)
    for rank, mine in ((0, first + third), (1, second)):
        trainer.world = Other(rank=rank, size=2, device=CPU)
        assert measure(trainer) == pytest.approx((mine + 1000) / 20, rel=1e-5)


def test_calibration_and_energies_are_the_averages(data: Dataset, trainer: Trainer, tmp_path: Path) -> None:
    metrics, average = Metrics(tmp_path / "metrics.jsonl"), trainer.averages[0].model
    Calibrated(dataset=data, count=20, levels=3, metrics=metrics, seed=3)(trainer)
    samples = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    Energies(dataset=data, metrics=metrics, seed=3, batch=5)(trainer, samples)
    records = [*read(metrics.path)]
    levels = sorted(trainer.schedule.sigmas(3).tolist())
    x = data.images(data.random_subset(20), device="cpu")
    for sigma, record in zip(levels, records, strict=False):
        row = calibrate(average, x, sigma=sigma, conditioning_sigma=sigma, batch=20, precision=Precision(name="fp32"),
                        generator=generator("cpu", 3, "calibration", repr(sigma)))
        assert (record["sigma"], record["slope"], record["gain"]) == pytest.approx((sigma, row.slope, row.gain), rel=1e-4)
    energies = {record["at"]: record for record in records if record["event"] == "energy"}
    level = 0.1 * 100**0.1  # a tenth of ln σ from 0.1 to 10 lies below
    images = {"data": data.images(data.random_subset(12), device="cpu"), "samples": samples}
    for at, x in images.items():
        energy: Any = average.energy(x, torch.full((12,), level)).detach()  # type: ignore[operator]
        found = energies[at]["sigma"], energies[at]["mean"], energies[at]["std"]
        assert found == pytest.approx((level, float(energy.mean()), float(energy.std(correction=0))), rel=1e-4)


def test_previews_are_drawn_from_the_average_as_many_as_asked_for(trainer: Trainer, tmp_path: Path) -> None:
    drawn: list[tuple[object, int]] = []

    def sampler(model: object, noise: Tensor, *, generators: object) -> Iterator[Step]:
        drawn.append((model, len(noise)))
        yield Step(x=noise, index=0, total=1, sigma=1.0, sigma_after=0.0, drift=noise, noise_size=0.0)

    kept: list[Tensor] = []
    (tmp_path / "previews").mkdir()
    Preview(sampler=sampler, shape=(3, 8, 8), count=5, batch=2, seed=3, folder=tmp_path / "previews",
            metrics=Metrics(tmp_path / "metrics.jsonl"), energies=lambda _, samples: kept.append(samples))(trainer)
    assert drawn == [(trainer.averages[0].model, count) for count in (2, 2, 1)]
    assert len(kept[0]) == 5


def test_batches_dealt_out_in_turn_come_back_in_their_order() -> None:
    parts = [torch.full((2,), float(number)) for number in range(7)]
    for world in (1, 2, 3, 7, 9):
        assert [float(part[0]) for part in interleave([parts[rank::world] for rank in range(world)])] == [*range(7)]


def test_the_best_checkpoint_has_the_least_held_out_loss_which_a_stop_leaves_out(trainer: Trainer, tmp_path: Path) -> None:
    losses = iter([0.5, 0.3, 0.4, math.nan])
    checkpoints = Checkpoints(tmp_path, keep=1)
    save = Save(checkpoints=checkpoints, metrics=Metrics(tmp_path / "metrics.jsonl"), held_out=lambda _: next(losses))
    for trainer.step in (1, 2, 3, 4):
        save(trainer)
    trainer.stopping, trainer.step = True, 5
    save(trainer)
    best = checkpoints.best()
    assert best is not None and (int(best[0].name[5:14]), best[1]) == (2, 0.3)
    assert [int(path.name[5:14]) for path in checkpoints.paths()] == [5, 2]
    found = [(record["event"], record.get("loss"), record.get("early")) for record in read(tmp_path / "metrics.jsonl")]
    assert found[-2:] == [("save", None, False), ("save", None, True)]
