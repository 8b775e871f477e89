"""`launch/sample.py`: the same images for the same seed, whatever the processes, the batch or the count."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ONE_THREAD, ROOT, Command
from PIL import Image


@pytest.fixture(scope="module")
def trained(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    command("train", *tiny, f"run={run}", "budget.images=160", "average=several")
    return run


def images(command: Command, run: Path, out: Path, *overrides: str, processes: int = 1) -> np.ndarray:
    command("sample", f"run={run}", f"out={out}", "device=cpu", "sampler=heun_churn", "sampler.steps=4", *overrides,
            processes=processes, torchrun=processes > 1)
    (path,) = out.glob("*.npz")
    return np.load(path)["images"]


def test_images_do_not_depend_on_processes_or_count(trained: Path, command: Command, tmp_path: Path) -> None:
    one = images(command, trained, tmp_path / "one", "n=10", "batch=4")
    two = images(command, trained, tmp_path / "two", "n=10", "batch=4", processes=2)
    fewer = images(command, trained, tmp_path / "fewer", "n=4", "batch=4")
    other = images(command, trained, tmp_path / "other", "n=4", "batch=4", "seed=1")
    assert one.shape == (10, 16, 16, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[:4], fewer)
    assert np.abs(one[:4].astype(int) - other.astype(int)).mean() > 1
    picture, film = sorted((tmp_path / "one").glob("*.png"), key=lambda path: len(path.name))
    with Image.open(picture) as opened:
        assert opened.mode == "RGB"
    protocol, shown = (json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("one", "two"))
    told = ("seconds", "joules", "time", "run")
    assert {k: v for k, v in protocol.items() if k not in told} == {k: v for k, v in shown.items() if k not in told}
    assert protocol["nfe"] == 7  # two for each of four steps but the last
    frames = protocol["trajectory"]["frames"]
    assert [frame["step"] for frame in frames] == [1, 2, 3, 4]
    assert [frame["sigma"] for frame in frames] == sorted((frame["sigma"] for frame in frames), reverse=True)
    with Image.open(film) as opened:
        pixels = np.asarray(opened)
    assert pixels.shape == (16 * protocol["trajectory"]["rows"], 16 * len(frames), 3)
    np.testing.assert_array_equal(pixels[:, -16:], one[:4].reshape(-1, 16, 3), "the last column is not what was drawn")


def test_a_file_is_named_by_what_its_images_depend_on(trained: Path, command: Command, tmp_path: Path) -> None:
    images(command, trained, tmp_path, "n=2", "seed=3", "ema=1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"heun_churn-steps=4-n2-seed3-step20-ema1{ending}" for ending in ("-trajectory.png", ".json", ".npz", ".png")]


def test_each_average_and_checkpoint_can_be_sampled(trained: Path, command: Command, tmp_path: Path) -> None:
    first = images(command, trained, tmp_path / "a", "n=4", "checkpoint=best")
    third = images(command, trained, tmp_path / "b", "n=4", "ema=2")
    assert (first != third).any()
    refused = command("sample", f"run={trained}", "ema=3", check=False)
    assert refused.returncode == 2
    assert refused.stderr.strip() == "error: ema: 3 is not accepted; the run has 3, counted from 0"


@pytest.mark.parametrize(("bad", "why"), [("true", "True is not accepted; it needs a GPU"),
                                          ("maybe", "'maybe' is not accepted; choose auto, true or false")])
def test_a_graph_is_recorded_on_a_gpu_alone(bad: str, why: str, trained: Path, command: Command) -> None:
    refused = command("sample", f"run={trained}", f"cuda_graph={bad}", "device=cpu", check=False)
    assert (refused.returncode, refused.stderr.strip()) == (2, f"error: cuda_graph: {why}")


def test_processes_that_would_draw_from_different_models_refuse(
    trained: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    """As when a run that is being trained saves between their readings."""
    run = tmp_path / "run"
    command("train", *tiny, f"run={run}", "budget.images=160", "save.every=80", "save.keep=2")
    names = sorted(path.name for path in (run / "checkpoints").glob("*.pt"))[-2:]
    env = {**ONE_THREAD, **{f"CHECKPOINT_{rank}": name for rank, name in enumerate(names)}}
    refused = command("sample", f"run={run}", "device=cpu", "checkpoint='${oc.env:CHECKPOINT_${oc.env:RANK}}'", processes=2,
                      env=env, check=False)
    assert refused.returncode == 2, refused.stderr
    said = f"error: checkpoint: processes have found different ones ({', '.join(names)})"
    assert refused.stderr.splitlines()[-1].startswith(said)
    env = {**ONE_THREAD, "PRECISION_0": "fp32", "PRECISION_1": "bf16"}  # as "auto" is on nodes of two kinds
    refused = command("sample", f"run={run}", "device=cpu", "precision='${oc.env:PRECISION_${oc.env:RANK}}'", processes=2,
                      env=env, check=False)
    said = "error: precision: 'auto' is not accepted on nodes of different kinds; choose bf16 or fp32"
    assert refused.stderr.splitlines()[-1] == said
    assert not (run / "samples").exists()


def test_a_checkpoint_of_another_model_or_name_is_refused(
    trained: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    other, (path, *_) = tmp_path / "other", sorted((trained / "checkpoints").glob("*.pt"))
    command("train", *tiny, f"run={other}", "budget.images=8", "model.network.width=16")
    refused = command("sample", f"run={other}", "device=cpu", f"checkpoint={path}", check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: checkpoint: {path.name} is of another model than {other}/config.yaml: Error(s)")
    assert refused.stderr.count("\n") == 1
    renamed = tmp_path / "mine.pt"
    renamed.write_bytes(path.read_bytes())
    refused = command("sample", f"run={trained}", "device=cpu", f"checkpoint={renamed}", check=False)
    assert refused.stderr.startswith(f"error: {renamed}: not a checkpoint's name")


def killed_while_drawing(folder: Path, *overrides: str, batches: int) -> list[Path]:
    """What has been put aside in ``folder`` by a process that was killed after so many batches."""
    with subprocess.Popen([sys.executable, f"{ROOT}/launch/sample.py", *overrides], env=ONE_THREAD,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while len(list(folder.glob(".*/*.npz"))) < batches:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    return sorted(folder.glob(".*/*.npz"))


def test_another_number_of_images_is_put_aside_elsewhere(trained: Path, command: Command, tmp_path: Path) -> None:
    """A few samples drawn while many are being drawn take none of those with them."""
    overrides = [f"run={trained}", "device=cpu", "sampler=heun", "sampler.steps=200", "batch=4", f"out={tmp_path}"]
    before = killed_while_drawing(tmp_path, *overrides, "n=400", batches=2)
    command("sample", *overrides, "n=4")
    assert sorted(tmp_path.glob(".*/*.npz")) == before


def test_what_was_drawn_before_a_kill_is_not_drawn_again(trained: Path, command: Command, tmp_path: Path) -> None:
    overrides = [f"run={trained}", "device=cpu", "sampler=heun_churn", "sampler.steps=60", "n=120", "batch=4"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    before = killed_while_drawing(halved, *overrides, f"out={halved}", batches=3)
    assert 3 <= len(before) < 30
    (aside,) = halved.glob(".*")
    marked = before[0]
    with np.load(marked) as batch:
        content = dict(batch)
    np.savez(marked, **content | {"images": 255 - content["images"]})  # if it is taken as it is, the final file shows it
    command("sample", *overrides, f"out={halved}")
    command("sample", *overrides, f"out={whole}")
    resumed, truth = (np.load(next(folder.glob("*.npz")))["images"] for folder in (halved, whole))
    np.testing.assert_array_equal(255 - resumed[:4], truth[:4])
    np.testing.assert_array_equal(resumed[4:], truth[4:])
    assert not aside.exists()
