#!/usr/bin/env python3
"""Measures this project against named baselines and the machine's own ceilings, and writes the numbers as Markdown.

Every number is a ratio within this run: the two sides take turns, and the median over the rounds is compared with the
target. Leave the machine alone meanwhile. Without names, all benchmarks run.
"""
from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # the code beside this file, whatever is installed

import torch

from ebm.train.distributed import choose_device
from launch.job.startup import keep_memory
from tools.bench import machine
from tools.bench.measure import Row, Setting, progress

NAMES = ("data", "step", "utilisation", "checkpoint", "processes", "tracking", "report")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(NAMES)}; all if not given")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of one measurement (2)")
    parser.add_argument("--threads", default="all", help="torch's threads on the CPU, such as 1,all (all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", action="store_true", help="models through torch.compile")
    parser.add_argument("--quick", action="store_true", help="two short rounds of small sizes: shows that it works, no more")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    if options.repeats < 1:
        parser.error(f"--repeats: {options.repeats} is not accepted; it must be at least 1")
    return options


def threads(text: str) -> list[int]:
    """Numbers of threads from `1,all`; raises ValueError for anything else."""
    cores = len(os.sched_getaffinity(0))
    counts = [cores if part == "all" else int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if any(not 1 <= count <= cores for count in counts):
        raise ValueError(f"--threads: {text!r} is not accepted; numbers from 1 to {cores}, or all")
    return list(dict.fromkeys(counts))


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    mark = {True: "✓", False: "✗", None: ""}
    lines = ["| what | measured | against | target | |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.against} | {row.target} | {mark[row.met]} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Entry; exit code 2 means bad input."""
    options = arguments()
    keep_memory()  # as the entries do
    try:
        counts, device = threads(options.threads), choose_device(options.device, 0)
    except ValueError as error:
        print(f"run.py: {error}", file=sys.stderr)
        sys.exit(2)
    setting = Setting(device=device, repeats=2 if options.quick else options.repeats, threads=counts, quick=options.quick,
                      seconds=0.1 if options.quick else options.seconds, compile=options.compile)
    parts = ["# Benchmarks", "Written by `python " + shlex.join(["tools/bench/run.py", *sys.argv[1:]]) + "`. Measured: the "
             f"median of {setting.repeats} rounds in which the two sides took turns, and in brackets the range of the rounds."
             + (" **A quick run: these numbers mean nothing.**" if options.quick else ""),
             "\n".join(f"- {name}: {value}" for name, value in machine.describe(threads=counts).items())]
    for name in options.names or NAMES:
        benchmark, start = importlib.import_module(f"tools.bench.{name}"), time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        torch.set_num_threads(counts[-1])
        note = benchmark.NOTE if name != "step" else benchmark.NOTE.format(method=benchmark.METHOD[device.type])
        try:
            measured = table(benchmark.rows(setting))
        except (ValueError, OSError) as error:  # what it needs isn't here: the others are measured all the same
            measured = f"Not measured: {error}"
        parts += [f"## {benchmark.TITLE}", note, measured]
        progress(f"{name} done in {time.perf_counter() - start:.0f} s")
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
