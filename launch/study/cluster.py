"""Queries SLURM: whether it is installed, what waits or runs, and how jobs have ended."""
from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job in SLURM, or one element of an array."""

    state: str
    reason: str = ""
    node: str = ""
    restarts: int = 0
    code: str = ""

    @property
    def over(self) -> bool:
        """Whether it is neither waiting nor running."""
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")


def ask(*command: str) -> str:
    """The output of a SLURM command; raises OSError with its error message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def queued() -> set[str]:
    """Numbers of the user's waiting and running jobs, arrays element by element.

    Raises OSError, with what to do where SLURM is installed and there is no cluster.
    """
    try:
        return {name.removesuffix("_N/A") for name in ask("squeue", "-h", "-r", "--me", "-o", "%F_%K").split()}
    except OSError as error:
        raise OSError(f"{error}; to run the study on this machine instead, add cluster=here") from error


def array_limit() -> int:
    """The largest number of elements in one array."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return int(match[1]) - 1 if match else 1000


def jobs(numbers: Iterable[str]) -> dict[str, Job]:
    """These jobs by number: from squeue while they live, afterwards from the accounting, if there is one."""
    wanted = sorted({number.split("_")[0] for number in numbers})
    found: dict[str, Job] = {}
    if not wanted:
        return found
    try:
        past = ask("sacct", "-n", "-P", "-X", "-D", "-j", ",".join(wanted), "-o", "JobID,State,ExitCode,NodeList,Reason")
    except OSError:  # no accounting here
        past = ""
    for line in past.splitlines():
        number, state, code, node, reason = line.split("|")
        restarts = found[number].restarts + 1 if number in found else 0  # -D: one line for each start, the last one last
        found[number] = Job(state=state.split()[0], code=code, node=node if node != "None assigned" else "",
                            reason=reason if reason != "None" else "", restarts=restarts)
    now = ask("squeue", "-h", "-r", "--me", "-o", "%F_%K|%T|%r|%N")
    for line in now.splitlines():
        name, state, reason, node = line.split("|")
        name = name.removesuffix("_N/A")
        if name.split("_")[0] in wanted:
            found[name] = Job(state=state, reason=reason if reason != "None" else "", node=node,
                              restarts=found[name].restarts if name in found else 0)
    return found
