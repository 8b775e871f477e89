"""What processes cost each other: agreeing at every step's boundary, and the same work for each (weak scaling)."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ebm.train.distributed import World, join
from ebm.train.trainer import Trainer
from launch.run.folder import RunFolder
from launch.run.make import make_trainer
from tools.bench.measure import ROOT, Row, Setting, Spread, alternate, at_most, progress, ratio
from tools.bench.subject import config, dataset

TITLE = "What processes cost each other"
NOTE = ("Whole training steps of `model=unet`, 32 images for each process, one thread each on the CPU. The agreement is "
        "`Trainer.vote`: one sum of 27 numbers over the processes, read one step later. Weak scaling is the step of one "
        "process alone against that of two with their gradients averaged. On shared cores it also counts what two processes "
        "take from each other without a word: the last line.")
EACH = 32
CALLS = {"step": 6, "vote": 200}  # the same on every process: they wait for each other


def rows(setting: Setting) -> list[Row]:
    """The lines of the report."""
    alone = measured(1, setting, together=True)
    two, apart = (measured(2, setting, together=together) for together in (True, False))
    percent = Spread([100 * value for value in ratio(two["vote"], two["step"]).values])
    return [
        at_most("agreement at a step's boundary, 2 processes", percent, 1, against="the step", unit="%"),
        Row(what="weak scaling, 1 → 2 processes", measured=f"{ratio(alone['step'], two['step']):.2f} ×", against="one alone"),
        Row(what="the same, apart", measured=f"{ratio(alone['step'], apart['step']):.2f} ×", against="one alone"),
    ]


def measured(count: int, setting: Setting, *, together: bool) -> dict[str, list[float]]:
    """Seconds of a step and of its vote by the first of ``count`` processes, one run or each its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tools.bench.processes", folder, str(setting.repeats), setting.device.type]
        running = []
        for rank in range(count):
            who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count} if together else {}
            env = {"LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, **who}
            running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                            env={**os.environ, **{name: str(value) for name, value in env.items()}}))
        texts = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{count} processes: one of them failed")
    progress(f"{count} processes, {'together' if together else 'apart'}")
    lines = [line.split() for line in texts[0].splitlines() if line.split()[0] in CALLS]
    return {name: [float(value) for value in values] for name, *values in lines}


def one(folder: Path, setting: Setting, world: World) -> None:
    """Measures as one of the processes and prints what it finds."""
    cfg = config("model=unet", f"budget.batch={EACH * world.size}", device=setting.device)
    data = dataset(folder / f"{os.getpid()}.beton", count=EACH)
    trainer = make_trainer(cfg, world, RunFolder(folder / f"run-{os.getpid()}"), data, None)
    trainer.parallelise()
    images = torch.randn(EACH, 3, 32, 32, device=setting.device)
    trainer.warm_up_ddp(images)
    cases: dict[str, Callable[[], object]] = {"step": stepping(trainer, images), "vote": voting(trainer)}
    for name, values in alternate(cases, setting=setting, calls=CALLS).items():
        print(name, *values, flush=True)


def stepping(trainer: Trainer, images: torch.Tensor) -> Callable[[], None]:
    """A whole step."""
    def once() -> None:
        trainer.train_step(images)
        trainer.step += 1

    return once


def voting(trainer: Trainer) -> Callable[[], object]:
    """The agreement alone."""
    ones = torch.ones(EACH, device=trainer.world.device)
    return lambda: trainer.vote(ones, ones, ones[0])


def main() -> None:
    """One of the processes: folder, rounds, device."""
    folder, repeats, device = sys.argv[1:]
    setting = Setting(device=torch.device(device), repeats=int(repeats), seconds=0, threads=[1], quick=False, compile=False)
    with join(device=device, timeout_seconds=300, peers_seconds=120) as world:
        torch.set_num_threads(1)
        one(Path(folder), setting, world)


if __name__ == "__main__":
    main()
