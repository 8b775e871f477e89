"""The report's pictures: cut, thinned and kept within the page's limit; what can't be read is named and nothing else lost."""
from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.bench.made import Record, grid, sampled, shade, studied, trained, usual
from tools.review import page
from tools.review.album import Album, Grid, Share, measure_grid, square_grid
from tools.review.collect import collect, is_over


def shades(album: Album, sheet: Record) -> list[int]:
    """The grey of every tile of a sheet in the album."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(album.pictures[sheet["picture"]]))).convert("L"))
    w, h, columns = sheet["width"], sheet["height"], sheet["columns"]
    return [round(float(picture[i // columns * h:(i // columns + 1) * h, i % columns * w:(i % columns + 1) * w].mean()))
            for i in range(sheet["count"])]


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
    grid(tmp_path / "grid.png", square_grid(100))
    album, share = Album(), Share(20_000)
    way = album.frames(tmp_path / "way.png", Grid(50, 8, 400), [{"step": step} for step in range(50)], share)
    tiles = album.tiles(tmp_path / "grid.png", square_grid(100), share)
    assert way is not None and tiles is not None
    steps = [frame["step"] for frame in way["frames"]]
    assert (steps[0], steps[-1], len(steps), way["rows"]) == (0, 49, 8, 3)
    assert shades(album, way)[:8] == pytest.approx([shade(step) for step in steps], abs=3)
    assert shades(album, tiles) == pytest.approx([shade(i) for i in range(9)], abs=3)
    assert sum(len(base64.b64decode(one)) for one in album.pictures) <= 20_000
    assert album.tiles(tmp_path / "grid.png", square_grid(100), Share(100)) is None


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
    assert measure_grid(tmp_path / "a.png", [3, 8, 8], 100) == Grid(3, 2, 6)
    assert measure_grid(tmp_path / "a.png", [3, 7, 7], 100) is None
    assert measure_grid(tmp_path / "a.png", None, 100) is None


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
    {"trajectory": [1]}, {"sampler": ["a"]}])
def test_a_strange_protocol_is_survived(protocol: Record, tmp_path: Path) -> None:
    run = trained(tmp_path, "a", usual(), steps=100)
    (run / "failure.json").write_text("[]")
    place = sampled(run, "heun", **protocol)
    content = collect(studied(tmp_path, [(run, ["seed=0"])], [(run, place)]), album=Album())
    assert content["runs"][0]["samplers"][0]["picture"] is not None or "n" not in protocol
    assert page.as_json(content)


def test_a_study_of_nothing_is_a_page_too(tmp_path: Path) -> None:
    content = collect(studied(tmp_path, []), album=Album())
    assert (content["runs"], content["problems"], is_over(content)) == ([], [], True)
    assert "{{" not in page.render(content, []).split("<script")[0]
