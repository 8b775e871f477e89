"""Submits points as array jobs through submitit; each job becomes its entry's process, with true exit codes and signals."""
from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig, ListConfig, OmegaConf
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from ebm.files import write_atomically
from ebm.train.budget import local_batch
from launch.config.keys import flat
from launch.config.override import quoted
from launch.job import process
from launch.job.process import Task, become
from launch.run.version import ROOT
from launch.study.apart import checking_apart
from launch.study.arrays import Array, plan_arrays
from launch.study.cluster import array_limit, available, queued
from launch.study.design import make_points
from launch.study.environment import outside_job, python_blocking_signals
from launch.study.here import plan_here, run_here
from launch.study.point import Point, counted, read_points, read_study
from launch.study.store import frozen_code, locked, make_folder, modules_outside, queued_by

# A job starts in the folder where it was submitted, and Python would look for `launch` there, not in the study's frozen code:
# so the code that it starts with is pickled with it.
cloudpickle.register_pickle_by_value(process)


@dataclass(kw_only=True)
class Study:
    """One submission."""

    cfg: DictConfig
    params: dict[str, Any]
    compose: Callable[[str, Sequence[str]], DictConfig]
    folder: Path = Path("<study>")  # its own, once it is submitted
    code: Path = field(init=False)  # frozen
    points: list[Point] = field(init=False)
    jobs: dict[Path, str] = field(init=False)  # by a point's folder: SLURM's number, "done", or nothing yet

    def launch(self, jobs: list[list[str]]) -> None:
        """Checks every point, then submits the missing ones; nothing is queued if any check fails."""
        store = Path(self.cfg.store).resolve()
        slurm = available() and self.cfg.hydra.runtime.choices.cluster != "here"
        before = None if self.cfg.again is None else read_study(Path(self.cfg.again))["code"]
        self.code = frozen_code(store, self.cfg.code or before)
        if self.cfg.code is not None and self.cfg.again is None and self.code != ROOT:
            # The points must be named and checked by the code that runs them, with its own configs.
            os.execv(sys.executable, [sys.executable, str(self.code / "launch" / "sweep.py"), *sys.argv[1:]])
        if self.cfg.report:
            self.report()  # refused before any work
        if self.cfg.again is not None:
            self.points = read_points(Path(self.cfg.again))
        else:
            outside: set[str] = set()
            with checking_apart() as check:

                def check_noting(kind: str, text: str) -> Any:
                    outside.update(modules_outside(text))
                    return check(kind, text)

                self.points = make_points(jobs, compose=self.compose, check=check_noting, store=store, code=self.code.name,
                                          sampling=self.sampling())
            for module in sorted(outside):
                print(f"note: {module} is not in the frozen code: after a change to it, what it has trained or drawn before "
                      "still counts as done", file=sys.stderr)
        with locked(store):  # two studies submitted at once see each other's jobs
            live = queued() if slurm else set()
            self.jobs = {point.folder: "done" if point.done() else queued_by(point, live) for point in self.points}
            if slurm:
                self.check_asked()
            arrays = plan_arrays(self.points, self.jobs, limit=array_limit()) if slurm else []
            if self.cfg.dry:
                print(self.table(arrays) if slurm else plan_here(self))
                return
            self.folder = make_folder(store / "studies")
            if slurm:
                self.submit(arrays)
                self.save()
                if self.cfg.report:
                    self.submit_report()
        if not slurm:
            with outside_job():  # it may run within an allocation
                succeeded = run_here(self)
            if self.cfg.report:
                succeeded &= subprocess.run(self.report(), check=False).returncode == 0  # it reports itself what is wrong
            if not succeeded:
                raise SystemExit(1)

    def check_asked(self) -> None:
        """Raises ValueError for SLURM settings that no job can use, and batches that don't divide among a job's processes."""
        for name in ("nodes", "tasks_per_node", "timeout_min", "array_parallelism"):
            if self.params[name] < 1:
                raise ValueError(f"hydra.launcher.{name}: {self.params[name]!r} is not accepted; it must be at least 1")
        delay, limit = self.params["signal_delay_s"], 60 * self.params["timeout_min"]
        if not 0 < delay < limit:  # else the signal would come at the first moment of every start
            raise ValueError(f"hydra.launcher.signal_delay_s: {delay!r} is not accepted; it must be above 0 and below the "
                             f"{limit} seconds of hydra.launcher.timeout_min={self.params['timeout_min']}")
        for point in self.points:
            if point.kind == "train" and not self.jobs[point.folder]:
                try:
                    local_batch(point.batch, self.params["nodes"] * self.params["tasks_per_node"])
                except ValueError as error:
                    raise ValueError(f"budget.{error}") from None

    def sampling(self) -> dict[str, Any]:
        """The study's settings for all samplings: keys of sample.yaml, and of evaluate.yaml if samples are measured."""
        found: dict[str, Any] = {str(key): value for key, value in self.cfg.sample.items()}
        if self.cfg.metrics is not None:
            asked = [self.cfg.metrics] if isinstance(self.cfg.metrics, str) else self.cfg.metrics
            if not isinstance(asked, list | ListConfig):
                raise ValueError(f"metrics: {asked!r} is not accepted; it must be a list, such as [quality,cost]")
            usual = flat(OmegaConf.to_container(self.compose("evaluate", ["run=x"]).metric))
            found["metrics"] = "[" + ",".join(map(str, asked)) + "]"
            found["extractor"] = self.cfg.hydra.runtime.choices.extractor
            found |= {f"metric.{name}": "null" if value is None else value
                      for name, value in flat(OmegaConf.to_container(self.cfg.metric, resolve=True)).items()
                      if usual.get(name) != value and ".extractor." not in name}
        return found

    def submit(self, arrays: list[Array]) -> None:
        """Submits the arrays to SLURM; cancels all of them if one is refused."""
        try:
            for array in arrays:
                with outside_job():
                    submitted = self.executor(array).map_array(become, [self.task(point) for point in array.points])
                array.ids = [job.job_id for job in submitted]
                for point, number in zip(array.points, array.ids, strict=True):
                    self.jobs[point.folder] = number
                    point.folder.mkdir(parents=True, exist_ok=True)
                    write_atomically(point.folder / "queued", number.encode())
        except BaseException as error:
            taken = sorted({number.split("_")[0] for array in arrays for number in array.ids})
            if taken:
                subprocess.run(["scancel", *taken], check=False)
            shutil.rmtree(self.folder, ignore_errors=True)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
            raise ValueError(f"sbatch refused: {detail}; nothing was queued") from error
        counts = {kind: sum(len(array.points) for array in arrays if array.kind == kind) for kind in ("train", "sample")}
        rest = len(self.points) - sum(counts.values())
        print(f"{counted(counts['train'], 'run')} and {counted(counts['sample'], 'sampling')} queued in "
              + counted(len(arrays), "array")
              + (f", {rest} done or queued before" if rest else "")
              + f"\nstate and logs: python launch/status.py {os.path.relpath(self.folder)}", flush=True)

    def submit_report(self) -> None:
        """Queues the report after all jobs of the study, however they end."""
        waits = sorted({number.split("_")[0] for number in self.jobs.values() if number not in ("", "done")})
        executor = self.executor(Array("report", []))
        if waits:
            executor.update_parameters(slurm_dependency="afterany:" + ":".join(waits))
        try:
            with outside_job():
                job = executor.submit(become, Task("report", str(self.folder), self.report()))
        except FailedJobError as error:  # all other jobs are queued
            print(f"note: sbatch refused the report ({' '.join(str(error).split())}); after the jobs have ended, run: "
                  f"{shlex.join(self.report())}", file=sys.stderr)
        else:
            print(f"{self.cfg.report}: job {job.job_id}, after they have ended", flush=True)

    def report(self) -> tuple[str, ...]:
        """The command line of the study's report, run after its jobs; raises ValueError if there is no such entry."""
        entry = self.code / "launch" / f"{self.cfg.report}.py"
        if not entry.exists():
            raise ValueError(f"report: {self.cfg.report!r} is not accepted; {entry.parent} holds no {entry.name}")
        return sys.executable, str(entry), str(self.folder)

    def task(self, point: Point) -> Task:
        """The command line of a point."""
        arguments = [f"run={quoted(point.run)}", *point.overrides]
        if point.entry == "sample":
            arguments.append(f"out={quoted(point.folder)}")
        elif point.entry == "evaluate":
            arguments += [f"samples={quoted(point.folder)}", f"out={quoted(point.records)}"]
        entry = str(self.code / "launch" / f"{point.entry}.py")
        return Task(point.kind, str(point.folder), (sys.executable, entry, *arguments))

    def executor(self, array: Array) -> submitit.AutoExecutor:
        """submitit's executor with this study's sbatch header."""
        executor = submitit.AutoExecutor(folder=self.folder / "logs", cluster="slurm", slurm_python=python_blocking_signals())
        executor.update_parameters(**self.parameters(array))
        return executor

    def parameters(self, array: Array) -> dict[str, Any]:
        """The parameters of one array under submitit's names."""
        own = {name: value for name, value in self.params.items()
               if value is not None and name not in ("submitit_folder", "max_num_timeout")}
        own["name"] = f"ebm-{array.kind}"
        if array.kind != "train":
            own["nodes"] = 1
        if array.kind == "report":
            own["tasks_per_node"] = 1
        additional = {"requeue": True, **own.pop("additional_parameters", {})}
        if array.on is not None and not array.on.ids:
            own["dependency"] = "<after the runs>"
        elif array.dependency:
            own["dependency"] = array.dependency
        additional["kill-on-invalid-dep"] = "yes"
        own["additional_parameters"] = additional
        own["srun_args"] = ["--kill-on-bad-exit=1", *own.get("srun_args", [])]
        jobs = shlex.quote(str(self.folder / "jobs"))
        own["setup"] = [*own.get("setup", []),
                        f'export EBM_JOB={jobs}/$SLURM_JOB_ID; mkdir -p "$EBM_JOB"; rm -f "$EBM_JOB/verdict"',
                        f"export EBM_STUDY={shlex.quote(self.folder.name)}",
                        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK']
        epilogue = self.code / "launch" / "job" / "epilogue.py"
        own["teardown"] = [f"exec {shlex.quote(sys.executable)} {shlex.quote(str(epilogue))} $?"]
        common = {*OmegaConf.structured(BaseQueueConf).keys()}
        return {name if name in common else f"slurm_{name}": value for name, value in own.items()}

    def table(self, arrays: list[Array]) -> str:
        """What would be submitted: jobs, arrays, dependencies, header and the maximal cost."""
        lines = [f"{'point':<60} {'kind':<7} {'job':<24} after"]
        for number, array in enumerate(arrays, 1):
            lines += [f"{point.title:<60.60} {array.kind:<7} array {number} element {index:<8} {array.waits(arrays)}"
                      for index, point in enumerate(array.points)]
        rest = [point for point in self.points if self.jobs[point.folder]]
        lines += [f"{point.label:<60.60} {point.kind:<7} {self.jobs[point.folder]}" for point in rest]
        lines += [f"{self.cfg.report}: after all of these have ended"] if self.cfg.report else []
        p = self.params
        gpus = p.get("gpus_per_node") or 0
        nodes = sum((1 if array.kind == "sample" else p["nodes"]) * len(array.points) for array in arrays)
        hours = nodes * p["timeout_min"] / 60
        lines += ["", f"at most {hours * gpus:,.0f} GPU-hours ({hours:,.0f} node-hours), not counting requeued jobs"]
        if arrays:
            own = {name.removeprefix("slurm_"): value for name, value in self.parameters(arrays[0]).items()}
            names: Any = SlurmExecutor._equivalence_dict()
            own = {names.get(name, name): value for name, value in own.items()}
            memory = own.pop("mem", None)
            lines += ["", _make_sbatch_string(
                command=f"{python_blocking_signals()} -m submitit.core._submit …", folder=self.folder / "logs",
                map_count=len(arrays[0].points), mem=f"{memory}GB" if memory else None, **own)]
        return "\n".join(lines)

    def save(self) -> None:
        """Writes study.json, all that `launch/status.py` needs."""
        content = {
            "command": [one for one in sys.argv[1:] if not one.startswith(("code=", "again="))],  # which status.py appends
            "code": self.code.name, "cwd": os.getcwd(), "created": time.strftime("%Y-%m-%d %H:%M:%S"),
            "points": [{"kind": point.kind, "label": point.label, "of": point.of.label if point.of else "",
                        "folder": str(point.folder), "steps": point.steps, "batch": point.batch, "job": self.jobs[point.folder],
                        "overrides": point.overrides} for point in self.points]}
        write_atomically(self.folder / "study.json", json.dumps(content, indent=1).encode())
