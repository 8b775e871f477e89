"""The README's Python does what it says."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command

import ebm
from ebm.data.beton import write_beton
from ebm.data.shapes import shapes
from ebm.energy import Energy

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_its_python_runs(tiny: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, step, trained = BLOCKS
    found = {"x": torch.zeros(2, 3, 8, 8), "sigma": torch.ones(2)}
    exec(library, found)
    assert isinstance(found["model"], Energy)
    monkeypatch.chdir(tmp_path)
    data = re.search(r'"(data/[^"]+)"', step)
    assert data is not None
    source = shapes(count=70, size=32, seed=0)
    write_beton(data[1], source.images(), source=source.name, count=70, progress=False)
    exec(step, found)
    assert found["x"].abs().max() <= 1 and found["x"].std() > 0.1
    assert found["loss"].shape == (64,)
    assert all(p.grad is not None for p in found["model"].parameters())
    folder = re.search(r'"(runs/[^"]+)"', trained)
    assert folder is not None
    command("train", *tiny, "model=cnn_sigma", "budget.images=16", f"run={tmp_path / folder[1]}")
    found = {}
    exec(trained, found)
    assert found["images"].shape == (16, 3, 32, 32)
    assert found["images"].isfinite().all()
    assert found["energies"].shape == (16,)
    assert found["step"] == 2
    assert found["energies"].std() > 0
    assert not any(p.requires_grad for p in found["model"].parameters())


def test_the_version_is_the_packages() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", ebm.__version__)
    assert "version = attr: ebm.__version__\n" in (ROOT / "setup.cfg").read_text()
