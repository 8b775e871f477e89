"""What a job inherits from the process that submits it: blocked signals, and no variables of another job."""
from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

from submitit.helpers import clean_env

from launch.job.process import STOP_SIGNALS


@contextlib.contextmanager
def outside_job() -> Iterator[None]:
    """Context without the variables of a surrounding SLURM job, which sbatch would pass on and srun obey."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


def python_blocking_signals() -> str:
    """The command of the interpreter with the stop signals blocked until `launch/job/process.py` takes over."""
    block = ["env", *(f"--block-signal={number.name.removeprefix('SIG')}" for number in STOP_SIGNALS)]
    works = subprocess.run([*block, "true"], capture_output=True, check=False).returncode == 0  # coreutils 8.31 or newer
    return shlex.join([*(block if works else []), sys.executable])
