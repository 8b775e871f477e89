"""A job's way through faults, as far as it shows without SLURM: who says what, and what the end of its script makes of it."""
from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf

from ebm.train.distributed import MissingPeersError
from launch.config.build import make_folder
from launch.job import epilogue, preflight
from launch.job.faults import Refused, record_failures
from launch.job.process import node_name

AWAY = "Unable to contact slurm controller (connect failure)\n"


def test_three_restarts_without_progress_are_one_too_many(tmp_path: Path) -> None:
    record = tmp_path / "progress"
    steps = ("none", "10", "10", "10", "20", "20", "20", "20")
    assert [epilogue.is_stuck(record, step) for step in steps] == [False] * 7 + [True]


@pytest.mark.parametrize(("rank", "missing", "word"), [
    ("0", [1], "avoid b"), ("2", [0], "again"), ("2", [1], "again")])
def test_a_peer_that_does_not_come_brings_the_job_back(
    rank: str, missing: list[int], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits in vain; rank 0 alone knows which node it is."""
    monkeypatch.setattr(preflight, "GRACE", 0.0)
    for name, value in {"EBM_JOB": str(tmp_path), "EBM_NODES": "a b c", "LOCAL_WORLD_SIZE": "1", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="did not join"), preflight.meeting("cpu"):
        raise MissingPeersError(missing, 2.0)
    assert (tmp_path / "verdict").read_text() == word


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` that notes what it is asked, and fails with a line of the file ``down``, as long as there is one."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f"""#!/bin/bash
cd {tmp_path}
echo "$*" >>asked
if [ -s down ]; then head -n 1 down >&2; sed -i 1d down; exit 1; fi
[ "$1" != show ] || echo "JobId=7 JobState=RUNNING Requeue=1 Restarts=$(cat restarts 2>/dev/null || echo 0)"
""")
    tool.chmod(0o755)
    (tmp_path / "job").mkdir()
    path = f"{tool.parent}:{os.environ['PATH']}"
    for name, value in {"PATH": path, "EBM_JOB": str(tmp_path / "job"), "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(epilogue, "PAUSE", 0.01)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # it would ignore SIGTERM for the rest of the tests
    monkeypatch.setattr(sys, "argv", ["epilogue.py", "137"])
    return tmp_path


def test_a_controller_that_is_away_for_a_while_is_asked_again(controller: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (controller / "down").write_text(3 * AWAY)
    with pytest.raises(SystemExit):
        epilogue.main()
    asked = (controller / "asked").read_text().splitlines()
    assert asked == ["show job -o 7"] * 4 + ["requeue 7"]
    assert "requeued after exit code 137" in capsys.readouterr().out


def test_a_controller_that_stays_away_is_noted(
    controller: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(epilogue, "PATIENCE", 0.0)
    (controller / "down").write_text(9 * AWAY)
    with pytest.raises(SystemExit):
        epilogue.main()
    assert "requeued" not in capsys.readouterr().out
    assert "could not be requeued" in json.loads((controller / "job" / "failure.json").read_text())["error"]


def test_a_refusal_is_not_asked_again(controller: Path) -> None:
    (controller / "down").write_text("slurm_load_jobs error: Invalid job id\n" + 9 * "Requested operation is disabled\n")
    with pytest.raises(SystemExit):
        epilogue.main()
    assert (controller / "asked").read_text().splitlines() == ["show job -o 7", "requeue 7"]


def test_a_start_that_has_been_replaced_requeues_nothing(controller: Path) -> None:
    (controller / "restarts").write_text("1")
    with pytest.raises(SystemExit):
        epilogue.main()
    assert (controller / "asked").read_text().splitlines() == ["show job -o 7"]


@pytest.mark.parametrize(("found", "fit"), [(0, False), (7, False), (8, True)])
def test_a_node_whose_gpus_are_not_there_is_avoided(
    found: int, fit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "8", "LOCAL_WORLD_SIZE": "8",
                        "EBM_JOB": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_GPUS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    refused = pytest.raises(OSError, match=f"gives this job 8 GPUs, but PyTorch finds {found}")
    with contextlib.nullcontext() if fit else refused, preflight.meeting("auto"):
        pass
    assert (tmp_path / "verdict").exists() != fit
    with preflight.meeting("cpu"):
        pass


def test_a_gpu_that_breaks_is_a_fault_of_its_node(tmp_path: Path) -> None:
    broken = """
import sys, torch
from pathlib import Path
from launch.job.faults import record_failures
with record_failures(Path(sys.argv[1])):
    raise torch.AcceleratorError("uncorrectable ECC error encountered")
"""
    done = subprocess.run([sys.executable, "-c", broken, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "EBM_JOB": str(tmp_path)}, check=False)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "verdict").read_text() == f"avoid {node_name()}"
    assert "ECC" in json.loads((tmp_path / "failure.json").read_text())["error"]


def test_what_an_epilogue_wrote_hides_no_later_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBM_JOB", str(tmp_path))
    epilogue.note_failure(tmp_path, "no progress over 3 restarts")
    with pytest.raises(Refused), record_failures(tmp_path):
        raise Refused(2, "no such file")
    assert json.loads((tmp_path / "failure.json").read_text())["error"] == "no such file"
    epilogue.note_failure(tmp_path, "no progress over 3 restarts")
    content = json.loads((tmp_path / "failure.json").read_text())
    assert content["error"] == "no progress over 3 restarts; last error: no such file"


@pytest.mark.parametrize(("error", "said"), [
    ("OSError(28, 'No space left on device')", "out: FOLDER: No space left on device"),
    ("OSError(30, 'Read-only file system', '/data/x.npz')", "out: /data/x.npz: Read-only file system")])
def test_a_folder_that_can_t_be_written_ends_in_one_line(error: str, said: str, tmp_path: Path) -> None:
    work = f"""
import sys
from pathlib import Path
from launch.job.faults import record_failures
with record_failures(Path(sys.argv[1]), key="out"):
    raise {error}
"""
    done = subprocess.run([sys.executable, "-c", work, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "EBM_JOB": str(tmp_path)}, check=False)
    said = said.replace("FOLDER", str(tmp_path))
    assert (done.returncode, done.stderr) == (1, f"error: {said}\n")
    assert (tmp_path / "verdict").read_text() == "failed"
    assert json.loads((tmp_path / "failure.json").read_text())["error"] == said


def test_a_full_disk_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(preflight, "write_probe", full)
    with pytest.raises(OSError, match=f"^{tmp_path} can't be written: No space left on device$"):
        preflight.check_disk(tmp_path, 0.0, 0.0)


def test_a_folder_for_results_that_can_t_be_made_is_named_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"^out: /proc/foo can't be made: No such file or directory$"):
        make_folder(OmegaConf.create({"out": "/proc/foo"}), "out")
