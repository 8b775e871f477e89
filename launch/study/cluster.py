"""What SLURM says: whether it is there, what waits or runs, and how jobs have ended."""
from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job as SLURM has it; an array's element by itself."""

    state: str
    reason: str = ""
    node: str = ""
    restarts: int = 0
    code: str = ""

    @property
    def over(self) -> bool:
        """Whether it neither waits nor runs."""
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")


def ask(*command: str) -> str:
    """What a command of SLURM answers; raises OSError with its complaint."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def queued() -> set[str]:
    """Numbers of the user's jobs that wait or run, arrays element by element."""
    return {name.removesuffix("_N/A") for name in ask("squeue", "-h", "-r", "--me", "-o", "%F_%K").split()}


def array_limit() -> int:
    """The most elements that one array may have."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return int(match[1]) - 1 if match else 1000


def jobs(numbers: Iterable[str]) -> dict[str, Job]:
    """How these jobs stand, by squeue while they live and by the accounting, where there is one, afterwards."""
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
