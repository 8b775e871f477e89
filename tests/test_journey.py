"""The journey: a study of eight steps, each a training and a sampler on it; and the page that is written from its results."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command
from omegaconf import OmegaConf
from test_diagnose_entry import QUICK
from test_study import compose, make, without_sampler

from launch.config.manual import CONFIGS, choices
from launch.config.override import key
from launch.diagnosis.story import STEPS as STORY
from launch.diagnosis.story import Record, black, conclusion, frozen, noise
from launch.study.design import sampler_of
from launch.study.point import Point

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


def record(**changes: object) -> Record:
    """A diagnosis as far as judging it takes: a good step at a calibrated level, unless it is changed."""
    step = {"sigma": 0.5, "step_size": 0.02, "noise_size": 0.2, "drift": 0.02, "temperature": 1.0}
    return {"steps": [step] * 100, "relaxation": 5.0, "end": {"clamped": 0.0}, "pictures": {"black": 0.0, "distance": 0.5},
            "curvature": [{"a_times_L": 0.1, "stable_below": 0.4}], "trusted": [0.2, 2.0],
            "calibration": [{"sigma": 0.5, "slope": 1.0, "explained": 0.95}], **changes}


def test_a_diagnosis_by_hand_is_held_against_what_was_measured() -> None:
    assert noise(record()).startswith("**Wrong.**")
    hot = noise(record(steps=[{**record()["steps"][0], "step_size": 1e-4, "temperature": 50.0}], relaxation=0.01))
    assert hot.startswith("**Right observation, wrong reason.**")
    assert "= 50" in hot
    assert "only Σaλ = 0.01 e-folds" in hot
    far = {"curvature": [{"a_times_L": 68.0, "stable_below": 0.3}], "end": {"clamped": 1.0}}
    assert black(record()).startswith("**Wrong.**")
    assert "34 times" in black(record(**far, pictures={"black": 1.0}))
    assert "All of them end black" in black(record(**far, pictures={"black": 1.0}))
    assert "50% of the pixels are, the rest white" in black(record(**far, pictures={"black": 0.5}))
    assert "**Stable, yes; weak, no.**" in frozen(record(relaxation=0.004))
    assert frozen(record(calibration=[{"sigma": 0.5, "slope": 2.0, "explained": 0.5}])).startswith("**Right.**")


def test_the_conclusion_follows_the_distances() -> None:
    def said(*distances: float) -> str:
        return conclusion({name: record(pictures={"distance": one}) for name, one in zip(STORY, distances, strict=True)})

    assert "the sampler and not the model" in said(2, 2, 2, 1, 0.9, 0.8, 0.7, 0.2)
    assert "the sampler and not the model" not in said(2, 2, 2, 1.9, 0.9, 0.8, 0.7, 0.2)
    assert "More levels alone are no remedy" not in said(2, 2, 2, 1, 0.9, 0.8, 0.7, 0.2)
    assert "a ladder of levels without" in said(2, 2, 2, 1, 1.2, 0.8, 0.7, 0.2)
    assert "falls most, by 0.50, at “a more capable network”" in said(2, 2, 2, 1, 0.9, 0.8, 0.7, 0.2)


def test_the_page_shows_each_step_and_is_only_written_whole(tiny: list[str], command: Command, tmp_path: Path) -> None:
    run, study, out = tmp_path / "run", tmp_path / "study", tmp_path / "docs"
    sampler, samples = ["sampler=langevin", "sampler.steps=5"], run / "samples" / "langevin"
    command("train", *tiny, f"run={run}", "budget.images=160")
    command("sample", f"run={run}", *sampler, "n=16", f"out={samples}")
    command("diagnose", f"run={run}", *sampler, f"out={samples}/diagnosis", *QUICK)  # one that is there is not made again
    points = [{"kind": "sample", "label": name, "of": "", "folder": str(samples), "steps": 0, "batch": 0, "job": "done",
               "overrides": [*sampler, "n=16"]} for name in STORY]
    study.mkdir()

    def write(points: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        (study / "study.json").write_text(json.dumps({"points": points, "command": ["-m", "sweep=journey"], "created": "now"}))
        return subprocess.run([sys.executable, "launch/journey.py", str(study), "--out", str(out)], cwd=ROOT,
                              capture_output=True, text=True, check=False)

    refused = write(points[1:])
    assert refused.returncode == 2
    assert "has no samples of journey/noise" in refused.stderr
    assert not out.exists()
    done = write(points)
    assert done.returncode == 0, done.stderr
    page = (out / "journey.md").read_text()
    assert page.count("The doctor: Verdict on langevin:") == len(STORY)
    shown = set(re.findall(r"!\[\]\((.*?)\)", page))
    assert shown == {str(path.relative_to(out)) for path in (out / "journey").iterdir()}
    assert len(shown) == 2 * len(STORY)
    assert "python launch/sweep.py -m sweep=journey" in page
