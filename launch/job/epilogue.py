"""The end of a SLURM job's script, `python launch/job/epilogue.py <exit code of srun>`: does it end, or is it requeued?

A job whose processes report a failure ends. After any other end (a signal to stop, a kill, a hang, a lost node) it is
requeued, unless three restarts have made no progress. Only the standard library.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # the code beside this file, wherever the job was submitted

from launch.job.process import job_number, newest_step, node_name

RESTARTS = 3  # without progress
PATIENCE, PAUSE = 600.0, 5.0  # seconds for which a controller that doesn't answer is asked again, and between attempts
UNANSWERED = re.compile(r"contact|connect|timed out|timeout", re.IGNORECASE)  # scontrol's errors about one


def main() -> None:
    """Requeues this job, or exits with the code that its state should show."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # requeueing sends it to this script before it is done
    code, job, me = int(sys.argv[1]), Path(os.environ["EBM_JOB"]), job_number()
    if code == 0:
        return
    said = (job / "verdict").read_text() if (job / "verdict").exists() else ""
    if said.startswith("failed") or is_superseded(me):
        sys.exit(code)
    run = Path(json.loads((job / "task.json").read_text())["run"]) if (job / "task.json").exists() else job
    if is_stuck(job / "progress", progress_text(run)):
        reason = f"no progress over {RESTARTS} restarts; the last ended with exit code {code}"
        if said.startswith("avoid"):
            reason += f"; nodes that failed their preflight: {', '.join(said.split()[1:])}"
        note_failure(run, reason)
        print(f"error: {reason}", file=sys.stderr, flush=True)
        sys.exit(code)
    if scontrol("requeue", me, patience=PATIENCE) is None:
        note_failure(run, f"the job ended with exit code {code} and could not be requeued; see its log")
        sys.exit(code)
    print(f"requeued after exit code {code} ({said or 'no reason recorded'})", flush=True)
    if said.startswith("avoid"):
        nodes = sorted({*avoided_nodes(job), *said.split()[1:]})
        (job / "avoided").write_text(" ".join(nodes))
        for _ in range(20):  # only a pending job accepts nodes to exclude
            if scontrol("update", f"JobId={me}", f"ExcNodeList={','.join(nodes)}") is not None:
                break
            time.sleep(0.5)
    time.sleep(60)  # until SLURM ends this script
    sys.exit(code)


def scontrol(*arguments: str, patience: float = 0.0) -> str | None:
    """The output of `scontrol`, None if it refuses, or if the controller, as during a restart, does not answer within
    ``patience`` seconds."""
    until = time.monotonic() + patience
    while True:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        print(f"scontrol {' '.join(arguments)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
        if time.monotonic() >= until or not UNANSWERED.search(done.stderr):
            return None
        time.sleep(PAUSE)


def is_superseded(me: str) -> bool:
    """Whether the job is being cancelled, which is no fault, or has been started again meanwhile."""
    shown = scontrol("show", "job", "-o", me, patience=PATIENCE) or ""
    restarts = re.search(r"\bRestarts=(\d+)", shown)
    other = restarts is not None and int(restarts[1]) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return other or "JobState=CANCELLED" in shown


def progress_text(folder: Path) -> str:
    """How far the work has come: a run's newest checkpoint, or the files of a sampling and its evaluation."""
    place = folder.parents[1] / "evaluations" / folder.name
    measured = [*place.rglob("*.npz"), *place.glob("*.json")] if folder.parent.name == "samples" else []
    return f"{newest_step(folder)}/{sum(1 for _ in folder.glob('.*/*.npz'))}/{len(measured)}"


def is_stuck(record: Path, now: str) -> bool:
    """Records the progress at the end of this start; whether the last starts have all ended there."""
    ends = [*(record.read_text().split() if record.exists() else []), now]
    record.write_text(" ".join(ends))
    return len(ends) > RESTARTS and len(set(ends[-RESTARTS - 1:])) == 1


def avoided_nodes(job: Path) -> list[str]:
    """Nodes that earlier starts asked to avoid."""
    return (job / "avoided").read_text().split() if (job / "avoided").exists() else []


def note_failure(run: Path, reason: str) -> None:
    """Adds the reason to the run's failure.json, keeping what a process has written there."""
    path = run / "failure.json"
    before = {"node": node_name()}
    with contextlib.suppress(OSError, ValueError):  # missing or damaged
        before = json.loads(path.read_text())
        reason = f"{reason}; last error: {before['error']}" if before.get("error") else reason
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**before, "error": reason}, indent=2))


if __name__ == "__main__":
    main()
