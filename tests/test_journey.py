"""The journey: a study of eight steps, each a training and a sampler on it; and the page that is written from its results."""
from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.entry import CONFIGS, choices
from launch.point import Point
from launch.study import key, sampler_of
from tests.test_study import compose, make, without_sampler

STEPS = OmegaConf.load(CONFIGS / "sweep" / "journey.yaml").hydra.sweeper.params.experiment.split(",")


@pytest.fixture(scope="module")
def made(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    data = [one for one in without_sampler(tiny) if one.startswith("data")]
    return make([[*data, f"experiment={step}"] for step in STEPS], tmp_path_factory.mktemp("store"))


def test_eight_steps_and_what_trains_alike_trains_once(made: list[Point]) -> None:
    samples = [point for point in made if point.kind == "sample"]
    assert [point.label for point in samples] == STEPS
    trained = [point.label for point in made if point.kind == "train"]
    assert trained == ["journey/noise", "journey/ladder", "journey/continuous", "journey/sigma", "journey/unet"]
    assert [point.of.label for point in samples if point.of] == ["journey/noise"] * 4 + trained[1:]
    assert set(STEPS) == {f"journey/{name}" for name in choices("experiment/journey")} - {"journey/single"}


@pytest.mark.parametrize("step", STEPS)
def test_a_steps_sampler_is_its_experiments(step: str, made: list[Point]) -> None:
    point = next(point for point in made if point.kind == "sample" and point.label == step)
    assert compose("sample", ["run=x", *point.overrides]).sampler == compose("train", ["run=x", f"experiment={step}"]).sampler


def test_a_sampler_that_is_named_replaces_the_experiments(tiny: list[str], tmp_path: Path) -> None:
    data = [one for one in without_sampler(tiny) if one.startswith("data")]
    point = make([[*data, "experiment=journey/ladder", "sampler=heun"]], tmp_path)[1]
    assert [one for one in point.overrides if key(one).startswith("sampler")] == ["sampler=heun"]
    point = make([[*data, "experiment=journey/ladder", "sampler.steps=7"]], tmp_path)[1]
    assert compose("sample", ["run=x", *point.overrides]).sampler.steps == 7


def test_an_experiment_without_a_sampler_brings_none() -> None:
    assert sampler_of("small") == ()
