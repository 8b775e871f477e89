"""The machine a report was made on."""
from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from tools.bench.measure import ROOT


def describe(*, threads: list[int]) -> dict[str, str]:
    """What a reader needs to judge the numbers, by name."""
    return {
        "Date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Revision": revision(),
        "CPU": f"{cpu()}, {len(os.sched_getaffinity(0))} cores, torch threads: {', '.join(map(str, threads))}",
        "bf16 on the CPU": "yes" if torch.cpu._is_avx512_bf16_supported() else "not in hardware (no avx512_bf16)",
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Software": f"Python {platform.python_version()}, " + ", ".join(map(version, ("torch", "torchvision", "ffcv"))),
        "Load before the start": "{:.2f} {:.2f} {:.2f} (processes running, over 1, 5 and 15 minutes)".format(*os.getloadavg()),
    }


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str:
    """Name and version of an installed package, or that it is not there."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def revision() -> str:
    """The commit, and whether files differ from it."""
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changes = git("status", "--porcelain", "--", "ebm", "launch", "configs", "tools")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}{' and uncommitted changes' if changes else ''}"


def git(*command: str) -> str:
    """What git answers in this repository."""
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
