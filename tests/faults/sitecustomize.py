"""Faults in a study's jobs, for tests/test_cluster.py: PYTHONPATH leads here, and `save.held_out` says which fault a run has.

faults.json beside this file maps that number to {"do", "rank", "step", "times"} and gives the seconds that a step lasts, for
some numbers start by start, the last for all that follow.
"""
from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

HERE = Path(__file__).parent


def install(trainer: Any) -> None:
    """Puts this run's fault into the trainer's class."""
    name = next((one.split("=")[1] for one in sys.argv if one.startswith("save.held_out=")), "")
    plan = json.loads((HERE / "faults.json").read_text())
    fault, seconds = plan["faults"].get(name, {}), plan["seconds"].get(name, [plan["each"]])
    seconds = seconds[min(int(os.environ.get("SLURM_RESTART_COUNT", "0")), len(seconds) - 1)]
    step = trainer.Trainer.train_step

    def train_step(self: Any, images: Any) -> Any:
        time.sleep(seconds)
        if self.world.rank == fault.get("rank") and self.step == fault["step"] and left(name, fault):
            images = act(fault["do"], images)
        return step(self, images)

    trainer.Trainer.train_step = train_step
    if fault.get("do") == "bad node" and os.environ.get("SLURMD_NODENAME") == bad_node():
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1, 1, 0)  # type: ignore[attr-defined, misc, assignment]


def bad_node() -> str:
    """The node on which the run with a bad node has first started."""
    try:
        with open(HERE / "bad-node", "x", encoding="utf-8") as file:
            file.write(os.environ["SLURMD_NODENAME"])
    except FileExistsError:
        time.sleep(0.5)  # until the other rank has written it
    return (HERE / "bad-node").read_text()


def left(name: str, fault: dict[str, Any]) -> bool:
    """Whether the fault is to happen once more; notes that it has."""
    count = HERE / f"{name}.count"
    done = int(count.read_text()) if count.exists() else 0
    count.write_text(str(done + 1))
    return done < int(fault.get("times", 1))


def act(what: str, images: Any) -> Any:
    """Does the fault; the step's images, where that is what it damages."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise RuntimeError("a fault of the test's")
    if what == "hang":
        time.sleep(100_000)
    if what == "kill while saving":
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    if what == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))  # as a quota: no file may be larger
    return images * float("nan") if what == "nan" else images


class Hook(importlib.abc.MetaPathFinder):
    """Installs the fault as soon as the trainer has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The spec of ebm.train.trainer, with ours behind its own."""
        if name != "ebm.train.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            install(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if (HERE / "faults.json").exists():
    sys.meta_path.insert(0, Hook())
    # PyTorch's optimizers import its compiler, a quarter of a job's start, only to tell it what to leave alone.
    compiler = ModuleType("torch._dynamo")
    compiler.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    compiler.graph_break = lambda: None  # type: ignore[attr-defined]
    compiler.utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "")  # type: ignore[attr-defined]
    compiler.trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = compiler
