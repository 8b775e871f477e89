"""What W&B beside a run costs it: offline, and with a server that does not answer."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ebm.train.metrics import read
from tools.bench.measure import ROOT, Row, Setting, at_most, progress, ratio

TITLE = "Tracking"
NOTE = ("Whole runs of `launch/train.py`, `model=unet`, batches of 32, with the default intervals of `experiment=small`, from "
        "the first logged step to the end of training; W&B's process is told to give way (nice 10). The dead server is a port "
        "of this machine where nothing listens.")
DEAD = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
MODES: dict[str, tuple[list[str], dict[str, str]]] = {
    "none": (["track.mode=disabled"], {}), "offline": (["track.mode=offline"], {}),
    "dead server": (["track.mode=online"], DEAD)}


def rows(setting: Setting) -> list[Row]:
    """The lines of the report."""
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    with tempfile.TemporaryDirectory() as folder:
        data = ["tools/prepare_data.py", "shapes", "--out", f"{folder}/shapes", "--count", "2000"]
        subprocess.run([sys.executable, *data], cwd=ROOT, check=True, capture_output=True)
        for turn in range(setting.repeats):
            for name in list(MODES)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(training(Path(folder), name, turn, setting))
            progress(f"round {turn + 1} of {setting.repeats}")
    against = f"no tracking ({seconds['none'][0]:.0f} s of training)"
    return [at_most(f"time of training, {name}", ratio(seconds[name], seconds["none"]), 1.02, against=against, spec=".3f")
            for name in MODES if name != "none"]


def training(folder: Path, name: str, turn: int, setting: Setting) -> float:
    """Seconds from a run's first logged step to its end."""
    run, (overrides, env) = folder / f"{name}-{turn}", MODES[name]
    images = 640 if setting.quick else 3200
    subprocess.run([sys.executable, "launch/train.py", "experiment=small", "data=beton", "data.name=shapes", f"run='{run}'",
                    f"data.train={folder}/shapes/train.beton", f"data.test={folder}/shapes/test.beton", "log_every=320",
                    f"budget.images={images}", f"device={setting.device.type}", *overrides], cwd=ROOT, check=True,
                   capture_output=True, env={**os.environ, **env})
    times = [record["time"] for record in read(run / "metrics.jsonl") if record["event"] in ("train", "end")]
    return float(times[-1] - times[0])
