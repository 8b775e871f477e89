"""One process, two processes, accumulation, stopping and resuming: all the same run."""
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ONE_THREAD, ROOT, Command, final_state, fingerprint

from ebm.train.distributed import choose_device, join

STEPS, BATCH = 20, 8
LENGTH = f"budget.images={STEPS * BATCH}"


@pytest.fixture(scope="module")
def reference(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run of 20 steps, never interrupted, on one process and on two, its images read through FFCV where it is."""
    runs = {}
    for processes in (1, 2):
        runs[processes] = tmp_path_factory.mktemp("reference") / "run"
        command("train", *tiny, "data.loader=auto", f"run={runs[processes]}", LENGTH, processes=processes, torchrun=True)
    return runs


def close(a: Path, b: Path) -> None:
    """Parameters and averages of two runs agree up to the order of floating-point sums."""
    first, second = final_state(a), final_state(b)
    assert first.keys() == second.keys()
    for name in first:
        if name.startswith((".model", ".averages", ".step")):
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_train_the_parameters_of_one(reference: dict[int, Path]) -> None:
    close(reference[1], reference[2])


def test_training_moved_the_parameters(reference: dict[int, Path], tiny: list[str], command: Command, tmp_path: Path) -> None:
    command("train", *tiny, f"run={tmp_path}", f"budget.images={BATCH}")
    before, after = final_state(tmp_path), final_state(reference[1])
    assert (before[".model.network.stem.weight"] - after[".model.network.stem.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("processes", [1, 2])
def test_accumulation_trains_the_same_parameters(
    processes: int, reference: dict[int, Path], tiny: list[str], command: Command, tmp_path: Path
) -> None:
    command("train", *tiny, f"run={tmp_path}", LENGTH, "budget.micro_batch=2", processes=processes)
    close(reference[1], tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_resuming_inside_an_epoch_is_bit_for_bit(
    processes: int, reference: dict[int, Path], tiny: list[str], command: Command, tmp_path: Path
) -> None:
    command("train", *tiny, f"run={tmp_path}", f"budget.images={11 * BATCH}", processes=processes)
    assert final_state(tmp_path)[".step"] == 11  # an epoch is 7 steps
    again = command("train", *tiny, f"run={tmp_path}", LENGTH, processes=processes)
    assert "resumed at step 11" in again.stdout
    assert fingerprint(final_state(tmp_path)) == fingerprint(final_state(reference[processes]))


def test_a_run_can_come_back_on_another_number_of_processes(
    reference: dict[int, Path], tiny: list[str], command: Command, tmp_path: Path
) -> None:
    command("train", *tiny, f"run={tmp_path}", f"budget.images={11 * BATCH}", processes=2)
    command("train", *tiny, f"run={tmp_path}", LENGTH)
    close(reference[1], tmp_path)


def test_a_unet_on_two_processes_is_that_of_one_and_resumes_bit_for_bit(
    tiny: list[str], command: Command, tmp_path: Path
) -> None:
    unet = [*(one for one in tiny if not one.startswith("model")), "model=unet", "model.network.width=16",
            "model.network.blocks=1"]
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    command("train", *unet, f"run={one}", f"budget.images={8 * BATCH}", "budget.micro_batch=4")
    command("train", *unet, f"run={two}", f"budget.images={8 * BATCH}", processes=2)
    command("train", *unet, f"run={again}", f"budget.images={3 * BATCH}", processes=2)
    command("train", *unet, f"run={again}", f"budget.images={8 * BATCH}", processes=2)
    assert fingerprint(final_state(again)) == fingerprint(final_state(two))
    close(one, two)


LONGER = ["budget.images=2_400", "log_every=8"]


@pytest.fixture(scope="module")
def longer(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 steps, never interrupted."""
    run = tmp_path_factory.mktemp("longer") / "run"
    command("train", *tiny, *LONGER, f"run={run}")
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    number: signal.Signals, longer: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    overrides, run = [*tiny, *LONGER], tmp_path / "run"
    process = subprocess.Popen([sys.executable, f"{ROOT}/launch/train.py", *overrides, f"run={run}"],
                               cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(run / "metrics.jsonl", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    stopped = int(final_state(run)[".step"])
    assert output.splitlines()[-1].startswith(f"stopped at step {stopped} of 300"), f"something has the last word:\n{output}"
    assert 0 < stopped < 300
    command("train", *overrides, f"run={run}")
    assert fingerprint(final_state(run)) == fingerprint(final_state(longer))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert steps == sorted(set(steps)), "a resumed run wrote a step twice"


def test_a_run_that_is_being_trained_is_not_trained_twice_and_a_killed_one_lets_go(
    tiny: list[str], command: Command, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, f"{ROOT}/launch/train.py", *tiny, "budget.images=1_000_000", f"run={tmp_path}"],
                               cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(tmp_path / "metrics.jsonl", process)
    again = command("train", *tiny, f"run={tmp_path}", "budget.images=1_000_000", check=False)
    assert again.returncode == 2
    assert again.stderr.strip() == (f"error: run: {tmp_path} is being trained by process {process.pid} on "
                                    f"{socket.gethostname()}; wait for it or choose another run=<folder>")
    process.kill()
    process.communicate()
    command("train", *tiny, f"run={tmp_path}", "budget.images=16")


@pytest.mark.parametrize(("fault", "torchrun"), [
    ("data.train=${oc.env:RANK}.beton", True), ("run=/dev/null/run", False), ("budget.batch=9", False)])
def test_what_one_process_cannot_do_ends_all_of_them_in_one_line(
    fault: str, torchrun: bool, tiny: list[str], command: Command
) -> None:
    key = fault.split("=")[0]
    others = [override for override in tiny if not override.startswith(f"{key}=")]
    done = command("train", *others, fault, "timeout_seconds=30", processes=2, torchrun=torchrun, check=False)
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "exitcode: 2" in done.stderr if torchrun else done.returncode == 2, done.stderr  # torchrun's own is 1


@pytest.mark.parametrize(("count", "bound", "rank", "device"), [
    (2, "", 1, "cuda:1"),
    (1, "3", 0, "cuda:0"),
    (1, "3", 1, "cuda:0"),
])
def test_each_process_takes_its_own_gpu(
    count: int, bound: str, rank: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, count=count, bound=bound)
    assert str(choose_device("auto", rank)) == device


def test_on_a_gpu_cudnn_adds_up_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, count=2, bound="")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join(device="cuda", timeout_seconds=1, peers_seconds=1) as world:
        assert (str(world.device), torch.backends.cudnn.deterministic) == ("cuda:0", True)


@pytest.mark.parametrize("rank", [0, 1])
def test_too_few_gpus_are_refused_by_every_process(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, count=1, bound="")
    with pytest.raises(ValueError, match="device: 'cuda' is not accepted; 2 processes on this node need as many GPUs, and 1"):
        choose_device("cuda", rank)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *, count: int, bound: str) -> None:
    """A node of two processes that see ``count`` GPUs, bound one to each by SLURM where ``bound`` says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("SLURM_STEP_GPUS", bound)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Returns once the file holds something; fails where the process ends before or a minute passes."""
    for _ in range(600):
        if path.exists() and path.stat().st_size:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    pytest.fail(f"{path} was not written within a minute")


def test_a_peer_that_does_not_come_is_named_and_its_node_avoided(tiny: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**ONE_THREAD, "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(port), "EBM_JOB": str(tmp_path), "EBM_NODES": "first second", "SLURMD_NODENAME": "first"}
    done = subprocess.run([sys.executable, f"{ROOT}/launch/train.py", *tiny, f"run={tmp_path}/run", "peers_seconds=2"],
                          capture_output=True, text=True, timeout=120, env=env, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: peers_seconds: rank 1, 2 did not join within 2 s (node first, second; seen from node first)")
    assert (tmp_path / "verdict").read_text() == "avoid first second"
