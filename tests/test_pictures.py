"""Pictures hold each image's own pixels, and drawing one costs no seconds of imports."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

matplotlib = pytest.importorskip("matplotlib", reason="pip install -e '.[evaluate]'")
from matplotlib.axes import Axes

from ebm.data import to_float
from ebm.pictures import grid, save_grid
from tools import plot_loss
from tools.bench.made import train, trained, usual


def test_a_runs_loss_is_drawn_under_its_own_weighting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [trained(tmp_path, name, usual()) for name in ("a", "b")]
    alone = trained(tmp_path, "alone", [train(100, 0.5, at=1.0)])  # without held-out images
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("ebm.objective.EDM", "ebm.objective.SigmaSquared"))
    said = []
    monkeypatch.setattr(Axes, "set", lambda self, **words: said.append(words["ylabel"]))
    monkeypatch.setattr(Axes, "legend", lambda self, **_: said.append([line.get_label() for line in self.lines]))
    for given in (runs[:1], runs, [alone]):
        monkeypatch.setattr(sys, "argv", ["plot_loss.py", str(tmp_path / "loss.png"), *map(str, given)])
        plot_loss.main()
    assert said[::2] == ["loss (EDM weighting)", "loss (weightings differ)", "loss (EDM weighting)"]
    assert said[5] == ["alone, train"]
    monkeypatch.setattr(sys, "argv", ["plot_loss.py", str(tmp_path / "nowhere" / "loss.png"), str(alone)])
    with pytest.raises(SystemExit, match="2"):
        plot_loss.main()


def test_a_grid_shows_every_image_in_its_place(tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8))
    save_grid(to_float(pixels), tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as opened:
        page = np.asarray(opened)
    assert page.shape == (2 * 5 + 1, 3 * 7 + 1, 3)  # two rows of three, and lines of one pixel
    shown = np.zeros(page.shape[:2], bool)
    for index, image in enumerate(pixels):
        top, left = index // 3 * 5 + 1, index % 3 * 7 + 1
        np.testing.assert_array_equal(page[top:top + 4, left:left + 6], image.permute(1, 2, 0).numpy())
        shown[top:top + 4, left:left + 6] = True
    assert not page[~shown].any(), "what is no image is not black"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_grey_images_and_pixels_out_of_range_are_shown() -> None:
    page = grid(torch.tensor([-5.0, 0.0, 5.0]).view(3, 1, 1, 1))
    assert page[1, [1, 3]].tolist() == [[0] * 3, [128] * 3]
    assert page[3, 1].tolist() == [255] * 3


def test_a_single_image_has_no_frame() -> None:
    assert grid(torch.ones(1, 3, 2, 5)).shape == (2, 5, 3)


@pytest.mark.parametrize("entry", ["train", "sample"])
def test_starting_and_drawing_import_nothing_that_takes_seconds(entry: str) -> None:
    code = (f"import sys, torch, launch.{entry}; from ebm.pictures import grid; grid(torch.zeros(1, 3, 2, 2)); "
            "print({'torchvision', 'torch._dynamo', 'matplotlib', 'wandb', 'numba'} & {*sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
