"""A study where there is no SLURM: the same jobs on this machine, through submitit's local executor."""
from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from tqdm import tqdm

from launch.job.process import become
from launch.study.point import Point

if TYPE_CHECKING:
    from launch.study.submit import Study


def here(study: Study) -> bool:
    """Runs the points on this machine through submitit's local executor: one for each GPU at a time, or in turn; says
    whether all have succeeded."""
    import torch  # here alone: a process that submits is spared it

    places: list[int | None] = list(range(torch.cuda.device_count())) or [None]
    waiting = [point for point in study.points if study.jobs[point.folder] != "done"]
    print(f"no sbatch here: {len(waiting)} jobs run on this machine, {len(places)} at a time; "
          f"logs and state: python launch/status.py {os.path.relpath(study.folder)}", flush=True)
    running: dict[int | None, tuple[Point, Any]] = {}
    failed: set[Path] = set()
    os.environ["EBM_STUDY"] = study.folder.name
    with tqdm(total=len(waiting), desc="study", unit="job") as bar:
        while waiting or running:
            for place, (point, job) in list(running.items()):
                if job.done():
                    del running[place]
                    bar.update()
                    if not point.done():
                        failed.add(point.folder)
                        bar.write(f"failed: {point.label}: {point.reason() or 'it left no word; see its log'}")
            for place in places:
                if place in running:
                    continue
                ready = next((p for p in waiting if p.of is None or p.of.done() or p.of.folder in failed), None)
                if ready is None:
                    break
                waiting.remove(ready)
                if ready.of is not None and not ready.of.done():
                    failed.add(ready.folder)
                    bar.update()
                    continue
                executor = submitit.LocalExecutor(folder=study.folder / "logs")
                gpus = {} if place is None else {"gpus_per_node": 1, "visible_gpus": [place]}
                executor.update_parameters(timeout_min=int(study.params["timeout_min"]), tasks_per_node=1, **gpus)
                bar.set_postfix_str(ready.label)
                ready.folder.mkdir(parents=True, exist_ok=True)  # where it leaves word if it fails
                job = executor.submit(become, study.task(ready))
                running[place] = (ready, job)
                study.jobs[ready.folder] = f"local {job.job_id}"
            time.sleep(0.2)
    study.save()
    return not failed
