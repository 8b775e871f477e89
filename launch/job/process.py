"""Inside a SLURM job: the process becomes its task's entry, and leaves a verdict that `launch/job/epilogue.py` reads.

Only the standard library: this is imported before anything else may go wrong.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# Blocked from a job's first moment until an entry handles them, so that none is lost and none kills it during its imports.
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True)
class Task:
    """One element of an array: an entry's command line, and the folder of the run that it works on."""

    kind: str
    run: str
    command: tuple[str, ...]


def become(task: Task) -> None:
    """Replaces this process by the task's command, so that its exit code and its signals are the job's own."""
    os.environ.update(ranks())
    if os.environ["RANK"] == "0":
        place = Path(os.environ["EBM_JOB"]) / "task.json"
        place.with_suffix(".new").write_text(json.dumps(asdict(task)))
        place.with_suffix(".new").replace(place)  # never half-written, even if this process is killed
    print(" ".join(task.command), flush=True)
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    os.execvp(task.command[0], task.command)


def ranks() -> dict[str, str]:
    """The environment variables of a process group, from SLURM's."""
    env = os.environ
    nodes = subprocess.run(["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]], capture_output=True, text=True,
                           check=True).stdout.split()
    size = int(env["SLURM_NTASKS"])
    return {"RANK": env["SLURM_PROCID"], "LOCAL_RANK": env["SLURM_LOCALID"], "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(max(1, size // len(nodes))), "EBM_NODES": " ".join(nodes), "MASTER_ADDR": address(nodes[0]),
            "MASTER_PORT": str(20_000 + int(env["SLURM_JOB_ID"]) % 12_000)}  # below the ports that Linux hands out itself


def address(node: str) -> str:
    """A node's name if it can be looked up, else the address that SLURM has."""
    try:
        socket.gethostbyname(node)
    except OSError:
        text = subprocess.run(["scontrol", "show", "node", "-o", node], capture_output=True, text=True, check=True).stdout
        match = re.search(r"NodeAddr=(\S+)", text)
        return match[1] if match else node
    return node


def node_name() -> str:
    """This node's name as SLURM has it, else the machine's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint by its name, 0 if there is none."""
    names = (re.match(r"step-(\d{9})-", path.name) for path in (run / "checkpoints").glob("step-*.pt"))
    return max((int(match[1]) for match in names if match), default=0)


def job_number() -> str:
    """This job's number as SLURM's commands take it: an array's last element shares its plain one with the whole array."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def start_name() -> str:
    """The name of this start of the job, a different one after every requeue."""
    if "SLURM_JOB_ID" in os.environ:
        return f"{job_number()}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return os.environ.get("TORCHELASTIC_RUN_ID") or f"process {os.getpid()}"


def leave_verdict(text: str) -> None:
    """Records how this start of a study's job ended: "failed", "again", or "avoid <node> …"; the first verdict counts."""
    if folder := os.environ.get("EBM_JOB"):
        with contextlib.suppress(FileExistsError), open(Path(folder) / "verdict", "x", encoding="utf-8") as file:
            file.write(text)
