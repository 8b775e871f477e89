"""What a study's records say in the report: its table, numbers and problems, whatever is missing or broken."""
from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from test_report_pictures import shades

from tools.bench.made import Record, calibration, evaluated, grid, sampled, shade, start, studied, train, trained, usual
from tools.review import records
from tools.review.album import Album, Grid, square_grid
from tools.review.collect import collect, is_over
from tools.review.curves import pick, thin
from tools.review.run import device_hours

HOUR = 3600.0


def test_what_is_wrong_with_lines_is_told_by_their_numbers(tmp_path: Path) -> None:
    lines = [start(1.0), train(100, 0.5), "{broken\n", json.dumps({"event": "train", "images": 200}) + "\n", "[1, 2]\n",
             json.dumps({"event": "held_out", "images": "many", "loss": 1}) + "\n", "\xff\xfe nonsense\n", train(300, 0.4),
             '{"event": "train", "images": 400, "lo']
    path = trained(tmp_path, "run", lines) / "metrics.jsonl"
    found, problems = records.read_metrics(path)
    assert [(one["event"], one["images"]) for one in found] == [("start", 10), ("train", 100), ("train", 300)]
    assert {problem.what for problem in problems} == {
        "lines 3, 7: not JSON", "line 4: train without 'loss'", "line 5: not a record of an event",
        "line 6: held_out with an invalid 'images'", "line 9: half-written"}
    assert {problem.where for problem in problems} == {str(path)}


def test_missing_lines_are_named_where_training_was_logged_evenly(tmp_path: Path) -> None:
    images = [*range(100, 1000, 100), *range(1400, 2000, 100)]
    _, problems = records.read_metrics(trained(tmp_path, "gap", [train(n, 1.0) for n in images]) / "metrics.jsonl")
    assert [one.what for one in problems] == ["lines are missing: no training record between 900 and 1,400 images"]
    images = [*range(100, 1000, 100)]
    _, problems = records.read_metrics(trained(tmp_path, "whole", [train(n, 1.0) for n in images]) / "metrics.jsonl")
    assert problems == []


@pytest.mark.parametrize(("lines", "what"), [(None, "missing"), ([], "empty")])
def test_no_records_is_a_problem(lines: list[Record] | None, what: str, tmp_path: Path) -> None:
    path = trained(tmp_path, "run", lines or []) / "metrics.jsonl"
    if lines is None:
        path.unlink()
    assert [one.what for one in records.read_metrics(path)[1]] == [what]


def test_what_is_not_finite_is_no_number(tmp_path: Path) -> None:
    lines = ['{"event": "train", "images": 100, "loss": NaN}\n', '{"event": "train", "images": 200, "loss": 1e999}\n',
             train(300, None)]
    found, problems = records.read_metrics(trained(tmp_path, "run", lines) / "metrics.jsonl")
    assert [one["loss"] for one in found] == [None, None, None]
    assert problems == []


def test_device_hours_are_those_of_every_start_until_its_last_record() -> None:
    first = [start(1 * HOUR, processes=8, seconds=0.5 * HOUR), train(100, 1.0, at=2 * HOUR)]  # 0.5 h to 2 h, eight times
    second = [start(10 * HOUR, processes=2), train(200, 1.0, at=10.5 * HOUR), train(300, 1.0, at=11 * HOUR)]  # 1 h, twice
    assert device_hours([*first, *second]) == pytest.approx(1.5 * 8 + 1.0 * 2)
    assert device_hours([{**one, "time": None} for one in first]) is None
    assert device_hours([]) is None


def test_thinning_keeps_ends_and_spikes_on_both_axes() -> None:
    values: list[float | None] = [1.0] * 10_000
    values[7003] = 9.0
    kept = thin(values, 100)
    assert kept[0] == 0 and kept[-1] == 9999
    assert 7003 in kept
    assert len(kept) <= 100
    assert sum(place < 100 for place in kept) >= 10, "nothing is left of the beginning on a logarithmic axis"
    assert kept == sorted(set(kept))
    assert thin([1.0, 2.0, 3.0], 100) == [0, 1, 2]
    assert thin([None] * 1000, 50)[-1] == 999
    assert pick(list(range(100)), 5) == [0, 25, 50, 74, 99]


def test_a_study_as_a_table(tmp_path: Path) -> None:
    a, b = (trained(tmp_path, name, usual(loss), steps=100) for name, loss in (("a", 0.5), ("b", 0.25)))
    with open(b / "metrics.jsonl", "a", encoding="utf-8") as file:
        warning = {"event": "warning", "images": 5, "words": "no guidance"}
        file.write(json.dumps(start(2000.0)) + "\n" + json.dumps(warning) + "\n")
    one, two = sampled(a, "heun"), sampled(a, "langevin")
    evaluated(a, "heun", fid=30.0, precision=0.5)
    evaluated(a, "langevin", fid=90.0)
    points = [(a, ["model=cnn", "seed=0", "data=tiny"]), (b, ["model=unet", "data=tiny"])]
    study = studied(tmp_path, points, [(a, one), (a, two)])
    content = collect(study, album=Album())
    first, second = content["runs"]
    assert content["parameters"] == ["model", "seed"], "what all points have alike is no column"
    assert [run["parameters"] for run in (first, second)] == [{"model": "cnn", "seed": "0"}, {"model": "unet", "seed": "0"}]
    assert [run["state"] for run in (first, second)] == ["done", "done"]
    assert first["values"]["loss"] == pytest.approx(0.51)
    assert second["values"]["best_held_out"] == second["values"]["held_out"] == 0.25
    assert (first["values"]["restarts"], second["values"]["restarts"]) == (0, 1)
    assert first["values"]["hours"] == pytest.approx(1000 / HOUR, rel=1e-4)
    fid, precision = "quality.fid", "quality.precision"
    assert (first["values"][fid], second["values"][fid], first["values"][precision]) == (30.0, None, 0.5)
    assert second["warnings"] == ["no guidance"]
    assert [s["parameters"] for s in first["samplers"]] == [{"sampler": "heun"}, {"sampler": "langevin"}]
    assert {n["key"]: n["title"] for n in content["numbers"]}["hours"] == "process-hours", "no GPU has been held"
    assert {n["key"]: n["better"] for n in content["numbers"]}[precision] == "higher"
    assert content["problems"] == []
    assert is_over(content)


def test_a_study_that_has_moved_is_found(tmp_path: Path) -> None:
    old = tmp_path / "old"
    run = trained(old, "a", usual(), steps=100)
    study = studied(old, [(run, ["seed=0"])], [(run, sampled(run, "heun"))])
    old.rename(tmp_path / "new")
    content = collect(tmp_path / "new" / study.relative_to(old), album=Album())
    assert content["runs"][0]["state"] == content["runs"][0]["samplers"][0]["state"] == "done"
    assert content["runs"][0]["samplers"][0]["picture"] is not None


def test_only_runs_of_one_schedule_and_weighting_compare(tmp_path: Path) -> None:
    made = [trained(tmp_path, f"{schedule}{seed}", usual(), schedule=schedule)
            for schedule in ("Single", "Karras") for seed in (0, 1)]
    content = collect(studied(tmp_path, [(run, [f"seed={n}"]) for n, run in enumerate(made)]), album=Album())
    assert [run["group"] for run in content["runs"]] == ["Single", "Single", "Karras", "Karras"]


@pytest.mark.parametrize(("lines", "age", "failure", "state"), [
    (usual(), 9999, False, "done"), ([*usual()[:-1], {"event": "end", "images": 9, "how": "stopped"}], 9999, False, "stopped"),
    ([start(1.0), train(100, 1.0)], 9999, True, "failed"), ([start(1.0), train(100, 1.0)], 0, False, "running"),
    ([start(1.0), train(100, 1.0)], 9999, False, "unknown"), ([], 9999, False, "waiting")])
def test_how_a_run_stands(lines: list[Record], age: float, failure: bool, state: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "run", lines)
    if failure:
        (run / "failure.json").write_text(json.dumps({"rank": 1, "node": "n7", "error": "ValueError: it broke"}))
    os.utime(run / "metrics.jsonl", (time.time() - age,) * 2)
    content = collect(run, album=Album())
    assert content["runs"][0]["state"] == state
    assert content["runs"][0]["why"] == ("rank 1 on n7: ValueError: it broke" if failure else "")


def test_a_run_alone(tmp_path: Path) -> None:
    drawn = [{"event": "preview", "images": images, "path": f"previews/{images}.png", "count": 4} for images in (100, 1000)]
    run = trained(tmp_path, "run", [*usual(), *drawn])
    for one in drawn:
        grid(run / str(one["path"]), square_grid(4))
    album = Album()
    content = collect(run, album=album)
    assert content["kind"] == "run"
    assert content["runs"][0]["parameters"]["schedule"] == "LogNormal"
    assert [one["images"] for one in content["runs"][0]["previews"]] == [100, 1000]
    assert shades(album, content["runs"][0]["previews"][0]) == pytest.approx([shade(i) for i in range(4)], abs=2)
    assert "not recorded" in content["runs"][0]["command_note"]
    studied(tmp_path, [(run, ["model=cnn", "seed=3"])])
    assert collect(run, album=album)["runs"][0]["command"] == "python launch/train.py model=cnn seed=3"


def test_calibration_and_loss_by_level_are_told_by_the_time_of_their_measurement(tmp_path: Path) -> None:
    lines = [*usual(), *(calibration(images, sigma, images / 2000) for images in (500, 1000) for sigma in (1.0, 0.1)),
             {"event": "loss_by_sigma", "images": 1000, "sigma": 0.3, "loss": 0.7, "share": 1.0}]
    run = collect(trained(tmp_path, "run", lines), album=Album())["runs"][0]
    assert [(one["images"], one["sigma"], one["explained"]) for one in run["calibration"]] == [
        (500, [0.1, 1.0], [0.25, 0.25]), (1000, [0.1, 1.0], [0.5, 0.5])]
    assert run["by_sigma"] == [{"images": 1000, "sigma": [0.3], "loss": [0.7], "share": [1.0]}]


def test_the_doctors_word_is_passed_on(tmp_path: Path) -> None:
    run = trained(tmp_path, "a", usual(), steps=100)
    place = sampled(run, "langevin")
    for folder in (run / "diagnosis" / "heun", place / "diagnosis"):
        folder.mkdir(parents=True)
        grid(folder / "diagnosis.png", Grid(1, 1, 1), size=50)
        (folder / "diagnosis.txt").write_text("It diverges.\n")
        (folder / "diagnosis.json").write_text(json.dumps({
            "sampler": folder.parent.name, "verdicts": ["diverging"],
            "prescription": {"overrides": ["sampler=heun", "sampler.steps=9"]},
            "calibration": [{"sigma": 1.0, "explained": 0.5, "slope": 1.0, "gain": None}]}))
    content = collect(studied(tmp_path, [(run, ["seed=0"])], [(run, place)]), album=Album())["runs"][0]
    for one in (content["diagnoses"][0], content["samplers"][0]["diagnoses"][0]):
        assert (one["verdicts"], one["words"], one["cure"]) == (["diverging"], "It diverges.", "sampler=heun sampler.steps=9")
        assert one["figure"]["width"] == 50
        assert one["calibration"][0]["explained"] == [0.5]
