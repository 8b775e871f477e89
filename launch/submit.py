"""From points to array jobs: a Hydra launcher over hydra-submitit-launcher's, whose jobs' ends are true.

It submits and returns. Each job is an entry's own process (`launch/job.py`), so exit codes, signals and requeues are ours.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf, open_dict

from ebm.train.checkpoint import write_atomically
from launch.arrays import Array, plan
from launch.cluster import array_limit, available, queued
from launch.here import here
from launch.job import STOP_SIGNALS, Task, become
from launch.study import Point, freeze, points


@dataclass
class StudyConf(SlurmQueueConf):  # type: ignore[misc]
    """hydra-submitit-launcher's options for SLURM, and what srun is given besides."""

    _target_: str = "hydra_plugins.ebm.StudyLauncher"
    submitit_folder: str = ""
    srun_args: list[str] = field(default_factory=list)


class StudyLauncher(SlurmLauncher):  # type: ignore[misc]
    """Submits the points of a multirun that are neither done nor queued, and returns."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns one empty result for each point: nobody waits for them here."""
        assert self.config is not None
        study = Study(cfg=self.config, params=dict(self.params), compose=self.compose)
        study.launch([list(overrides) for overrides in job_overrides])
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]

    def compose(self, name: str, overrides: Sequence[str]) -> DictConfig:
        """Another entry's config, as its own command line would make it."""
        assert self.hydra_context is not None
        cfg: DictConfig = self.hydra_context.config_loader.load_configuration(config_name=name, overrides=list(overrides),
                                                                  run_mode=RunMode.RUN)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
        return cfg


# As Hydra's search for plugins has left it: the search imports the module a second time.
BasicSweeper: Any = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]


class StudySweeper(BasicSweeper):  # type: ignore[misc]
    """Hydra's own, except that it does not compose every point to check it: the points are checked as what they become."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: see `points`."""


@dataclass
class StudySweeperConf(BasicSweeperConf):
    """Hydra's options: max_batch_size and params."""

    _target_: str = "hydra_plugins.ebm.StudySweeper"


# Hydra accepts launchers and sweepers by this kind of name alone.
Plugins.instance().class_name_to_class.update({StudyConf._target_: StudyLauncher, StudySweeperConf._target_: StudySweeper})
ConfigStore.instance().store(group="hydra/launcher", name="study", node=StudyConf(), provider="ebm")
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf(), provider="ebm")


@dataclass(kw_only=True)
class Study:
    """One submission."""

    cfg: DictConfig
    params: dict[str, Any]
    compose: Any
    folder: Path = field(init=False)  # of its own, once it is submitted
    code: Path = field(init=False)  # the frozen
    points: list[Point] = field(init=False)
    jobs: dict[Path, str] = field(init=False)  # by a point's folder: SLURM's number, "done", or nothing yet
    slurm: bool = field(init=False)

    def launch(self, jobs: list[list[str]]) -> None:
        """Checks every point, then submits what is missing; nothing is queued where anything is wrong."""
        store = Path(self.cfg.store).resolve()
        self.slurm = available()
        version = self.cfg.code or freeze(store)
        self.code = store / "code" / version
        if not self.code.exists():
            raise ValueError(f"code: {version!r} is not in {store}/code; there are "
                             f"{', '.join(sorted(path.name for path in (store / 'code').glob('[!.]*'))) or 'none'}")
        sampling = OmegaConf.to_container(self.cfg.sample, resolve=True)
        assert isinstance(sampling, dict)
        with locked(store):  # so that two studies submitted at once see each other's jobs
            self.points = points(jobs, store=store, code=version, compose=self.compose, sampling=sampling)
            live = queued() if self.slurm else set()
            self.jobs = {point.folder: "done" if point.done() else holder(point, live) for point in self.points}
            arrays = plan(self.points, self.jobs, limit=array_limit() if self.slurm else len(self.points))
            if self.cfg.dry:
                print(self.table(arrays))
                return
            self.folder = fresh(store / "studies")
            if self.slurm:
                self.submit(arrays)
            self.save(jobs)
        if not self.slurm:
            here(self)

    def submit(self, arrays: list[Array]) -> None:
        """Hands the arrays to SLURM; takes all of them back where one is refused."""
        try:
            for array in arrays:
                executor = self.executor(array)
                submitted = executor.map_array(become, [self.task(point) for point in array.points])
                array.ids = [job.job_id for job in submitted]
                for point, number in zip(array.points, array.ids, strict=True):
                    self.jobs[point.folder] = number
                    point.folder.mkdir(parents=True, exist_ok=True)
                    write_atomically(point.folder / "queued", number.encode())
        except Exception as error:
            taken = sorted({number.split("_")[0] for array in arrays for number in array.ids})
            if taken:
                subprocess.run(["scancel", *taken], check=False)
            shutil.rmtree(self.folder, ignore_errors=True)
            detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
            raise ValueError(f"sbatch refused: {detail}; nothing is queued") from error
        counts = {kind: sum(len(array.points) for array in arrays if array.kind == kind) for kind in ("train", "sample")}
        rest = len(self.points) - sum(counts.values())
        print(f"{counts['train']} runs and {counts['sample']} samplings queued in {len(arrays)} arrays"
              + (f", {rest} done or queued before" if rest else "")
              + f"\nfollow them: python launch/status.py {os.path.relpath(self.folder)}", flush=True)

    def task(self, point: Point) -> Task:
        """The command line of a point."""
        arguments = [f"run={quoted(point.run)}", *point.overrides]
        if point.kind == "sample":
            arguments.append(f"out={quoted(point.folder)}")
        python = sys.executable
        return Task(point.kind, str(point.folder), (python, str(self.code / "launch" / f"{point.kind}.py"), *arguments))

    def executor(self, array: Array) -> submitit.AutoExecutor:
        """submitit's, with this study's sbatch header."""
        executor = submitit.AutoExecutor(folder=self.folder / "logs", cluster="slurm", slurm_python=python_blocking_signals())
        executor.update_parameters(**self.parameters(array))
        return executor

    def parameters(self, array: Array) -> dict[str, Any]:
        """Parameters of one array, as submitit names them."""
        own = {name: value for name, value in self.params.items()
               if value is not None and name not in ("submitit_folder", "max_num_timeout")}
        folder = getattr(self, "folder", Path("<study>"))
        own["name"] = f"ebm-{array.kind}"
        if array.kind == "sample":
            own["nodes"] = 1
        additional = {"requeue": True, **own.pop("additional_parameters", {})}
        if array.on is not None and not array.on.ids:
            own["dependency"] = "<after the runs>"
        elif array.dependency:
            own["dependency"] = array.dependency
        additional["kill-on-invalid-dep"] = "yes"
        own["additional_parameters"] = additional
        own["srun_args"] = ["--kill-on-bad-exit=1", *own.get("srun_args", [])]
        jobs = shlex.quote(str(folder / "jobs"))
        own["setup"] = [*own.get("setup", []), f"export PYTHONPATH={shlex.quote(str(self.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
                        f'export EBM_JOB={jobs}/$SLURM_JOB_ID; mkdir -p "$EBM_JOB"; rm -f "$EBM_JOB/verdict"',
                        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK']
        own["teardown"] = [f"exec {shlex.quote(sys.executable)} -m launch.epilogue $?"]
        common = {*OmegaConf.structured(BaseQueueConf).keys()}
        return {name if name in common else f"slurm_{name}": value for name, value in own.items()}

    def table(self, arrays: list[Array]) -> str:
        """What would be submitted: jobs, arrays, dependencies, header and the most that it can cost."""
        lines = [f"{'point':<60} {'kind':<7} {'job':<24} after"]
        for number, array in enumerate(arrays, 1):
            lines += [f"{point.of.label + ' × ' + point.label if point.of else point.label:<60.60} {array.kind:<7} "
                      f"array {number} element {index:<8} {array.waits(arrays)}"
                      for index, point in enumerate(array.points)]
        rest = [point for point in self.points if self.jobs[point.folder]]
        lines += [f"{point.label:<60.60} {point.kind:<7} {self.jobs[point.folder]}" for point in rest]
        p = self.params
        gpus = p.get("gpus_per_node") or 0
        nodes = sum((1 if array.kind == "sample" else p["nodes"]) * len(array.points) for array in arrays)
        hours = nodes * p["timeout_min"] / 60
        lines += ["", f"at most {hours * gpus:,.0f} GPU-hours ({hours:,.0f} node-hours) before any job comes back"]
        for array in arrays[:1]:
            with contextlib.suppress(ImportError):
                from submitit.slurm.slurm import _make_sbatch_string
                own = self.parameters(array)
                own = {name.removeprefix("slurm_"): value for name, value in own.items()}
                renamed = {"name": "job_name", "timeout_min": "time", "tasks_per_node": "ntasks_per_node"}
                memory = own.pop("mem_gb", None)
                own = {renamed.get(name, name): value for name, value in own.items()}
                lines += ["", _make_sbatch_string(command=f"{python_blocking_signals()} -m submitit.core._submit …",
                                                  folder="<study>/logs", map_count=len(array.points),
                                                  mem=f"{memory}GB" if memory else None, **own)]
        return "\n".join(lines)

    def save(self, jobs: list[list[str]]) -> None:
        """Writes study.json, which is all that `launch/status.py` needs."""
        content = {
            "command": sys.argv[1:], "code": self.code.name, "cwd": os.getcwd(), "created": time.strftime("%Y-%m-%d %H:%M:%S"),
            "points": [{"kind": point.kind, "label": point.label, "of": point.of.label if point.of else "",
                        "folder": str(point.folder), "steps": point.steps, "job": self.jobs[point.folder] or "here",
                        "overrides": point.overrides} for point in self.points]}
        write_atomically(self.folder / "study.json", json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Context in which no other study of the store is submitted."""
    store.mkdir(parents=True, exist_ok=True)
    with open(store / ".lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fresh(folder: Path) -> Path:
    """A new folder of this study's own, named by the time."""
    folder.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y-%m-%d-%H%M%S")
    for number in range(1000):
        path = folder / (name if number == 0 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise OSError(f"{folder}: no free name")


def quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def holder(point: Point, live: set[str]) -> str:
    """The job that another study has queued for the point, if it still waits or runs."""
    note = point.folder / "queued"
    number = note.read_text() if note.exists() else ""
    return number if number in live else ""


def python_blocking_signals() -> str:
    """The interpreter's command, such that no signal is lost or kills before `launch/job.py` has taken over."""
    block = ["env", *(f"--block-signal={number.name.removeprefix('SIG')}" for number in STOP_SIGNALS)]
    works = subprocess.run([*block, "true"], capture_output=True, check=False).returncode == 0  # coreutils 8.31 or newer
    return shlex.join([*(block if works else []), sys.executable])
