"""Builds the CPU kernel of ebm/nets/group_norm.cpp, which training energies on a CPU is faster with: half a minute, once.

Needs g++ and nothing else; where there is none, one line says so and all works without the kernel. EBM_KERNELS names
another folder than the user's cache, CXX another compiler.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ebm.files import write_atomically
from ebm.nets import group_norm

TORCH = Path(torch.__path__[0])


def main() -> int:
    """0 if the kernel is there now; 1 if it can't be had, which is no error."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    path, compiler = group_norm.library(), os.environ.get("CXX", "g++")
    if group_norm.LOADED:
        print(f"{path} is there already")
        return 0
    if shutil.which(compiler) is None:
        return failed(f"there is no {compiler}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, path.name)
        done = subprocess.run(command(compiler, built), capture_output=True, text=True, check=False)
        if done.returncode:
            return failed(next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()))
        loads = [sys.executable, "-c", "import sys, torch; torch.ops.load_library(sys.argv[1])", str(built)]
        if subprocess.run(loads, capture_output=True, check=False).returncode:  # a process of its own: it might crash
            return failed("what the compiler made cannot be loaded")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, built.read_bytes())
        except OSError as error:
            return failed(str(error))
    print(f"{path} was built in {time.monotonic() - start:.0f} s")
    return 0


def command(compiler: str, to: Path) -> list[str]:
    """The compiler's call."""
    include, libraries = TORCH / "include", TORCH / "lib"
    headers = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    return [compiler, *group_norm.FLAGS, *headers, str(group_norm.SOURCE), "-o", str(to),
            f"-L{libraries}", "-lc10", "-ltorch_cpu"]


def failed(why: str) -> int:
    """Says it in one line."""
    print(f"the CPU kernel is not built ({why}); all works without it, and energies train more slowly on a CPU",
          file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
