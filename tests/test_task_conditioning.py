"""How tasks condition a pipeline: every image, copy and run in its place, in whatever batch it is drawn."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import Gaussian
from measured import CPU, Energy
from PIL import Image
from torch.testing import assert_close

from ebm.constraint import Frozen
from ebm.data import to_float
from ebm.precision import Precision
from launch.drawing.conditional import Composition, GaussianDenoising, InverseProblem
from launch.drawing.pipeline import Pipeline
from launch.drawing.task import Compose, Denoise, Inpaint

SIZE, COPIES = 8, 2


def pipeline(run: str = "0") -> Pipeline:
    """A pipeline whose model is the law N(run, 0.25²)."""
    model = Energy()
    model.law = Gaussian(mean=torch.full((3, SIZE, SIZE), float(run)), std=torch.full((3, SIZE, SIZE), 0.25))
    return Pipeline(model=model, sampler=lambda *_, **__: iter(()), shape=(3, SIZE, SIZE), seed=5,  # type: ignore[arg-type]
                    precision=Precision(name="fp32"), device=CPU, run=run)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def test_every_copy_is_of_its_own_image_and_has_its_own_noise(pictures: Path) -> None:
    task = Inpaint(images=str(pictures), copies=COPIES, constraint=Frozen, mask=None, box=[2, 1, 4, 3])  # it draws noise
    found = task.conditioning(pipeline(), pipeline)
    assert isinstance(found, InverseProblem) and found.count == 6
    whole = found.model_for(pipeline(), range(6))
    assert isinstance(whole, Frozen)
    known = torch.ones(SIZE, SIZE, dtype=torch.bool)
    known[2:6, 1:4] = False
    for index, observed in enumerate(whole.observed):
        assert_close(observed, to_float(found.originals[index // COPIES]) * known)
    assert len(whole.noise.flatten(1).unique(dim=0)) == 6
    assert not whole.noise[..., ~known].any() and whole.noise[..., known].all()
    for part in (range(1), range(3, 5), range(1, 6, 2)):
        model = found.model_for(pipeline(), part)
        assert isinstance(model, Frozen)
        assert_close(model.noise, whole.noise[list(part)], rtol=0, atol=0, msg="an image's noise depends on its batch")
        assert_close(model.observed, whole.observed[list(part)], rtol=0, atol=0)


def test_each_image_has_added_noise_of_its_own(pictures: Path) -> None:
    task = Denoise(images=str(pictures), copies=COPIES, sigma=0.3, add_noise=True)
    found = task.conditioning(pipeline(), pipeline)
    assert isinstance(found, GaussianDenoising)
    noise = (found.observed - to_float(found.originals)) / 0.3
    for one in range(3):
        assert abs(float(noise[one].mean())) < 4 / (3 * SIZE * SIZE) ** 0.5
        for other in range(one):
            assert abs(float((noise[one] * noise[other]).mean())) < 4 / (3 * SIZE * SIZE) ** 0.5, "two images share their noise"
    alone = replace(task, images=str(pictures / "a.png")).conditioning(pipeline(), pipeline)
    assert isinstance(alone, GaussianDenoising)
    assert_close(alone.observed[0], found.observed[0], rtol=0, atol=0)
    other = task.conditioning(replace(pipeline(), seed=6), pipeline)
    assert isinstance(other, GaussianDenoising)
    assert (other.observed != found.observed).float().mean() > 0.9
    given = replace(task, add_noise=False).conditioning(pipeline(), pipeline)
    assert isinstance(given, GaussianDenoising)
    assert_close(given.observed, to_float(given.originals))
    assert found.known.all() and not given.known.any()


def test_every_run_has_the_weight_in_its_place() -> None:
    found = Compose(runs=["0.5", "-0.25"], weights=[2.0, -0.5]).conditioning(pipeline("0.5"), pipeline)
    assert isinstance(found, Composition)
    x, sigma = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0])
    expected = 2 * pipeline("0.5").model.score(x, sigma) - 0.5 * pipeline("-0.25").model.score(x, sigma)
    assert_close(found.model_for(pipeline(), range(2)).score(x, sigma), expected)
