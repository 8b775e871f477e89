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
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf

from ebm.train.distributed import MissingPeersError, World
from launch.config.build import make_folder
from launch.drawing.batches import compute_batches
from launch.job import epilogue, preflight
from launch.job.faults import Refused, record_failures, write_failure
from launch.job.process import node_name, ranks

AWAY = "Unable to contact slurm controller (connect failure)\n"


def test_three_restarts_without_progress_are_one_too_many(tmp_path: Path) -> None:
    record = tmp_path / "progress"
    steps = ("none", "10", "10", "10", "20", "20", "20", "20")
    assert [epilogue.is_stuck(record, step) for step in steps] == [False] * 7 + [True]


def test_a_sampling_that_has_drawn_more_batches_has_progressed(tmp_path: Path) -> None:
    folder, world = tmp_path / "samples" / "heun", World(rank=0, size=1, device=torch.device("cpu"))
    seen = [epilogue.progress_text(folder)]
    for count in (2, 4):
        compute_batches(folder / ".0123", count, batch=2, world=world, compute=lambda part: {"x": np.array(part)}, label="")
        seen.append(epilogue.progress_text(folder))
    assert len({*seen}) == 3, seen


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
    ("OSError(30, 'Read-only file system', 'FOLDER/x.npz')", "out: FOLDER/x.npz: Read-only file system")])
def test_a_folder_that_can_t_be_written_ends_in_one_line(error: str, said: str, tmp_path: Path) -> None:
    work = f"""
import sys
from pathlib import Path
from launch.job.faults import record_failures
with record_failures(Path(sys.argv[1]), key="out"):
    raise {error}
"""
    done = subprocess.run([sys.executable, "-c", work.replace("FOLDER", str(tmp_path)), str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, env={**os.environ, "EBM_JOB": str(tmp_path)}, check=False)
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


@pytest.mark.parametrize(("verdict", "asked"), [
    ("failed", []),
    ("again", ["show job -o 7", "requeue 7"]),
    ("avoid n2 n3", ["show job -o 7", "requeue 7", "update JobId=7 ExcNodeList=n1,n2,n3"]),
])
def test_a_verdict_decides_whether_and_where_a_job_is_requeued(verdict: str, asked: list[str], controller: Path) -> None:
    (controller / "job" / "avoided").write_text("n1")  # what an earlier start asked for still holds
    (controller / "job" / "verdict").write_text(verdict)
    with pytest.raises(SystemExit) as ended:
        epilogue.main()
    assert ended.value.code == 137
    assert ((controller / "asked").read_text().splitlines() if (controller / "asked").exists() else []) == asked
    assert (controller / "job" / "avoided").read_text() == ("n1 n2 n3" if "n2" in verdict else "n1")


def test_a_job_that_is_being_cancelled_is_not_requeued(controller: Path) -> None:
    tool = controller / "bin" / "scontrol"
    tool.write_text(tool.read_text().replace("RUNNING", "CANCELLED"))
    with pytest.raises(SystemExit):
        epilogue.main()
    assert (controller / "asked").read_text().splitlines() == ["show job -o 7"]


@pytest.mark.parametrize(("nodes", "missing", "word"), [
    ("a b", [1], "avoid b"), ("a b c", [1, 2], "avoid a"), ("a b c d", [1, 3], "avoid b d"), ("a b c", [1], "avoid b")])
def test_whoever_reaches_no_other_node_is_the_one_to_avoid(
    nodes: str, missing: list[int], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"EBM_JOB": str(tmp_path), "EBM_NODES": nodes, "LOCAL_WORLD_SIZE": "1", "RANK": "0",
                        "SLURMD_NODENAME": "a"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="did not join"), preflight.meeting("cpu"):
        raise MissingPeersError(missing, 2.0)
    assert (tmp_path / "verdict").read_text() == word


@pytest.mark.parametrize("job", ["7", "123456789"])
def test_a_process_finds_its_place_in_slurms_variables(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'localhost\\nsecond\\n'\n")
    (tmp_path / "scontrol").chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "x", "SLURM_NTASKS": "8",
                        "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_JOB_ID": job}.items():
        monkeypatch.setenv(name, value)
    found = ranks()
    port = int(found.pop("MASTER_PORT"))
    assert 1024 < port < 32768, "Linux hands out those above itself, and there are none above 65535"
    assert found == {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "localhost",
                     "EBM_NODES": "localhost second"}


def test_a_process_that_has_lost_its_peer_records_no_failure(tmp_path: Path) -> None:
    waits = """
import sys
from pathlib import Path
from launch.job.faults import record_failures
with record_failures(Path(sys.argv[1])):
    raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
"""
    done = subprocess.run([sys.executable, "-c", waits, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "EBM_JOB": str(tmp_path)}, check=False)
    assert done.returncode == 1, done.stderr
    assert not [*tmp_path.iterdir()], "the job would end as failed instead of being requeued"


def test_the_first_failure_of_a_start_is_kept_until_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    for restart, error, stands in (("0", "the cause", "the cause"), ("0", "what came of it", "the cause"), ("1", "new", "new")):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        write_failure(tmp_path, error)
        assert json.loads((tmp_path / "failure.json").read_text())["error"] == stands


def test_a_disk_that_is_nearly_full_or_slow_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**30))
    preflight.check_disk(tmp_path, 2.9, 0.0)
    with pytest.raises(OSError, match=r"has 3\.00 GB of free space; preflight\.disk_gb requires 3\.1"):
        preflight.check_disk(tmp_path, 3.1, 0.0)
    with pytest.raises(OSError, match=r"MB/s; preflight\.write_mb_s requires 1000000000"):
        preflight.check_disk(tmp_path, 0.0, 1e9)
    assert not [*tmp_path.iterdir()]
