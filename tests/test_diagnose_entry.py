"""`launch/diagnose.py` from end to end, and the doctor's part in training."""
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Command, final_state, fingerprint

from ebm.train.metrics import read

QUICK = ["effort.samples=4", "effort.calibration=8", "effort.levels=1", "effort.states=2", "effort.curvature=1",
         "effort.iterations=4", "device=cpu"]


@pytest.fixture(scope="module")
def trained(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    command("train", *tiny, f"run={run}", "budget.images=160", "diagnose.every=40")
    return run


def test_an_unstable_descent_is_diagnosed_and_tried_again(trained: Path, command: Command, tmp_path: Path) -> None:
    done = command("diagnose", f"run={trained}", "sampler=gradient_descent", "sampler.step_size=5", "sampler.clamp=1", "--try",
                   f"out={tmp_path}/out", *QUICK)
    content = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert content["verdicts"][0] == "diverging"
    assert content["sampler"] == "gradient_descent" and content["settings"]["step_size"] == 5
    assert "sampler=annealed" in content["prescription"]["overrides"], "a descent is cured by what samples"
    assert content["tried"]
    assert "diverging" not in content["after"]["verdicts"]
    assert len(content["steps"]) == 200 and len(content["calibration"]) > 4
    assert "Diverging: " in (tmp_path / "out" / "diagnosis.txt").read_text()
    assert (tmp_path / "out" / "diagnosis.png").stat().st_size > 20_000
    assert "Is the score calibrated?" in done.stdout


def test_an_unscored_run_of_single_previews_is_calibrated_too(tiny: list[str], command: Command, tmp_path: Path) -> None:
    done = command("train", *tiny, f"run={tmp_path}/run", "budget.images=16", "save.held_out=0", "preview.count=1")
    events = {record["event"]: record for record in read(tmp_path / "run" / "metrics.jsonl")}
    assert "calibration" in events and "held_out" not in events
    assert events["energy"]["std"] == 0
    assert "Warning" not in done.stderr


def test_images_that_are_not_held_out_are_not_called_so(tiny: list[str], command: Command, tmp_path: Path) -> None:
    command("train", *tiny, f"run={tmp_path}/run", "budget.images=16", "data.test=null")
    command("diagnose", f"run={tmp_path}/run", "sampler.steps=3", f"out={tmp_path}/out", *QUICK)
    text = (tmp_path / "out" / "diagnosis.txt").read_text()
    assert "On training images the score can be trusted" in text
    assert "The run has no held-out images" in text


def test_an_unfinished_run_is_called_so_and_finished_before_a_blind_score_is_cured(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = run / "config.yaml"
    config.write_text(re.sub(r"(?m)^  images: 160$", "  images: 16003", config.read_text()))
    for folder, unfinished in ((run, True), (trained, False)):
        done = command("diagnose", f"run={folder}", "sampler=heun", "sampler.steps=10", f"out={tmp_path}/out", *QUICK)
        content = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
        text = (tmp_path / "out" / "diagnosis.txt").read_text()
        assert "blind" in content["verdicts"]
        assert content["unfinished"] == ([160, 16000] if unfinished else None)
        assert ("The run stands at 160 of 16,000 images." in text) == unfinished
        assert ("Prescription: finish the run first" in text) == ("finish the run first" in done.stdout) == unfinished


@pytest.mark.parametrize(("bad", "said"), [
    (["run=nowhere"], "run: nowhere holds no config.yaml"),
    (["sampler.steps=0"], "sampler.steps: 0 is not accepted"),
    (["effort.samples=1"], "effort.samples: 1 is not accepted; it must be a whole number of at least 2"),
    (["held_out=nowhere.beton"], "held_out: nowhere.beton: no such data file"),
    (["try=perhaps"], "try: 'perhaps' is not accepted; it must be true or false"),
    (["smapler=heun"], "smapler: no such key"),
])
def test_refusals_are_one_line(bad: list[str], said: str, trained: Path, command: Command, tmp_path: Path) -> None:
    done = command("diagnose", f"run={trained}", f"out={tmp_path}/out", "device=cpu", *bad, check=False)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "out").exists()


def test_training_logs_calibration_and_is_not_touched_by_it(trained: Path, tiny: list[str], command: Command,
                                                            tmp_path: Path) -> None:
    records = [record for record in read(trained / "metrics.jsonl") if record["event"] == "calibration"]
    assert {record["step"] for record in records} == {5, 10, 15, 20}
    assert {"sigma", "explained", "slope", "gain", "images"} <= set(records[0])
    command("train", *tiny, f"run={tmp_path}/run", "budget.images=160")
    assert fingerprint(final_state(tmp_path / "run")) == fingerprint(final_state(trained))


def test_a_useless_fall_of_the_loss_is_warned_of_once(tiny: list[str], command: Command, tmp_path: Path) -> None:
    options = [*tiny, f"run={tmp_path}/run", "diagnose.every=40", "rate.peak=1e-9", "objective/weighting=edm"]
    command("train", *options, "budget.images=80")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(next(line for line in lines if '"event": "train"' in line))
    path.write_text("\n".join([json.dumps({**first, "step": 0, "loss": 9.0}), *lines]) + "\n")  # as if it had begun higher
    done = command("train", *options, "budget.images=240")
    warnings = [record for record in read(path) if record["event"] == "warning"]
    assert len(warnings) == 1 and "cannot guide a sampler" in warnings[0]["words"]
    assert done.stderr.count("warning: the loss fell") == 1


def test_two_processes_calibrate_as_one(tiny: list[str], command: Command, tmp_path: Path) -> None:
    command("train", *tiny, f"run={tmp_path}/run", "budget.images=40", "diagnose.every=20", processes=2)
    seen = [(r["step"], r["sigma"]) for r in read(tmp_path / "run" / "metrics.jsonl") if r["event"] == "calibration"]
    steps, levels = {step for step, _ in seen}, {sigma for _, sigma in seen}
    assert steps == {2, 4, 5}  # every 20 of 8 images each, and at the end
    assert sorted(seen) == sorted((step, sigma) for step in steps for sigma in levels), "each level once, by one process"
