"""Evaluations in the report: every figure under its protocol, columns that never mix two, samplers that own their records."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_records import quality, record, sweep

from tools.bench.made import sampled, studied, trained, usual
from tools.review import png
from tools.review.album import Album
from tools.review.collect import collect


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [trained(tmp_path, name, usual(loss), steps=100) for name, loss in (("a", 0.5), ("b", 0.25), ("c", 0.3))]


def page(runs: list[Path], samplers: list[tuple[Path, Path]] | None = None) -> dict[str, Any]:
    """What the page of a study of these runs holds."""
    points = [(run, [f"seed={place}"]) for place, run in enumerate(runs)]
    content = collect(studied(runs[0].parents[1], points, samplers or []), album=Album())
    json.dumps(content, allow_nan=False)  # as the page takes it
    return content


def column(content: dict[str, Any], key: str) -> dict[str, Any]:
    """A column of the table."""
    found: dict[str, Any] = {one["key"]: one for one in content["numbers"]}[key]
    return found


def test_figures_of_one_protocol_are_a_column_with_a_best(runs: list[Path]) -> None:
    for run, fid in zip(runs[:2], (30.0, 20.0), strict=True):
        record(run, "heun", {"fid": fid, "fid_stderr": 0.5, "fid_real": 2.0, "precision": 0.5}, pictures=("neighbours",))
    content = page(runs)
    fid = column(content, "quality.fid")
    assert (fid["title"], fid["asked"], fid["better"], fid["mixed"]) == ("fid", "lowest fid", "lower", False)
    assert fid["words"] == "quality.fid: n 50,000 · reference cifar10 a1b2c3d4 · extractor inception 6726825d"
    assert column(content, "quality.precision")["better"] == "higher"
    assert not {"quality.fid_stderr", "quality.fid_real"} & {one["key"] for one in content["numbers"]}
    assert [run["values"]["quality.fid"] for run in content["runs"]] == [30.0, 20.0, None]
    assert [run["protocols"]["quality.fid"] for run in content["runs"]] == [0, 0, None]
    (one,) = content["runs"][0]["evaluations"]
    assert one["values"] == {"fid": [30.0, 0.5, 2.0], "precision": [0.5, None, None]}
    assert one["subject"] == "heun 35 NFE · EMA 0 · step 3125 · seed 0 · bf16 · code 12ab34cd"
    assert [picture["name"] for picture in one["pictures"]] == ["neighbours"]
    (protocol,) = content["protocols"]
    assert (protocol["metric"], protocol["count"], protocol["differs"]) == ("quality", 1, "")
    assert "extractor_sha256: 6726825d0af5f729" in protocol["whole"]
    assert content["directions"] == {"fid": "lower", "precision": "higher"}
    assert content["problems"] == []
    assert "evaluation" in png.sections(content)


def test_where_protocols_differ_the_column_says_so_and_has_no_best(runs: list[Path]) -> None:
    record(runs[0], "heun", {"fid": 30.0})
    record(runs[1], "heun", {"fid": 31.0})
    record(runs[2], "heun", {"fid": 10.0}, measure=quality(n=1000))
    content = page(runs)
    fid = column(content, "quality.fid")
    assert (fid["title"], fid["asked"], fid["mixed"]) == ("fid (protocols differ)", "", True)
    assert "2 protocols, which are not comparable" in fid["words"]
    assert [run["protocols"]["quality.fid"] for run in content["runs"]] == [0, 0, 1]
    assert [one["differs"] for one in content["protocols"]] == ["", "n: 50000 vs. 1000"]
    assert [one["count"] for one in content["protocols"]] == [2, 2]


def test_a_run_shows_what_it_has_in_the_protocol_that_most_have(runs: list[Path]) -> None:
    for run, fid in zip(runs, (30.0, 20.0, 25.0), strict=True):
        record(run, "heun", {"fid": fid}, at=1.0)
    record(runs[0], "euler", {"fid": 28.0}, at=2.0, sampler="euler")
    record(runs[0], "trial", {"fid": 9.0}, at=3.0, measure=quality(n=100))
    content = page(runs)
    assert [run["values"]["quality.fid"] for run in content["runs"]] == [28.0, 20.0, 25.0], "a trial on few images is no best"
    assert column(content, "quality.fid")["mixed"] is False
    assert len(content["protocols"]) == 2, "the trial is still told of"


def test_records_belong_to_their_samplers(runs: list[Path]) -> None:
    places = [sampled(runs[0], name) for name in ("heun-1", "langevin-2")]
    for place, fid in zip(places, (12.0, 90.0), strict=True):
        path = record(runs[0], "x", {"fid": fid})
        path.rename((path.parent / place.name).mkdir() or path.parent / place.name / path.name)
        (path.parent / place.name / "evaluation-0123.json").write_text("[]")
    content = page(runs, [(runs[0], place) for place in places])
    assert [one["metrics"]["quality.fid"] for one in content["runs"][0]["samplers"]] == [12.0, 90.0]
    assert content["runs"][0]["values"]["quality.fid"] == 12.0
    assert column(content, "quality.fid")["sampled"] is True
    assert content["problems"] == []


def test_records_of_a_run_alone_belong_to_the_samples_of_their_name(runs: list[Path]) -> None:
    folder = sampled(runs[0], "x")
    for name in ("heun-step10", "heun-step10-ema1"):
        (runs[0] / "samples" / f"{name}.json").write_text((folder / "a.json").read_text())
        (runs[0] / "samples" / f"{name}.png").write_bytes((folder / "a.png").read_bytes())
    record(runs[0], "heun-step10-01234567", {"fid": 5.0})
    record(runs[0], "heun-step10-ema1-01234567", {"fid": 6.0})
    content = collect(runs[0], album=Album())
    told = {one["label"]: one["metrics"].get("quality.fid") for one in content["runs"][0]["samplers"]}
    assert told == {"heun-step10": 5.0, "heun-step10-ema1": 6.0}


def test_one_name_in_two_metrics_is_two_columns(runs: list[Path]) -> None:
    record(runs[0], "step", {"bits_per_dim": 3.5}, metric="likelihood", measure={"images": 500})
    record(runs[0], "step", {"bits_per_dim": 3.6}, metric="density", measure={"images": 500})
    content = page(runs)
    assert {column(content, f"{name}.bits_per_dim")["title"] for name in ("likelihood", "density")} == {
        "likelihood bits_per_dim", "density bits_per_dim"}
    assert column(content, "density.bits_per_dim")["better"] == "lower", "a metric's name is no figure's"


def test_many_figures_are_in_the_section_and_the_first_in_the_table(runs: list[Path]) -> None:
    record(runs[0], "step", {f"auroc_energy_{place}": 0.5 for place in range(30)}, metric="outliers", measure={"seed": 0})
    content = page(runs)
    assert sum(one["key"].startswith("outliers.") for one in content["numbers"]) == 8
    assert len(content["runs"][0]["evaluations"][0]["values"]) == 30


def test_what_can_not_be_read_is_named_and_nothing_else_is_lost(runs: list[Path]) -> None:
    path = record(runs[0], "heun", {"fid": 30.0, "kid": float("nan")}, pictures=("gone",))
    next(path.parent.glob("*.png")).unlink()
    (path.parent / "quality-cut.json").write_text(path.read_text()[:50])
    content = page(runs)
    assert content["runs"][0]["values"]["quality.fid"] == 30.0
    said = {Path(one["where"]).name: one["what"] for one in content["problems"]}
    assert said["quality-heun.json"] == "kid: not a finite number, left out"
    assert said["quality-heun-gone.png"] == "missing"
    assert "can't be read as JSON" in said["quality-cut.json"]


def test_the_command_of_a_sampler_that_is_measured_is_evaluates(runs: list[Path]) -> None:
    place = sampled(runs[0], "heun-1")
    study = studied(runs[0].parents[1], [(runs[0], ["seed=0"])], [(runs[0], place)])
    content = json.loads((study / "study.json").read_text())
    content["points"][1]["overrides"] += ["metrics=[quality]", "label=01234567"]
    (study / "study.json").write_text(json.dumps(content))
    (one,) = collect(study, album=Album())["runs"][0]["samplers"]
    assert one["command"].startswith("python launch/evaluate.py ")
    assert "metrics=[quality]" in one["command"] and "label=" not in one["command"]


def test_a_sweep_of_samplers_is_one_run_with_its_best(runs: list[Path]) -> None:
    sweep(runs[0])
    content = page(runs)
    assert content["runs"][0]["values"]["quality.fid"] == pytest.approx(7.6)
    assert len(content["runs"][0]["evaluations"]) == 16
    assert "label" not in content["sampler_parameters"]
