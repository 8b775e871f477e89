"""The control as one command: four trainings, their samples measured, and the page that sets them side by side."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, other_checkout
from PIL import Image

SMALL = ["budget.images=32", "budget.batch=8", "model.network.width=16", "model.network.blocks=1", "rate.warmup=0",
         "log_every=8", "save.held_out=8", "preview.every=1_000_000", "preflight.disk_gb=0.01", "device=cpu",
         "precision=fp32", "sampler.steps=2", "sample.n=8", "sample.batch=4", "extractor=random",
         "metric.quality.kid_subset_size=4", "metric.quality.real=false", "metric.quality.reference_count=20",
         "metric.cost.batches=1"]
FORMS = ["inner product", "pooled", "squared residual", "score"]


def test_the_sweep_ends_with_its_page(tiny: list[str], tmp_path: Path) -> None:
    tools = tmp_path / "bin"  # a PATH without sbatch
    tools.mkdir()
    for name in ("git", "env", "true"):
        os.symlink(str(shutil.which(name)), tools / name)
    data = [one for one in tiny if one.startswith("data")]
    command = [sys.executable, f"{ROOT}/launch/sweep.py", "-m", "+sweep=energy_vs_score", *data, *SMALL,
               f"store={tmp_path}/store"]
    other_checkout(tmp_path)
    env = {**os.environ, "PATH": str(tools), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "docs" / "energy_vs_score.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    head, body = rows[0], {row.split("|")[1].strip(): row for row in rows[2:]}
    assert list(body) == FORMS
    assert "fd_random" in head
    assert "fid" not in head
    assert "1.00 ×" in body["score"], "the score is not what the others are held against"
    assert all(row.count("|") == head.count("|") and "nan" not in row for row in body.values())
    for name in FORMS:
        with Image.open(tmp_path / "docs" / "energy_vs_score" / f"{name.replace(' ', '_')}.png") as picture:
            assert picture.size[0] > 16
    folder = next((tmp_path / "store" / "studies").glob("*"))
    for record in (tmp_path / "store").glob("runs/*/evaluations/*/quality-*.json"):
        record.unlink()
    page_file = tmp_path / "docs" / "energy_vs_score.md"
    before = page_file.stat().st_mtime_ns
    again = subprocess.run([sys.executable, f"{ROOT}/launch/energy_vs_score.py", str(folder)], cwd=tmp_path,
                           capture_output=True, text=True, check=False)
    assert again.returncode == 2
    (line,) = again.stderr.strip().splitlines()
    assert "not trained, sampled and measured yet" in line
    assert page_file.stat().st_mtime_ns == before, "the page was written by halves"
