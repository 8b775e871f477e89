"""`launch/evaluate.py`: figures with their protocols, the same for any number of processes, resumed after a kill; refusals."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ONE_THREAD, ROOT, Command
from hydra import compose, initialize_config_dir

from launch.config.manual import CONFIGS
from launch.metrics.cost import Cost
from launch.metrics.evaluation import read_images
from launch.metrics.selection import naming_argument, select_metrics

ASKED = ["device=cpu", "precision=fp32", "sampler=heun", "sampler.steps=3", "n=20", "batch=4", "extractor=random",
         "metric.quality.kid_subset_size=10", "metric.quality.real=false", "metric.cost.batches=1"]


@pytest.fixture(scope="module")
def trained(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluated") / "run"
    command("train", *tiny, f"run={run}", "budget.images=160", "model.network.levels=2")
    return run


def records(out: Path) -> dict[str, dict[str, Any]]:
    """What was found, by metric."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return {one["metric"]: one for one in found}


@pytest.fixture(scope="module")
def one(trained: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("one")
    command("evaluate", f"run={trained}", f"out={out}", f"samples={out}/samples", *ASKED, "metrics=[quality,neighbours,cost]")
    return records(out)


def test_every_figure_has_its_protocol(one: dict[str, dict[str, Any]]) -> None:
    assert set(one) == {"quality", "neighbours", "cost"}
    for record in one.values():
        assert record["values"], f"{record['metric']} found nothing"
        assert all(isinstance(value, (int, float)) for value in record["values"].values())
        subject = record["subject"]
        assert {"run", "step", "checkpoint", "ema", "ema_rule", "seed", "precision", "device", "version", "sampler", "settings",
                "n", "nfe"} <= set(subject)
        assert (subject["sampler"], subject["nfe"], subject["n"], subject["ema"]) == ("heun", 5, 20, 0)
    measure = json.dumps(one["quality"]["measure"])
    assert "random" in measure
    assert "sha256" in measure
    assert not any("fid" in name for name in one["quality"]["values"]), "only Inception's features make an FID"


def test_figures_do_not_depend_on_the_processes(one: dict[str, dict[str, Any]], trained: Path, command: Command,
                                                tmp_path: Path) -> None:
    command("evaluate", f"run={trained}", f"out={tmp_path}", f"samples={tmp_path}/samples", *ASKED,
            "metrics=[quality,neighbours]", processes=2, torchrun=True)
    two = records(tmp_path)
    for name in ("quality", "neighbours"):
        assert two[name]["measure"] == one[name]["measure"]
        assert two[name]["values"] == pytest.approx(one[name]["values"], rel=1e-5), f"{name} differs on two processes"


def test_what_was_measured_is_not_measured_again(trained: Path, command: Command, tmp_path: Path) -> None:
    asked = ["evaluate", f"run={trained}", f"out={tmp_path}", f"samples={tmp_path}/samples", *ASKED, "metrics=[cost]"]
    command(*asked)
    (path,) = tmp_path.glob("*.json")
    before = path.stat().st_mtime_ns
    said = command(*asked).stdout
    assert "measured before" in said
    assert path.stat().st_mtime_ns == before
    command(*asked, "again=true")
    assert path.stat().st_mtime_ns > before
    assert not [*tmp_path.glob(".*")], "what was put aside is left"


def test_a_killed_evaluation_goes_on(trained: Path, command: Command, tmp_path: Path) -> None:
    asked = [f"run={trained}", f"out={tmp_path}", *ASKED, "metrics=[likelihood]", "metric.likelihood.images=20",
             "metric.likelihood.batch=1", "metric.likelihood.tolerance=1e-5"]
    with subprocess.Popen([sys.executable, f"{ROOT}/launch/evaluate.py", *asked], env=ONE_THREAD, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while len(list(tmp_path.glob(".*/*/*.npz"))) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".*/*/*.npz")}
    assert not list(tmp_path.glob("*.json")), "a record was written before its end"
    resumed = subprocess.Popen([sys.executable, f"{ROOT}/launch/evaluate.py", *asked], env=ONE_THREAD, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    while resumed.poll() is None and not list(tmp_path.glob("*.json")):
        for path, written in before.items():
            if path.exists():
                assert path.stat().st_mtime_ns == written, "what was put aside was computed again"
        time.sleep(0.01)
    said = resumed.communicate()
    assert resumed.returncode == 0, said[1]
    assert set(records(tmp_path)) == {"likelihood"}


def test_a_metric_alone_needs_no_brackets() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        alone, listed = (compose("evaluate", ["run=x", f"metrics={asked}"]) for asked in ("cost", "[cost]"))
    assert select_metrics(alone) == select_metrics(listed)


@pytest.mark.parametrize(("overrides", "words"), [
    (["metrics=[fud]"], "metrics: ['fud'] is not accepted; it must be a list of quality, neighbours"),
    (["metrics=fud"], "metrics: ['fud'] is not accepted; it must be a list of quality, neighbours"),
    (["metrics=[cost]", "n=0"], "n: 0 is not accepted"),
    (["metrics=[cost]", "ema=9"], "ema: 9 is not accepted"),
    (["metrics=[cost]", "held_out=nowhere.beton"], "error: held_out: nowhere.beton: no such data file"),
    (["metrics=[cost]", "label=a/b"], "error: label: 'a/b' is not accepted"),
    (["metrics=[outliers]", "metric.outliers.count=1"], "error: metric.outliers.count: 1 is not accepted"),
    (["metrics=[neighbours]", "metric.neighbours.k=500"], "error: metric.neighbours.k: 500 is not accepted"),
    (["metrics=[outliers]", "metric.outliers.made=[]"], "error: metric.outliers.made: [] is not accepted; there must be a set"),
    (["metrics=[fid]", "extractor=inception", "extractor.file=nowhere.pth"], "tools/fetch_weights.py"),
])
def test_bad_input_is_one_line_and_writes_nothing(overrides: list[str], words: str, trained: Path, command: Command,
                                                  tmp_path: Path) -> None:
    asked = [f"run={trained}", f"out={tmp_path}/out", f"samples={tmp_path}/samples", *ASKED, *overrides]
    done = command("evaluate", *asked, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("images", "words"), [
    (np.zeros((20, 16, 16, 1), np.uint8), "it must be uint8 (n, 16, 16, 3)"),
    (np.zeros((20, 8, 8, 3), np.uint8), "it must be uint8 (n, 16, 16, 3)"),
    (np.full((20, 16, 16, 3), np.nan, np.float32), "it must be uint8 (n, 16, 16, 3)"),
    (np.zeros((10, 16, 16, 3), np.uint8), "holds 10 images"),
    (None, "must be an .npz"),
])
def test_images_that_cannot_be_measured_are_refused(images: Any, words: str, trained: Path, command: Command,
                                                    tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    path.write_bytes(b"no archive") if images is None else np.savez(path, images=images)
    asked = [f"run={trained}", f"out={tmp_path}/out", *ASKED, f"samples={path}", "metrics=[quality]"]
    done = command("evaluate", *asked, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert not list((tmp_path / "out").glob("*.json"))


def test_images_and_labels_saved_without_names_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", images, np.arange(6))
    found = read_images(tmp_path / "samples.npz", count=5, shape=(3, 4, 5))
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), images[:5])


def test_only_a_refusal_of_an_argument_is_named_anew() -> None:
    for error, said in ((ValueError("batches: 0"), "metric.cost.batches: 0"), (ValueError("n: 0"), "n: 0"),
                        (OSError(28, "No space left on device"), "[Errno 28] No space left on device")):
        with pytest.raises(type(error)) as raised, naming_argument("cost", Cost(warmup=1, batches=1)):
            raise error
        assert str(raised.value) == said
