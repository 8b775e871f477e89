"""The report's data: what lies in folders is told as it is, whatever is missing, broken or meant to do harm."""
from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from tools import report
from tools.bench.made import Record, calibration, grid, sampled, shade, start, studied, train, trained, usual
from tools.review import page, png, records
from tools.review.album import Album, Grid, Share, measured, square
from tools.review.collect import collect, over
from tools.review.curves import pick, thin
from tools.review.run import device_hours

HOUR = 3600.0
EVIL = '<script>alert(1)</script>'


def shades(album: Album, sheet: Record) -> list[int]:
    """The grey of every tile of a sheet in the album."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(album.pictures[sheet["picture"]]))).convert("L"))
    w, h, columns = sheet["width"], sheet["height"], sheet["columns"]
    return [round(float(picture[i // columns * h:(i // columns + 1) * h, i % columns * w:(i % columns + 1) * w].mean()))
            for i in range(sheet["count"])]


def tool(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "tools/report.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, **env})


# ---- records


def test_what_is_wrong_with_lines_is_told_by_their_numbers(tmp_path: Path) -> None:
    lines = [start(1.0), train(100, 0.5), "{broken\n", json.dumps({"event": "train", "images": 200}) + "\n", "[1, 2]\n",
             json.dumps({"event": "held_out", "images": "many", "loss": 1}) + "\n", "\xff\xfe nonsense\n", train(300, 0.4),
             '{"event": "train", "images": 400, "lo']
    path = trained(tmp_path, "run", lines) / "metrics.jsonl"
    found, problems = records.read(path)
    assert [(one["event"], one["images"]) for one in found] == [("start", 10), ("train", 100), ("train", 300)]
    assert {problem.what for problem in problems} == {
        "lines 3, 7: not JSON", "line 4: train without 'loss'", "line 5: no record of an event",
        "line 6: held_out with a strange 'images'", "line 9: half-written"}
    assert {problem.where for problem in problems} == {str(path)}


def test_missing_lines_are_named_where_training_was_logged_evenly(tmp_path: Path) -> None:
    images = [*range(100, 1000, 100), *range(1400, 2000, 100)]
    _, problems = records.read(trained(tmp_path, "gap", [train(n, 1.0) for n in images]) / "metrics.jsonl")
    assert [one.what for one in problems] == ["lines are missing: no training record between 900 and 1,400 images"]
    _, problems = records.read(trained(tmp_path, "whole", [train(n, 1.0) for n in range(100, 1000, 100)]) / "metrics.jsonl")
    assert problems == []


@pytest.mark.parametrize(("lines", "what"), [(None, "missing"), ([], "empty")])
def test_no_records_is_a_problem(lines: list[Record] | None, what: str, tmp_path: Path) -> None:
    path = trained(tmp_path, "run", lines or []) / "metrics.jsonl"
    if lines is None:
        path.unlink()
    assert [one.what for one in records.read(path)[1]] == [what]


def test_what_is_not_finite_is_no_number(tmp_path: Path) -> None:
    lines = ['{"event": "train", "images": 100, "loss": NaN}\n', '{"event": "train", "images": 200, "loss": 1e999}\n',
             train(300, None)]
    found, problems = records.read(trained(tmp_path, "run", lines) / "metrics.jsonl")
    assert [one["loss"] for one in found] == [None, None, None]
    assert problems == []


# ---- numbers


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
    one, two = sampled(a, "heun", fid=30.0), sampled(a, "langevin", fid=90.0)
    (two / "precision.json").write_text(json.dumps({"metrics": {"precision": 0.5}}))
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
    assert (first["values"]["fid"], second["values"]["fid"], first["values"]["precision"]) == (30.0, None, 0.5)
    assert second["warnings"] == ["no guidance"]
    assert [s["parameters"] for s in first["samplers"]] == [{"sampler": "heun"}, {"sampler": "langevin"}]
    assert {n["key"]: n["title"] for n in content["numbers"]}["hours"] == "process-hours", "no GPU has been held"
    assert {n["key"]: n["better"] for n in content["numbers"]}["precision"] == "higher"
    assert content["problems"] == []
    assert over(content)


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


def test_a_run_alone_and_one_from_before_times_and_previews_were_recorded(tmp_path: Path) -> None:
    old = [{key: value for key, value in line.items() if key != "time"} for line in usual()]
    run = trained(tmp_path, "run", old)
    for images in (100, 1000):
        grid(run / "previews" / f"images-{images:09}.png", square(4))
    album = Album()
    content = collect(run, album=album)
    assert content["kind"] == "run"
    assert content["runs"][0]["parameters"]["schedule"] == "LogNormal"
    assert content["runs"][0]["values"]["hours"] is None
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


# ---- pictures


def test_a_trajectory_is_cut_into_its_frames(tmp_path: Path) -> None:
    run = trained(tmp_path, "a", usual(), steps=100)
    album = Album()
    sampler = collect(studied(tmp_path, [(run, ["seed=0"])], [(run, sampled(run, "heun", frames=3, rows=2))]),
                      album=album)["runs"][0]["samplers"][0]
    way = sampler["trajectory"]
    assert [(frame["step"], frame["sigma"]) for frame in way["frames"]] == [(0, 10.0), (1, 1.0), (2, 0.1)]
    assert (way["columns"], way["rows"]) == (3, 2)
    assert shades(album, way) == pytest.approx([shade(i) for i in range(6)], abs=3)
    assert shades(album, sampler["picture"]) == pytest.approx([shade(i) for i in range(4)], abs=3)
    assert (sampler["nfe"], sampler["n"]) == (17, 4)


def test_with_little_room_fewer_frames_and_tiles_are_kept_and_the_ends_among_them(tmp_path: Path) -> None:
    grid(tmp_path / "way.png", Grid(50, 8, 400))
    grid(tmp_path / "grid.png", square(100))
    album, share = Album(), Share(20_000)
    way = album.frames(tmp_path / "way.png", Grid(50, 8, 400), [{"step": step} for step in range(50)], share)
    tiles = album.tiles(tmp_path / "grid.png", square(100), share)
    assert way is not None and tiles is not None
    steps = [frame["step"] for frame in way["frames"]]
    assert (steps[0], steps[-1], len(steps), way["rows"]) == (0, 49, 8, 3)
    assert shades(album, way)[:8] == pytest.approx([shade(step) for step in steps], abs=3)
    assert shades(album, tiles) == pytest.approx([shade(i) for i in range(9)], abs=3)
    assert sum(len(base64.b64decode(one)) for one in album.pictures) <= 20_000
    assert album.tiles(tmp_path / "grid.png", square(100), Share(100)) is None


def test_a_page_of_many_pictures_stays_within_its_limit_and_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    runs = []
    for number in range(3):
        lines: list[Record | str] = [*usual()]
        run = trained(tmp_path, f"run{number}", lines, steps=100)
        for images in range(100, 1001, 100):
            path = f"previews/{images}.png"
            (run / "previews").mkdir(exist_ok=True)
            Image.fromarray(noise.integers(0, 255, (33 * 4 + 1, 33 * 4 + 1, 3), np.uint8)).save(run / path)
            lines.append({"event": "preview", "images": images, "path": path, "count": 16})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(run)
    album = Album(limit=120_000)
    content = collect(studied(tmp_path, [(run, [f"seed={n}"]) for n, run in enumerate(runs)]), album=album)
    assert sum(len(base64.b64decode(one)) for one in album.pictures) <= 120_000
    for run in content["runs"]:
        kept = [one["images"] for one in run["previews"]]
        assert 1 < len(kept) < 10
        assert kept[-1] == 1000 and kept[0] == 100, "the last and the first are kept before those between"
    assert any(re.search(r"\d+ pictures are left out", note) for note in content["notes"])


def test_the_grid_of_a_picture_without_a_count_is_measured(tmp_path: Path) -> None:
    grid(tmp_path / "a.png", Grid(3, 2, 5))
    assert measured(tmp_path / "a.png", [3, 8, 8], 100) == Grid(3, 2, 6)
    assert measured(tmp_path / "a.png", [3, 7, 7], 100) is None
    assert measured(tmp_path / "a.png", None, 100) is None


def test_what_can_not_be_read_is_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    run = trained(tmp_path, "a", [*usual(), {"event": "preview", "images": 500, "path": "previews/none.png", "count": 4},
                                  {"event": "preview", "images": 600, "path": "previews/bad.png", "count": 4}])
    (run / "previews").mkdir()
    (run / "previews" / "bad.png").write_bytes(b"\x89PNG and then nothing")
    place = sampled(run, "heun")
    (place / "a.json").write_text("{")
    (run / "diagnosis").mkdir()
    (run / "diagnosis" / "diagnosis.json").write_text("[]")
    (run / "config.yaml").write_text("a: [")
    content = collect(studied(tmp_path, [(run, ["seed=0"])], [(run, place)]), album=Album())
    named = {problem["where"].removeprefix("runs/a/"): problem["what"] for problem in content["problems"]}
    assert set(named) == {"previews/none.png", "previews/bad.png", "samples/heun/a.json", "diagnosis/diagnosis.json",
                          "config.yaml"}
    assert named["previews/none.png"] == "missing"
    assert named["previews/bad.png"].startswith("not a picture")
    assert content["runs"][0]["values"]["held_out"] == 0.5
    assert content["runs"][0]["samplers"][0]["picture"] is not None


@pytest.mark.parametrize("protocol", [
    {"n": -3}, {"n": "many"}, {"n": 1e18, "trajectory": {"path": "a-trajectory.png", "rows": -1, "frames": [{}]}},
    {"trajectory": {"path": "a.png", "rows": 1e9, "frames": [{"sigma": "x"}]}}, {"trajectory": {"path": 5}},
    {"trajectory": [1]}, {"sampler": ["a"], "metrics": [1, {"a": 2}], "fid": None}])
def test_a_strange_protocol_is_survived(protocol: Record, tmp_path: Path) -> None:
    run = trained(tmp_path, "a", usual(), steps=100)
    (run / "failure.json").write_text("[]")
    place = sampled(run, "heun", **protocol)
    content = collect(studied(tmp_path, [(run, ["seed=0"])], [(run, place)]), album=Album())
    assert content["runs"][0]["samplers"][0]["picture"] is not None or "n" not in protocol
    assert page.as_json(content)


def test_a_study_of_nothing_is_a_page_too(tmp_path: Path) -> None:
    content = collect(studied(tmp_path, []), album=Album())
    assert (content["runs"], content["problems"], over(content)) == ([], [], True)
    assert "{{" not in page.render(content, []).split("<script")[0]


# ---- the page


class Page(HTMLParser):
    """A page's scripts, and everything in it that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.fetched: list[str] = []
        self.policy = ""
        self.within: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.within = own if tag == "script" else None
        if tag == "script":
            self.scripts.append((own, ""))
        self.fetched += [str(own[name]) for name in ("src", "srcset", "data", "poster") if name in own]
        self.fetched += [str(own["href"])] if "href" in own and not str(own["href"]).startswith("#") else []
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(own["content"])

    def handle_data(self, data: str) -> None:
        if self.within is not None and self.scripts:
            self.scripts[-1] = (self.within, self.scripts[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self.within = None

    def data(self, name: str) -> Any:
        return json.loads(next(text for own, text in self.scripts if own.get("id") == name))


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A study whose names would like to be code."""
    run = trained(tmp_path, "a", [*usual(), {"event": "warning", "images": 1, "words": f"{EVIL}</script><!--"}], steps=100)
    odd = ["data.name='it''s \"quoted\"'", f"run={EVIL}", "x=\u2028&amp;\ud800"]
    return studied(tmp_path, [(run, odd)], [(run, sampled(run, EVIL.replace("/", "|")))])


def test_names_and_overrides_stay_text(evil: Path) -> None:
    content = collect(evil, album=Album())
    text = page.render(content, [])
    found = Page(text)
    assert len(found.scripts) == 5, "a name has ended a script, or begun one"
    assert EVIL not in text
    assert "<!--" not in text.split("</style>")[1]
    assert "\u2028" not in text
    shown = found.data("content")["runs"][0]
    assert shown["label"] == content["runs"][0]["label"]
    assert shown["overrides"]["run"] == EVIL
    assert shlex.split(shown["command"])[2:] == shown["arguments"]


def test_the_page_fetches_nothing_and_runs_only_its_own_scripts(evil: Path) -> None:
    content = collect(evil, album=Album())
    found = Page(page.render(content, ["AAAA"]))
    assert found.fetched == []
    style = (page.WEB / "page.css").read_text()
    assert not re.search(r"url\(|@import|https?:", style)
    assert "default-src 'none'" in found.policy
    assert "'unsafe-inline'" not in found.policy.split("script-src")[1].split(";")[0]
    assert "http" not in found.policy
    code = [text for own, text in found.scripts if own.get("type") != "application/json"]
    assert len(code) == 3
    for text in code:
        assert f"'sha256-{page.digest(text)}'" in found.policy
    assert found.data("pictures") == ["AAAA"]
    own = "".join((page.WEB / f"{name}.js").read_text() for name in page.SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|fetch\(|XMLHttpRequest|https?:", own)


def test_without_plotly_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["report.py", str(trained(tmp_path, "a", usual()))])
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: plotly: it isn't installed; pip install -e '.[report]'\n"


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, "a", usual())
    out = run / "report.html"
    out.write_text("the old page")
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            report.write(run, out, album=Album(), watch=None)
    assert out.read_text() == "the old page"
    assert not list(run.glob(".*.tmp"))
    report.write(run, out, album=Album(), watch=None)
    assert out.read_text().startswith("<!doctype html>")


# ---- the command


def test_the_command_writes_a_page_and_says_what_it_could_not_read(tmp_path: Path) -> None:
    run = trained(tmp_path, "a", [*usual(), "{broken\n", "[]\n"])
    done = tool(run)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").stat().st_size > 4_000_000, "Plotly is not inside"
    assert "1 run, " in done.stdout
    assert done.stderr == "note: metrics.jsonl: line 14: not JSON, and 1 more, named in the page\n"
    other = tmp_path / "elsewhere.html"
    assert tool(run, "--out", other).returncode == 0
    assert other.exists()


@pytest.mark.parametrize(("name", "content", "words"), [
    ("nothing", None, "holds neither study.json nor config.yaml; give"), ("study.json", "{", "study.json is not JSON"),
    ("study.json", '{"points": [{}]}', "is no record of a study"),
    ("study.json", '{"points": [{"kind": "", "label": "", "folder": "", "of": "", "job": "", "steps": "x", "overrides": []}]}',
     "is no record of a study"), ("study.json", "[]", "is no record of a study")])
def test_a_folder_of_neither_is_refused_in_one_line(name: str, content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = tool(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: folder: {tmp_path}")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_browser_slides_are_refused_in_one_line(tmp_path: Path) -> None:
    done = tool(trained(tmp_path, "a", usual()), "--png", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == ("error: --png: no chromium, chromium-browser, google-chrome or google-chrome-stable on the PATH; "
                           "install one\n")


def test_only_sections_with_something_in_them_become_slides(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", "a", usual(), steps=100)
    assert png.sections(collect(plain, album=Album())) == ["table", "loss"]
    runs = [trained(tmp_path, f"{n}", [*usual(), calibration(1000, 1.0, 0.5)], steps=100) for n in range(4)]
    swept = [(run, [f"seed={n % 2}", f"rate.peak={n // 2}"]) for n, run in enumerate(runs)]
    content = collect(studied(tmp_path, swept, [(runs[0], sampled(runs[0], "heun"))]), album=Album())
    assert png.sections(content) == ["table", "loss", "samples", "trajectories", "calibration", "heatmap"]


def test_watching_writes_again_until_all_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, "a", usual()[:-1])
    os.utime(run / "config.yaml")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("images: 1000", "images: 2000"))
    out, seen = tmp_path / "page.html", []

    def wait(seconds: float) -> None:
        seen.append((seconds, Page(out.read_text()).data("content")["watch"]))
        if len(seen) == 2:
            with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": "end", "images": 2000, "how": "trained"}) + "\n")

    monkeypatch.setattr(report.time, "sleep", wait)
    monkeypatch.setattr(sys, "argv", ["report.py", str(run), "--out", str(out), "--watch", "7"])
    report.main()
    assert seen == [(7.0, 7.0), (7.0, 7.0)]
    assert Page(out.read_text()).data("content")["watch"] is None, "a page of what has ended reloads for nothing"


@pytest.mark.parametrize(("place", "said"), [
    ("nonsense", "--wandb: 'nonsense' is not accepted; give entity/project"),
    ("us/study", "--wandb: no key for W&B; set WANDB_API_KEY or call `wandb login` once"),
])
def test_publishing_is_refused_in_one_line(place: str, said: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "a", usual())
    env = {**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, f"{ROOT}/tools/report.py", str(run), "--wandb", place], env=env, timeout=120,
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
