"""What tests share: a tiny data set, and the entries run as a user runs them."""
from __future__ import annotations

import atexit
import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import torch._dynamo  # before a test puts another torch.compiler.is_compiling in its place, which the compiler would keep

from ebm.data.beton import write_beton
from ebm.data.shapes import shapes
from ebm.train.checkpoint import Checkpoints, load

gc.freeze()  # the collector need not go through all that is imported, again and again
atexit.register(gc.unfreeze)  # Triton reports what is then left as leaks
# With more threads than idle cores, small tensors wait for each other at every loop: a hundred times slower.
torch.set_num_threads(1)
os.environ["WANDB_MODE"] = "disabled"  # but in the tests of tracking
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

ROOT = Path(__file__).resolve().parents[1]
TINY = ["model=cnn", "model.network.width=8", "model.network.levels=2", "schedule=loguniform", "rate=constant",
        "rate.warmup=0", "budget.batch=8", "log_every=16", "save.every=1_000_000", "preview.every=1_000_000", "preview.count=2",
        "save.held_out=16", "sampler.steps=2", "device=cpu", "precision=fp32",
        "data.loader=plain"]  # FFCV's code is compiled in every process; tests that are about it say so
Command = Callable[..., "subprocess.CompletedProcess[str]"]
# Files that take long begin first, so that no core is idle at the end; xdist gives each process two files at once, so that on
# two cores, with three processes, the fourth waits for the first, which is to be the longest. Beside that one, which first
# fills the cores, stand those that compute; those that wait for W&B come after it, and the report's, which tells the time.
LONG = ["test_cluster", "test_density", "test_diagnose_regimes", "test_track", "test_samplers", "test_gpu",
        "test_precision", "test_processes", "test_energy_vs_score", "test_study", "test_evaluate", "test_dual",
        "test_report_browser", "test_sync", "test_sample_entry"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take long first; `--no-loadscope-reorder` keeps this order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes seconds: a small CNN on 60 images of 16 × 16, 7 steps an epoch."""
    folder = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 60, 0), ("test", 20, 1)):
        source = shapes(count=count, size=16, seed=seed)
        write_beton(folder / f"{split}.beton", source.images(), source=source.name, count=count, progress=False)
    return [*TINY, "data=beton", "data.name=tiny", f"data.train={folder}/train.beton", f"data.test={folder}/test.beton"]


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs `launch/<entry>.py` in a process of its own, or in several, which torchrun starts where that is asked for."""

    forked.prepare(ONE_THREAD)

    def call(entry: str, *overrides: str, processes: int = 1, nodes: int = 1, torchrun: bool = False, check: bool = True,
             env: Mapping[str, str] = ONE_THREAD) -> subprocess.CompletedProcess[str]:
        if torchrun:
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            done = subprocess.run([*start, f"{ROOT}/launch/{entry}.py", *overrides], cwd=ROOT, env=env, capture_output=True,
                                  text=True, timeout=240, check=False)
        else:
            done = forked.run(entry, overrides, processes=processes, nodes=nodes, env=env, timeout=240)
        if check and done.returncode:
            pytest.fail(f"{entry} {' '.join(overrides)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return call


def other_checkout(folder: Path) -> Path:
    """The folder, with packages in it that are not those of the code that was started, and say so when they are imported."""
    for package in ("ebm", "launch"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise ImportError('this is of where the work was started')")
    return folder


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint, by its dotted name."""
    path = Checkpoints(run / "checkpoints", keep=1).newest()
    assert path is not None, f"{run} holds no checkpoint"
    return dict(tensors(load(path)))


def tensors(tree: object, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors of a nested state, numbers as tensors too."""
    if isinstance(tree, torch.Tensor):
        return [(prefix, tree)]
    if isinstance(tree, dict):
        return [leaf for name, value in tree.items() for leaf in tensors(value, f"{prefix}.{name}")]
    if isinstance(tree, list | tuple):
        return [leaf for index, value in enumerate(tree) for leaf in tensors(value, f"{prefix}.{index}")]
    return [(prefix, torch.tensor(tree))] if isinstance(tree, int | float) else []


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and bits of parameters, averages and optimizer."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name].numpy()).tobytes())
    return digest.hexdigest()
