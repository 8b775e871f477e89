"""The command that makes a data set: once, whole, and with one line for bad input."""
from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebm.data import Dataset

TOOL = Path(__file__).resolve().parents[1] / "tools/prepare_data.py"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *words], cwd=folder, capture_output=True, text=True, timeout=60)


def main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The tool's exit code, run in this process, which has torch imported already."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_shapes_are_made_once(tmp_path: Path) -> None:
    small = ("shapes", "--count", "20", "--test-count", "5", "--size", "8")
    first = run(tmp_path, *small)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.count("written, ") == 2
    train, test = (tmp_path / f"data/shapes/{name}.beton" for name in ("train", "test"))
    assert (Dataset.open(train).count, Dataset.open(test).count) == (20, 5)
    times = train.stat().st_mtime_ns
    again = run(tmp_path, *small, "--verify")
    assert (again.returncode, again.stdout.count("up to date, hash verified")) == (0, 2)
    assert train.stat().st_mtime_ns == times


def test_other_data_is_not_replaced_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    small = ("shapes", "--count", "20", "--test-count", "5", "--size", "8", "--out", str(tmp_path))
    assert main(monkeypatch, *small) == 0
    assert main(monkeypatch, *small, "--seed", "1") == 2
    assert "--force" in capsys.readouterr().err
    assert main(monkeypatch, *small, "--seed", "1", "--force") == 0
    assert Dataset.open(tmp_path / "train.beton").manifest.source.endswith("seed 1")
    (tmp_path / "train.beton").write_bytes(b"damaged")
    assert main(monkeypatch, *small, "--seed", "1") == 2
    assert "train.beton: damaged" in capsys.readouterr().err


def test_bad_input_is_one_line_for_the_shell(tmp_path: Path) -> None:
    done = run(tmp_path, "folder", "nowhere")
    assert (done.returncode, done.stderr) == (2, "prepare_data: nowhere: no such folder\n")


@pytest.mark.parametrize("words", [("npz", "nothing.npz:a"), ("cifar10", "--no-download"), ("shapes", "--count", "0")],
                         ids=lambda words: words[0])
def test_bad_input_leaves_nothing(tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert (said[:14], said.count("\n")) == ("prepare_data: ", 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def pictures(folder: Path, *, bad: int) -> None:
    """Two pictures that are read as they are, a small one, two with an alpha channel of which one is opaque, and bad files."""
    folder.mkdir()
    for name, size, mode, alpha in (("a", 8, "RGB", 0), ("b", 9, "RGB", 0), ("c", 4, "RGB", 0), ("d", 8, "RGBA", 9),
                                    ("e", 8, "RGBA", 255)):
        Image.new(mode, (size, size), (10, 20, 30, alpha)[:len(mode)]).save(folder / f"{name}.png")
    for index in range(bad):
        (folder / f"a-bad{index:02}.jpg").write_bytes(b"no picture")


def test_unreadable_pictures_are_listed_at_once_and_left_out_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "mine", bad=12)
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "mine" / "a-16bit.png")
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "folder", "mine", "--size", "8") == 2
    said = capsys.readouterr().err
    assert "prepare_data: 13 of 18 pictures can't be read:\n" in said
    assert said.count("not a readable image") == 10 and "\n  and 3 more\n--skip-unreadable leaves out" in said
    with Image.open(tmp_path / "mine" / "a-16bit.png") as opened:
        mode = opened.mode  # I;16, and I for older Pillow
    how = "convert it first, with ImageMagick by magick a-16bit.png -depth 8"
    assert f"more than 8 bits a channel (mode {mode}); {how}" in said
    assert not (tmp_path / "data/mine/train.beton").exists()
    for done in ("written", "up to date"):
        assert main(monkeypatch, "folder", "mine", "--size", "8", "--skip-unreadable") == 0
        assert f": {done}, 5 images of folder mine at 8 pixels, listing " in (out := capsys.readouterr()).out
        assert ", 13 unreadable left out (8 x 8" in out.out
        assert ("note: 1 of 5 pictures are smaller than 8 pixels and were enlarged\n"
                "note: 1 of 5 pictures lost their transparency\n" in out.err) == (done == "written")
    assert Dataset.open("data/mine/train.beton").manifest.source.endswith(", 13 unreadable left out")


def test_a_folder_of_nothing_readable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    for more in ([], ["--skip-unreadable"]):
        assert main(monkeypatch, "folder", str(tmp_path), "--out", str(tmp_path / "x.beton"), *more) == 2
        assert f"prepare_data: {tmp_path}/one.png: not a readable image" in capsys.readouterr().err


def test_a_folder_in_place_of_the_file_and_an_array_of_objects_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([np.zeros(2), np.zeros(3)], dtype=object), good=np.zeros((2, 8, 8), np.uint8))
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "npz", "a.npz") == 2
    assert capsys.readouterr().err.startswith("prepare_data: a.npz: array 'images' is damaged, or of Python objects")
    for out in ("data/mine", "."):
        assert main(monkeypatch, "npz", "a.npz:good", "--out", out) == 2
        assert capsys.readouterr().err == (f"prepare_data: --out {out} is not accepted; it must be a file, such as "
                                           f"{Path(out) / 'train.beton'}\n")
    with pytest.raises(FileNotFoundError, match=r"make it with tools/prepare_data.py cifar10$"):
        Dataset.open("data/cifar10/train.beton")
