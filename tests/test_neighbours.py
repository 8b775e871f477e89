"""Nearest neighbours against brute force; a planted copy is found, whichever way it is turned."""
from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from ebm.data import Dataset
from ebm.data.beton import write_beton
from ebm.data.shapes import shapes
from ebm.evaluate.neighbours import copied, nearest, picture, ratio
from ebm.randomness import generator
from ebm.train.distributed import World
from launch.config.build import build
from launch.config.manual import CONFIGS
from launch.metrics import neighbours
from launch.metrics.evaluation import Figures, Samples, Work
from launch.metrics.neighbours import NearestNeighbours

CPU = torch.device("cpu")


def pictures(count: int, *, seed: int) -> Tensor:
    return torch.from_numpy(np.stack([*shapes(count=count, size=16, seed=seed).images()])).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("block", [1, 7, 40, 100])
def test_all_blocks_give_the_neighbours_of_brute_force(block: int) -> None:
    train, queries = pictures(40, seed=0), pictures(6, seed=1)
    found = nearest(queries.flatten(1), queries.flip(-1).flatten(1), train.flatten(1).split(block), k=5)
    sides = torch.stack([(side[:, None].double() - train[None].double()).square().flatten(2).sum(2) for side in
                         (queries, queries.flip(-1))])
    squares, which = sides.min(0)
    exact, order = squares.sort(1)
    torch.testing.assert_close(found.distance, exact[:, :5].sqrt(), rtol=0, atol=0)
    assert (found.index == order[:, :5]).all()
    assert (found.mirrored == which.bool().gather(1, order[:, :5])).all()
    plain = nearest(queries.flatten(1), None, train.flatten(1).split(block), k=5)
    torch.testing.assert_close(plain.distance, sides[0].sort(1).values[:, :5].sqrt(), rtol=0, atol=0)
    assert not plain.mirrored.any()


def test_a_copy_is_at_no_distance_whichever_way_it_is_turned() -> None:
    train = pictures(30, seed=0)
    queries = torch.stack([train[11], train[23].flip(-1)])
    found = nearest(queries.flatten(1), queries.flip(-1).flatten(1), train.flatten(1).split(8), k=2)
    assert found.distance[:, 0].tolist() == [0, 0], "distances are rounded"
    assert found.index[:, 0].tolist() == [11, 23]
    assert found.mirrored[:, 0].tolist() == [False, True]
    assert copied(found.distance, within=1 / 3).all()
    assert copied(torch.zeros(1, 2), within=1 / 3).all(), "the copy of an image that is there twice is one"
    assert not copied(torch.tensor([[5.0, 10.0]]), within=1 / 3).any()


def test_too_few_images_are_refused() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: {k} is not accepted"):
            nearest(torch.zeros(2, 3), None, [torch.zeros(4, 3)], k=k)


def test_the_ratio_is_one_for_strangers_and_none_for_copies_and_knows_its_error() -> None:
    draws = torch.randn(60, 2, 300, generator=torch.Generator().manual_seed(0)).exp()
    found = [ratio(*pair, draws=100, generator=generator("cpu", 0, "x")) for pair in draws]
    values, errors = torch.tensor([one for one in found if one]).T
    assert values.mean() == pytest.approx(1, abs=0.05)
    assert errors.mean() == pytest.approx(float(values.std()), rel=0.3), "the bootstrap tells another spread than there is"
    copies = ratio(torch.zeros(9), draws[0, 0], draws=10, generator=generator("cpu", 0, "x"))
    assert copies == (0, 0)
    assert ratio(draws[0, 0], torch.zeros(9), draws=10, generator=generator("cpu", 0, "x")) is None


def test_a_picture_has_a_row_for_each_sample() -> None:
    samples, near = pictures(3, seed=0), pictures(12, seed=1).unflatten(0, (3, 4))
    with Image.open(io.BytesIO(picture(samples, near))) as opened:
        pixels = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
    assert pixels.shape == (3, 3 * 16 + 2, 5 * 16 + 6)
    assert (pixels[:, 17:33, :16] == samples[1]).all()
    assert (pixels[:, 17:33, 16:22] == 255).all()
    assert (pixels[:, 34:, -16:] == near[2, 3]).all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count, seed in (("train", 60, 0), ("test", 25, 1)):
        source = shapes(count=count, size=16, seed=seed)
        write_beton(tmp_path / f"{split}.beton", source.images(), source=source.name, count=count, progress=False)
    return tmp_path


def work(folder: Path, images: Tensor, *, held_out: bool = True, flip: bool = True) -> Work:
    pipeline: Any = SimpleNamespace(shape=(3, 16, 16), seed=0, precision=SimpleNamespace(name="fp32"))
    train, test = (Dataset.open(folder / f"{split}.beton") for split in ("train", "test"))
    return Work(pipeline=pipeline, world=World(rank=0, size=1, device=CPU),
                run_config=OmegaConf.create({"data": {"flip": flip}}),
                cfg=OmegaConf.create({"out": str(folder / "out"), "ema": 0}), train=train, held_out=test if held_out else None,
                n=len(images), batch=8, kept={"samples": Samples(images=images, subject={})})


def metric(*overrides: str) -> NearestNeighbours:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=["+extractor=random", "extractor.widths=[4, 8]", "+metric=neighbours", "metric.shown=4",
                                 *(f"metric.{override}" for override in overrides)])
    built: NearestNeighbours = build(cfg.metric, key="metric")
    return built


def measured(place: Work, *overrides: str) -> Figures:
    one = metric(*overrides)
    one.check(place)
    found = one(place)
    assert found is not None
    return found


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_planted_copies_are_found_and_shown(folder: Path, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    train, images = pictures(60, seed=0), pictures(20, seed=2)
    images[3], images[17] = train[8], train[50].flip(-1)
    found = measured(work(folder, images), f"space={space}", "batch=6")
    closest = found.details["closest"][:2]
    assert {(one["sample"], one["train"]) for one in closest} == {(3, 8), (17, 50)}
    assert max(one["distance"] for one in closest) == pytest.approx(0, abs=1e-5)
    assert found.values["copied_share"] == pytest.approx(2 / 20)
    assert found.values["copied_share_held_out"] == 0
    assert 0.7 < found.values["distance_ratio"] < 1.3, "18 of 20 samples are strangers"
    assert found.measure["space"] == space
    assert found.measure["train_sha256"] == Dataset.open(folder / "train.beton").manifest.sha256
    assert ("extractor_sha256" in found.measure) == (space == "features")
    for name, rows in (("first", images[:4]), ("closest", images[[one["sample"] for one in found.details["closest"]]])):
        with Image.open(io.BytesIO(found.pictures[name])) as opened:
            pixels = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
        shown = torch.stack([pixels[:, 17 * i:17 * i + 16] for i in range(4)])
        assert (shown[..., :16] == rows).all(), f"{name}: other samples than those named"
        if name == "closest":
            assert (shown[:2, :, :, 22:38] == rows[:2]).all(), "a copy does not stand beside its sample, turned the same way"


def test_a_set_of_copies_has_ratio_zero_and_mirror_images_are_copies_only_where_training_mirrors(folder: Path) -> None:
    mirrored = pictures(60, seed=0)[:30].flip(-1)
    found = measured(work(folder, mirrored))
    assert (found.values["distance_ratio"], found.values["distance"], found.values["copied_share"]) == (0, 0, 1)
    other = measured(work(folder, mirrored, flip=False))
    assert other.values["distance"] > 0
    assert found.measure != other.measure


def test_without_held_out_images_there_are_distances_and_no_ratio(folder: Path) -> None:
    found = measured(work(folder, pictures(5, seed=2), held_out=False), "count=3")
    assert set(found.values) == {"distance", "copied_share"}
    assert found.measure["n"] == 3


def test_what_cannot_be_is_refused(folder: Path) -> None:
    place = work(folder, pictures(5, seed=2))
    with pytest.raises(ValueError, match="k: 61 is not accepted; there are 60 training images"):
        metric("k=61").check(place)
    for override in ("space=moon", "k=1", "count=0", "within=1.5", "batch=0"):
        with pytest.raises(ValueError, match=rf"metric\.{override.split('=')[0]}: .* is not accepted"):
            metric(override)
