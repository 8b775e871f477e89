"""Checkpoints: whole or absent after a kill, a damaged one passed over, the last n and the best kept."""
from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from ebm import files
from ebm.files import write_atomically
from ebm.train.checkpoint import Checkpoints, DamagedCheckpointError, load

SAVING = """
import sys, torch
from pathlib import Path
from ebm.train.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
step = int(sys.argv[2])
while True:
    step += 1
    checkpoints.save(step, {"step": step, "model": {"weight": torch.full((1_000_000,), float(step))}})
    print(step, flush=True)
"""


def state(step: int) -> dict[str, object]:
    return {"step": step, "model": {"weight": torch.full((1000,), float(step))}}


def test_a_damaged_checkpoint_is_healed_by_saving_the_same_state_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = checkpoints.save(1, state(1))
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoints.save(1, state(1)) == path
    assert load(path)["step"] == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_a_damaged_one_is_kept_in_its_place(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in range(1, 2 + keep):
        path = checkpoints.save(step, state(step))
    checkpoints.mark_best(path, 1.0)
    whole = {step: saved for saved in checkpoints.paths() if (step := int(saved.name[5:14]))}
    for step in sorted(whole)[-keep:]:  # all that were kept, the best among them
        whole[step].write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged|no checkpoint is intact"):
        assert checkpoints.newest() is None
    for step in (1, 2):
        saved = checkpoints.save(step, {**state(step), "again": True})
        assert checkpoints.newest() == saved, "the damaged ones were kept, and it was not"
    assert checkpoints.best() is None
    assert checkpoints.mark_best(saved, 2.0)
    assert load(saved)["step"] == 2
    assert len(checkpoints.paths()) == min(keep, 2)


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = checkpoints.save(1, state(1))
    assert not checkpoints.mark_best(path, float("nan"))
    assert checkpoints.mark_best(path, 2.0)
    assert not checkpoints.mark_best(path, float("nan"))


def test_a_kill_while_saving_loses_no_saved_step(tmp_path: Path) -> None:
    moments = random.Random(0)
    step = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path), str(step)], stdout=subprocess.PIPE,
                                   text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in (first + process.stdout.read()).splitlines()]
        process.wait()
        process.stdout.close()
        newest = Checkpoints(tmp_path, keep=2).newest()
        assert newest is not None
        content = load(newest)
        assert content["step"] in (said[-1], said[-1] + 1), "a step that was saved before the kill is gone"
        assert (content["model"]["weight"] == content["step"]).all()
        step = content["step"]
    Checkpoints(tmp_path, keep=2).save(step + 1, state(step + 1))
    assert [path.name for path in tmp_path.glob(".*")] == [], "leftovers of the kills were not cleared away"
    assert len(list(tmp_path.glob("*.pt"))) == 2


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty"])
def test_a_damaged_newest_is_reported_and_the_one_before_used(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    older, newest = checkpoints.save(1, state(1)), checkpoints.save(2, state(2))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": content[: len(content) // 2], "one bit": content, "empty": b""}[damage])
    with pytest.raises(DamagedCheckpointError, match=newest.name):
        load(newest)
    with pytest.warns(UserWarning, match=f"{newest.name}: damaged.*going back to the one before it"):
        assert checkpoints.newest() == older


def test_the_last_n_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, 0.35), (5, 0.6)):
        better = checkpoints.mark_best(checkpoints.save(step, state(step)), loss)
        assert better == (step <= 2)
    assert [load(path)["step"] for path in checkpoints.paths()] == [5, 4, 2]
    best = checkpoints.best()
    assert best is not None
    assert (load(best[0])["step"], best[1]) == (2, 0.3)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    first = checkpoints.save(1, state(1))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, state(2))
    assert list(tmp_path.iterdir()) == [first]
    assert checkpoints.newest() == first


def test_only_tensors_and_plain_values_are_loaded(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(1, {"step": 1, "code": os.system})
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        load(path)


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"a longer first version")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_power_cut_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before it gets its name, and the name before the call returns."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else
                    f"file of {os.path.getsize(f'/proc/self/fd/{descriptor}')} bytes")
        fsync(descriptor)

    def moved(*names: Path) -> None:
        done.append("name")
        replace(*names)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", moved)
    write_atomically(tmp_path / "file", b"content")
    assert done == ["file of 7 bytes", "name", "folder"]


def test_a_newest_checkpoint_that_cannot_be_read_is_passed_over_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    older = checkpoints.save(1, state(1))
    (tmp_path / "step-000000002-0123456789abcdef.pt").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="No such file.*going back to the one before it"):
        assert checkpoints.newest() == older


def test_of_equally_good_checkpoints_the_first_is_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.mark_best(first := checkpoints.save(1, state(1)), 0.5)
    assert not checkpoints.mark_best(checkpoints.save(2, state(2)), 0.5)
    assert checkpoints.best() == (first, 0.5)
