"""The README's Python does what it says."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command

from ebm.energy import Energy

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_its_python_runs(tiny: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, trained = BLOCKS
    found = {"x": torch.zeros(2, 3, 8, 8), "sigma": torch.ones(2)}
    exec(library, found)
    assert isinstance(found["model"], Energy)
    folder = re.search(r'"(runs/[^"]+)"', trained)
    assert folder is not None
    command("train", *tiny, "model=cnn_sigma", "budget.images=16", f"run={tmp_path / folder[1]}")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(trained, found)
    assert found["images"].shape == (16, 3, 32, 32)
    assert found["images"].isfinite().all()
    assert found["energies"].shape == (16,)
    assert found["step"] == 2
    assert found["energies"].std() > 0
