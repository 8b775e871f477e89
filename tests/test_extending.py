"""docs/extending.md does what it says: its package is written as printed, and its commands are run with it."""
from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ONE_THREAD, ROOT

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.replace("~/work", "{work}") for line in re.findall(r"^python (launch/.*)$", PAGE, re.MULTILINE)]
QUICK = ["budget.images=16", "rate.warmup=0", "sampler.steps=4", "preview.count=2", "model.network.width=8"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for name, text in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(text + "\n\n")
    return folder


def start(line: str, work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the page in the folder that is beside its package."""
    script, *arguments = shlex.split(line.format(work=work) if "{work}" in line else line)
    return subprocess.run([sys.executable, str(ROOT / script), *arguments, "device=cpu", "track=none", *more], cwd=work,
                          env={**ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(work), os.environ.get("PYTHONPATH", "")])},
                          capture_output=True, text=True, timeout=240, check=False)


def test_the_page_trains_samples_and_measures(work: Path, tiny: list[str]) -> None:
    train, sample, evaluate = COMMANDS
    data = [one for one in tiny if one.startswith(("data", "budget.batch", "save", "precision"))]
    for line, more in ((train, [*data, *QUICK]), (sample, ["sampler.steps=4"]), (evaluate, ["sampler.steps=4"])):
        done = start(line, work, *more)
        assert done.returncode == 0, done.stderr
    config = (work / "runs/mine/config.yaml").read_text()
    assert "mine.parts.Power" in config and "mine.parts.Small" in config
    record, = (work / "runs/mine/evaluations").glob("brightness-*.json")
    told = json.loads(record.read_text())
    assert 0 < told["values"]["brightness"] < 1 and told["subject"]["n"] == 64
    again = ["run=runs/mine", "n=64", "sampler=dpmpp", "sampler._target_=mine.parts.euler", "sampler.steps=2"]
    inline = next(shlex.split(part) for part in re.findall(r"`(\+metric\.[^`]*)`", PAGE))
    done = start("launch/evaluate.py", work, *again, *inline, "metrics=[brightness]")
    assert done.returncode == 0, done.stderr
    done = start("launch/evaluate.py", work, *again, "+metric.brightness={scale: 1}", "metrics=[brightness]")
    assert done.returncode == 2
    assert done.stderr == ("error: metric.brightness: {'scale': 1} is not accepted; it must have a _target_ that builds a "
                           "metric\n")
