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
from multiprocessing import connection, forkserver
from pathlib import Path
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# One process that has imported them serves all tests; what can't be imported there is left to the entries themselves.
PRELOADED = ["forked", "torch._dynamo", "launch.train", "launch.sample", "launch.evaluate", "launch.diagnose"]
FORKED = multiprocessing.get_context("forkserver")


def prepare(env: Mapping[str, str]) -> None:
    """Starts the process that others are forked from; ``env`` holds what its imports read, once for all."""
    FORKED.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, env, PYTHONPATH=f"{ROOT}:{ROOT}/tests"):
        forkserver.ensure_running()


def run(entry: str, overrides: Sequence[str], *, processes: int, nodes: int, env: Mapping[str, str], timeout: float,
        cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `launch/<entry>.py` in the folder ``cwd`` to its end, in ``processes`` processes that find each other by their
    environment, as on ``nodes`` nodes."""
    script = f"{ROOT}/launch/{entry}.py"
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        for file in said:
            file.touch()
        ranks = [FORKED.Process(target=become, args=(script, [*overrides], {**env, **peers}, str(cwd), *map(str, said)))
                 for peers in places(processes, nodes)]
        try:
            for process in ranks:
                process.start()
            late = wait(ranks, timeout)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                    process.join()
        out, err = (file.read_text(errors="replace") for file in said)
    assert not late, f"{entry} {' '.join(overrides)} took longer than {timeout} s:\n{out}\n{err}"
    codes = [process.exitcode or 0 for process in ranks]
    return subprocess.CompletedProcess([script, *overrides], next(filter(None, codes), 0), out, err)


def wait(ranks: Sequence[multiprocessing.process.BaseProcess], timeout: float) -> bool:
    """Waits for their end, and 30 s for the others' once one has failed; whether they took longer than ``timeout``."""
    end = time.monotonic() + timeout
    while alive := [process for process in ranks if process.is_alive()]:
        if any(process.exitcode for process in ranks):
            connection.wait([process.sentinel for process in alive], 30)
            return False
        if not connection.wait([process.sentinel for process in alive], max(0.0, end - time.monotonic())):
            return True
    return False


def places(processes: int, nodes: int) -> list[dict[str, str]]:
    """What tells each process where it stands among its peers; nothing where it has none."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = processes // nodes
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank % here), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(here),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for rank in range(processes)]


def become(script: str, overrides: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Turns this process into one that was started in a folder with a script, an environment and files for what it says."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    np.random.seed(None)  # nothing random may come from the process that all are forked from
    sys.argv = [script, *overrides]
    runpy.run_path(script, run_name="__main__")
