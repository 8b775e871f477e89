"""A study where there is no SLURM: each job once, followed, stopped and resumed; what a kill leaves is not believed to live."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, Command
from omegaconf import DictConfig, OmegaConf
from test_study import without_sampler

from launch.job.process import Task, newest_step
from launch.status import explain
from launch.study import here
from launch.study.cluster import Job
from launch.study.here import run_here
from launch.study.point import Point
from launch.study.submit import Study


@pytest.fixture
def no_slurm(tmp_path: Path) -> Path:
    """A PATH without sbatch."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "env", "true"):
        os.symlink(str(shutil.which(name)), tools / name)
    return tools


def status(study: Path, no_slurm: Path, *more: str) -> str:
    """What `launch/status.py` says of a study."""
    return subprocess.run([sys.executable, "launch/status.py", str(study), *more], cwd=ROOT, check=True, text=True,
                          env={**os.environ, "PATH": str(no_slurm)}, capture_output=True).stdout


def test_without_slurm_a_study_runs_here_and_once(tiny: list[str], command: Command, no_slurm: Path, tmp_path: Path) -> None:
    asked = ["-m", *without_sampler(tiny), "budget.images=64", "preflight.disk_gb=0.01", f"store={tmp_path}/store",
             "sampler=heun", "sampler.steps=2,3", "sample.n=2"]
    env = {**os.environ, "PATH": str(no_slurm), "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return command("sweep", *asked, *more, env=env, check=False)

    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "no sbatch found: running 3 jobs on this machine" in first.stdout
    assert len(list((tmp_path / "store").glob("runs/*/samples/*/*.npz"))) == 2
    again = run("report=status")
    assert "running 0 jobs on this machine" in again.stdout
    assert again.stdout.count("done") == 2 * 3, "the report is not that of the study"
    measured = run("metrics=[cost]")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "running 2 jobs on this machine" in measured.stdout, "what was trained was trained again"
    assert len(list((tmp_path / "store").glob("runs/*/samples/*/*.npz"))) == 2, "samples that were there were drawn again"
    assert len(list((tmp_path / "store").glob("runs/*/evaluations/*/cost-*.json"))) == 2
    assert "running 0 jobs on this machine" in run("metrics=[cost]").stdout
    record = max((tmp_path / "store" / "studies").glob("*/study.json"), key=lambda path: path.stat().st_mtime)
    resubmitted = run(f"again='{record.parent}'", "budget.images=128")  # as if the configs had changed meanwhile
    assert "running 0 jobs on this machine" in resubmitted.stdout, "what was done was trained again under another name"
    refused = run("report=nothing")
    assert refused.returncode == 2
    assert "report: 'nothing' is not accepted" in refused.stderr
    failing = run("rate.peak=1e30", "seed=3")
    assert failing.returncode == 1
    assert "failed: " in failing.stdout + failing.stderr
    newest = max((tmp_path / "store" / "studies").glob("*/study.json"), key=lambda path: path.stat().st_mtime)
    shown = status(newest.parent, no_slurm)
    assert "FAILED" in shown
    assert "not finite" in " ".join(shown.split())
    assert len(json.loads(newest.read_text())["points"]) == 3


def test_a_job_that_records_no_reason_has_failed_with_the_last_error_in_its_log(
    tiny: list[str], no_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its config can't be composed, which is before there is a folder to record it in."""
    ends = {"config": "echo 'error: old' >&2; echo 'error: schedule=triangle: no such choice' >&2; exit 2",
            "silent": "exit 3", "killed": "kill -KILL $$"}
    points = [Point("train", name, tmp_path / "runs" / name, (), steps=2) for name in ends]
    study = Study(cfg=OmegaConf.create({}), params={}, compose=make_nothing, folder=tmp_path / "study")
    study.folder.mkdir()
    study.code, study.points, study.jobs = tmp_path / "code", points, {one.folder: "" for one in points}
    monkeypatch.setattr(study, "task", lambda point: Task(point.kind, "", ("/bin/sh", "-c", ends[point.label])))
    points[1].folder.mkdir(parents=True)
    (points[1].folder / "failure.json").write_text('{"error": "that of an earlier start"}')
    points[2].folder.mkdir(parents=True)
    (points[2].folder / "stacks-rank0.txt").write_text("of an earlier start's hang")
    assert not run_here(study)
    shown = " ".join(status(study.folder, no_slurm).split())
    assert shown.count("FAILED") == 3
    for name, why in (("config", "schedule=triangle: no such choice"), ("silent", "no results, exit code 3; see its log"),
                      ("killed", "killed by SIGKILL")):
        assert re.search(rf"{name}: rank 0 on \S+: {why}", shown), shown
    assert "earlier" not in shown


def test_the_reason_of_a_job_on_slurm_is_the_last_error_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "7_1_0_log.err").write_text("a warning\nerror: schedule=triangle: no such choice\n")
    point = {"kind": "train", "label": "a", "folder": "nowhere", "overrides": [], "steps": 1, "batch": 1, "job": "7_1"}
    assert explain(tmp_path, point, Job("FAILED", code="2:0")).splitlines() == [
        "schedule=triangle: no such choice", "    a warning"]
    assert explain(tmp_path, {**point, "job": "7_2"}, Job("FAILED", code="2:0")) == "exit code 2:0"


def make_nothing(_name: str, _overrides: object) -> DictConfig:
    """In place of what composes configs, where none is composed."""
    return DictConfig({})


@pytest.fixture
def dead_slurm(no_slurm: Path) -> Path:
    """A PATH with SLURM's commands, and no controller to answer them; each call is noted."""
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
        (no_slurm / name).write_text(f"#!/bin/sh\necho {name} >>{no_slurm}/asked\necho '{name}: error: no DNS' >&2\nexit 1\n")
        (no_slurm / name).chmod(0o755)
    return no_slurm


def test_a_study_runs_here_if_asked_though_slurm_is_installed(
    tiny: list[str], command: Command, dead_slurm: Path, tmp_path: Path
) -> None:
    asked = ["-m", *without_sampler(tiny), "budget.images=8", "preflight.disk_gb=0.01", f"store={tmp_path}/store",
             "sampler=heun", "sampler.steps=2,3", "sample.n=2"]
    env = {**os.environ, "PATH": str(dead_slurm), "OMP_NUM_THREADS": "1"}
    refused = command("sweep", *asked, "dry=true", env=env, check=False)
    assert refused.returncode == 2
    assert refused.stderr == ("error: squeue: squeue: error: no DNS; to run the study on this machine instead, add "
                              "cluster=here\n")
    (dead_slurm / "asked").unlink()

    dry = command("sweep", *asked, "dry=true", "cluster=here", env=env).stdout.splitlines()
    assert [line.split() for line in dry[:4]] == [["point", "kind", "job", "after"], ["default", "train"], [
        "default", "×", "heun", "sampler.steps=2", "sample", "default"], [
        "default", "×", "heun", "sampler.steps=3", "sample", "default"]]
    assert dry[4:] == ["", "cluster=here: would run 3 jobs on this machine, 1 at a time"]
    assert "running 3 jobs on this machine, 1 at a time" in command("sweep", *asked, "cluster=here", env=env).stdout
    (record,) = (tmp_path / "store" / "studies").glob("*/study.json")
    assert status(record.parent, dead_slurm).count("COMPLETED") == 3
    assert "0 jobs cancelled" in status(record.parent, dead_slurm, "--cancel")
    assert "running 0 jobs" in status(record.parent, dead_slurm, "--resubmit", "failed")
    commands = [json.loads(one.read_text())["command"] for one in (tmp_path / "store" / "studies").glob("*/study.json")]
    assert len(commands) == 2 and commands[0] == commands[1], "a resubmitted study's command isn't as typed"
    assert not (dead_slurm / "asked").exists(), "SLURM was asked"


def until(what: Callable[[], object], *, why: str, seconds: float = 120) -> None:
    """Waits until ``what`` is true; fails saying why it was waited for."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {why}"
        time.sleep(0.1)


def test_a_job_has_succeeded_if_its_results_are_there_whatever_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sleep, end = time.sleep, time.monotonic() + 30

    def pause(_seconds: float) -> None:
        assert time.monotonic() < end, "samplings wait for a checkpoint that no run will write"
        sleep(0.01)

    monkeypatch.setattr(here.time, "sleep", pause)
    ends = {"empty": "exit 0", "trained": "mkdir checkpoints; touch checkpoints/step-000000010-0123456789abcdef.pt; exit 3"}
    runs = [Point("train", name, tmp_path / "runs" / name, (), steps=10) for name in ends]
    samplings = [Point("sample", f"of {run.label}", run.folder / "samples" / "x", (), of=run) for run in runs]
    started: list[str] = []

    def task(point: Point) -> Task:
        started.append(point.label)
        return Task(point.kind, str(point.folder), ("sh", "-c", f"cd {point.folder}; {ends.get(point.label, 'touch x.npz')}"))

    points = [*runs, *samplings]
    study: Any = SimpleNamespace(points=points, jobs={one.folder: "" for one in points}, folder=tmp_path, save=lambda: None,
                                 task=task)
    assert not here.run_here(study)
    assert sorted(started) == ["empty", "of trained", "trained"], "nothing can be sampled from a run without a checkpoint"
    failures = [line for line in "".join(capsys.readouterr()).splitlines() if "failed: " in line]
    assert len(failures) == 1
    assert failures[0].startswith("failed: empty: ")
    assert failures[0].endswith(": no results, exit code 0; see its log")
    assert here.run_here(SimpleNamespace(**{**vars(study), "points": [runs[1], samplings[1]]}))  # type: ignore[arg-type]


def hear_signals() -> None:
    """As in a shell's foreground: under nohup, or in the background of a script, the suite's processes ignore these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Shell:
    """A study of one long training, with two samplings behind it, as a shell starts it."""

    def __init__(self, store: Path, tiny: list[str], no_slurm: Path, output: int | None = None) -> None:
        command = [sys.executable, "launch/sweep.py", "-m", *without_sampler(tiny), "budget.images=4_000_000", "save.every=160",
                   "log_every=5", "preflight.disk_gb=0.01", f"store={store}", "sampler=heun", "sampler.steps=2,3", "sample.n=2"]
        known = set(store.glob("studies/*/study.json"))
        self.log = store.parent / f"shell-{len(known)}.txt"
        with open(self.log, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output or file, stderr=subprocess.STDOUT,
                                            env={**os.environ, "PATH": str(no_slurm), "OMP_NUM_THREADS": "1"},
                                            preexec_fn=hear_signals)
        until(lambda: set(store.glob("studies/*/study.json")) - known, why="study.json")
        (record,) = set(store.glob("studies/*/study.json")) - known
        self.study, self.run = record.parent, Path(json.loads(record.read_text())["points"][0]["folder"])

    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text(encoding="utf-8")


@pytest.fixture
def shell(tiny: list[str], no_slurm: Path, tmp_path: Path) -> Iterator[Callable[[], Shell]]:
    begun: list[Shell] = []

    def begin(output: int | None = None) -> Shell:
        begun.append(Shell(tmp_path / "store", tiny, no_slurm, output))
        return begun[-1]

    (tmp_path / "store").mkdir()
    yield begin
    for one in begun:
        one.process.kill()
        one.process.wait()
        status(one.study, no_slurm, "--cancel")


def test_a_study_without_slurm_is_followed_stopped_and_resumed(shell: Callable[..., Shell], no_slurm: Path) -> None:
    first = shell()
    until(lambda: newest_step(first.run) > 0, why="a checkpoint")
    rows = [line for line in status(first.study, no_slurm).splitlines() if "local" in line]
    assert ["RUNNING" in rows[0], "PENDING" in rows[1], "PENDING" in rows[2]] == [True] * 3, rows
    assert "img/s" in status(first.study, no_slurm, "--logs", "0"), "the log has no bar"
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(60) == 128 + signal.SIGINT, first.said()
    assert "stopping: running jobs save first" in first.said()
    stopped = newest_step(first.run)
    assert f"stopped at step {stopped}" in status(first.study, no_slurm, "--logs", "0"), "it did not save where it was"
    assert status(first.study, no_slurm).count("CANCELLED") == 3

    # Nobody reads it any more: Ctrl-C ends `tee`, too, and a closing terminal takes the output and sends SIGHUP twice.
    second = shell(output=subprocess.PIPE)
    until(lambda: newest_step(second.run) > stopped, why="a checkpoint after the one it was stopped at")
    assert second.run == first.run and second.process.stdout is not None
    second.process.stdout.close()
    assert "3 jobs cancelled" in status(second.study, no_slurm, "--cancel")
    for _ in range(2):
        second.process.send_signal(signal.SIGHUP)
    assert second.process.wait(60) == 128 + signal.SIGTERM
    stopped = newest_step(second.run)
    assert f"stopped at step {stopped}" in status(second.study, no_slurm, "--logs", "0"), "it did not save where it was"

    third = shell()
    until(lambda: newest_step(third.run) > stopped, why="a checkpoint")
    third.process.kill()
    third.process.wait()
    shown = status(third.study, no_slurm)
    assert ("RUNNING" in shown, "PENDING" in shown, shown.count("CANCELLED")) == (True, False, 2), shown
    assert "1 job cancelled" in status(third.study, no_slurm, "--cancel")
    until(lambda: "RUNNING" not in status(third.study, no_slurm), why="the end of its training")
    assert "0 jobs cancelled" in status(third.study, no_slurm, "--cancel")
