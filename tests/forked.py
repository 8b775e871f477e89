"""Entries in processes forked from one that has imported what they import: real processes, seconds sooner than new ones."""
from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
# A process that has imported them serves all tests of this one; what can't be imported is left to the entries themselves.
PRELOADED = ["forked", "torch._dynamo", "launch.train", "launch.sample", "launch.evaluate", "launch.diagnose", "warm"]


def run(entry: str, overrides: Sequence[str], *, processes: int, env: Mapping[str, str], timeout: float,
        ) -> subprocess.CompletedProcess[str]:
    """Runs `launch/<entry>.py` to its end, in ``processes`` processes that find each other as a SLURM job's do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, env, PYTHONPATH=f"{ROOT}:{ROOT}/tests"):  # what is imported reads some of it, once
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        for file in said:
            file.touch()
        script = f"{ROOT}/launch/{entry}.py"
        ranks = [context.Process(target=become, args=(script, [*overrides], {**env, **peers}, *map(str, said)))
                 for peers in places(processes)]
        for process in ranks:
            process.start()
        end = time.monotonic() + timeout
        for process in ranks:
            process.join(max(0.0, end - time.monotonic()))
        late = [process for process in ranks if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        out, err = (file.read_text(errors="replace") for file in said)
    assert not late, f"{entry} {' '.join(overrides)} took longer than {timeout} s:\n{out}\n{err}"
    codes = [process.exitcode or 0 for process in ranks]
    return subprocess.CompletedProcess([script, *overrides], next(filter(None, codes), 0), out, err)


def places(processes: int) -> list[dict[str, str]]:
    """What tells each process where it stands among its peers; nothing where it has none."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for rank in range(processes)]


def become(script: str, overrides: list[str], env: dict[str, str], out: str, err: str) -> None:
    """Turns this process into one that was started with a script, an environment and files for what it says."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = [script, *overrides]
    runpy.run_path(script, run_name="__main__")
