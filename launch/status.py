#!/usr/bin/env python3
"""Shows the state of a study: `python launch/status.py [study folder]`; by default, of the newest in runs/studies."""
from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

from omegaconf import OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.config.override import quoted
from launch.study import cluster, here
from launch.study.cluster import Job
from launch.study.point import as_point, counted, error_line, last_record, read_study, tail

COLOURS = {"COMPLETED": "green", "done": "green", "RUNNING": "cyan", "FAILED": "red", "CANCELLED": "yellow", "TIMEOUT": "red"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="a study's folder")
    parser.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="seconds",
                        help="refresh at this interval until Ctrl-C (5)")
    parser.add_argument("--logs", metavar="point", help="show the last lines of a point's logs; give its number, job or label")
    parser.add_argument("--lines", type=int, default=30, help="lines of each log (30)")
    parser.add_argument("--cancel", action="store_true", help="cancel the study's jobs; each saves first")
    parser.add_argument("--resubmit", choices=["failed"], help="queue again all points that are neither done nor queued")
    return parser.parse_args()


def main() -> None:
    """Shows the table, or does what is asked; exits with 2 and one line on bad input."""
    options = arguments()
    try:
        folder = options.folder or newest_study()
        study = read_study(folder)
        if options.cancel:
            cancel(folder, study)
        elif options.resubmit:
            sys.exit(subprocess.run(resubmit_command(folder, study), cwd=study["cwd"], check=False).returncode)
        elif options.logs:
            print(log_ends(folder, study, options.logs, options.lines))
        elif options.watch:
            with Live(state_table(folder, study), refresh_per_second=1, screen=Console().is_terminal) as live:
                while True:
                    time.sleep(options.watch)
                    try:
                        live.update(state_table(folder, study))
                    except OSError as error:  # a busy or restarting controller: perhaps it answers the next time
                        live.update(Text(str(error), style="yellow"))
        else:
            Console(width=None if sys.stdout.isatty() else 200).print(state_table(folder, study))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass


def newest_study() -> Path:
    """The last study submitted to the default store; raises FileNotFoundError if there is none."""
    studies = Path(OmegaConf.load(Path(__file__).parents[1] / "configs" / "sweep.yaml").store) / "studies"
    found = sorted(studies.glob("*/study.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"folder: no study in {studies}; give the folder that sweep.py printed")
    return found[-1].parent


def job_numbers(study: dict[str, Any]) -> list[str]:
    """The SLURM jobs of the study's points, its own and other studies'."""
    return [point["job"] for point in study["points"] if point["job"][:1].isdigit()]


def state_table(folder: Path, study: dict[str, Any]) -> Group:
    """A table of all points with their states, and below it the reasons of failures."""
    columns = ("#", "point", "job", "state", "step", "loss", "images/s", "restarts", "node", "time left")
    made = Table(*columns, title=f"{folder}  ({study['created']})", title_justify="left")
    jobs = cluster.jobs(job_numbers(study)) if job_numbers(study) else {}
    notes: list[Text] = []
    for index, point in enumerate(study["points"]):
        job = jobs.get(point["job"]) or Job(state=here.state(folder, as_point(point), point["job"]))
        run = Path(point["folder"])
        last = last_record(run / "metrics.jsonl") if point["kind"] == "train" else {}
        step, speed = last.get("step", 0), last.get("images_per_s")
        left = (point["steps"] - step) * last["images"] / max(1, step) / speed if speed and step < point["steps"] else 0
        name = point["label"] if point["kind"] == "train" else f"  {point['of']} × {point['label']}"
        state = "done" if point["job"] == "done" else job.state
        made.add_row(str(index), name, point["job"], Text(state, style=COLOURS.get(state, "")),
                     f"{step:,} of {point['steps']:,}" if point["kind"] == "train" else "",
                     f"{last['loss']:.4f}" if last.get("loss") is not None else "", f"{speed:,.0f}" if speed else "",
                     str(job.restarts or ""), job.node, clock_text(left) if left and not job.over else "")
        if why := explain(folder, point, job):
            notes.append(Text(f"{index} {name.strip()}: {why}", style="red" if job.over else "yellow"))
    return Group(made, *notes)


def explain(folder: Path, point: dict[str, Any], job: Job) -> str:
    """Why a job is waiting or has failed, with the last lines of the failing rank's log."""
    if job.state == "PENDING":
        return f"waiting: {job.reason}" if job.reason not in ("", "None") else ""
    if job.state not in ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):
        return ""
    why = as_point(point).reason()
    logs = error_logs(folder, point, why)
    why = why or next(filter(None, map(error_line, logs)), f"exit code {job.code}")
    lines = [line for path in logs for line in tail(path, 3) if line.removeprefix("error: ") not in why]
    return "\n    ".join([why, *lines])


def error_logs(folder: Path, point: dict[str, Any], why: str) -> list[Path]:
    """The error logs of the rank that the reason names, else of rank 0."""
    rank = why.split()[1] if why.startswith("rank ") else "0"
    return sorted((folder / "logs").glob(f"{point['job'].removeprefix(here.LOCAL)}_{rank}_log.err"))


def log_ends(folder: Path, study: dict[str, Any], which: str, count: int) -> str:
    """The ends of all logs of one point; raises ValueError if there is no such point."""
    found = [point for index, point in enumerate(study["points"])
             if which in (str(index), point["job"], point["label"])]
    if not found:
        most = len(study["points"]) - 1
        raise ValueError(f"--logs: {which!r} is not accepted; it must be a number from 0 to {most}, a job or a label")
    paths = sorted((folder / "logs").glob(f"{found[0]['job'].removeprefix(here.LOCAL)}_*_log.*"))
    return "\n".join(f"== {path}\n" + "\n".join(tail(path, count)) for path in paths) or "no logs yet"


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02}:{int(seconds) % 60:02}"


def cancel(folder: Path, study: dict[str, Any]) -> None:
    """Cancels the study's waiting and running jobs."""
    own = job_numbers(study)
    alive = [number for number, job in cluster.jobs(own).items() if not job.over and number in own]
    if alive:
        cluster.ask("scancel", *alive)
    print(f"{counted(len(alive) + here.cancel(folder, study['points']), 'job')} cancelled")


def resubmit_command(folder: Path, study: dict[str, Any]) -> list[str]:
    """The command that queues the missing points of the study, with its own code and the cluster's present settings."""
    entry = str(Path(__file__).with_name("sweep.py"))
    return [sys.executable, entry, *study["command"], f"code={study['code']}", f"again={quoted(folder.resolve())}"]


if __name__ == "__main__":
    main()
