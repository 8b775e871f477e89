"""The command that makes a data set: once, whole, and with one line for bad input."""
from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
