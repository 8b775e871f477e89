"""Whole metrics, from a run's data to their figures, against the known law of the images: not the estimators alone."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from measured import MEAN, SIZE, STD, Energy, Score, work
from omegaconf import OmegaConf
from torch import Tensor, nn

from ebm.data.quantum import QUANTUM, dequantised
from ebm.diagnose.reference import Reference
from ebm.energy import Energy as Trained
from ebm.energy import pooled
from ebm.evaluate.outliers import auroc
from ebm.schedule import Single
from launch.config.build import build
from launch.metrics.evaluation import Work
from launch.metrics.metropolis import Metropolis

D = 3 * SIZE * SIZE


def metric(name: str, **settings: Any) -> Any:
    """A metric as in its YAML, except for what is set."""
    given = OmegaConf.load(ROOT / f"configs/metric/{name}.yaml")
    return build(OmegaConf.merge(OmegaConf.masked_copy(given, [key for key in given if key != "defaults"]), settings), key=name)


def truth(given: Work, indices: list[int], *, sigma: float) -> np.ndarray:
    """−log p in nats of held-out images with their quanta's noise."""
    assert given.held_out is not None
    x = dequantised(given.held_out.images(torch.tensor(indices), device="cpu"), seed=0, indices=indices)
    return Energy().law.energy(x.double(), torch.full((len(x),), sigma).double()).numpy()


def test_likelihood_is_the_laws_of_dequantised_images(tmp_path: Path) -> None:
    given = work(tmp_path, Score())
    figures = metric("likelihood", images=24, probes=None, tolerance=1e-4)(given)
    indices = figures.details["images"]
    assert len({*indices}) == 24 and max(indices) > 50, "images are drawn, and not the first"
    expected = truth(given, indices, sigma=0.002)
    # the ODE's end is taken to be N(0, σ_max² + std²), and the law's mean there is 0.1
    np.testing.assert_allclose(figures.details["nll"], expected, rtol=0, atol=0.02)
    assert figures.values["bits_per_dim"] == pytest.approx(expected.mean() / D / math.log(2) - math.log2(QUANTUM), abs=1e-3)
    assert figures.values["bits_per_dim_stderr"] == pytest.approx(expected.std(ddof=1) / 24**0.5 / D / math.log(2), rel=1e-3)


class Tilted(Trained):
    """The law's own energy plus a function of σ that no score shows: 5 ln(σ_max/σ) nats too many."""

    def normalised(self, x: Tensor, sigma: Tensor) -> Tensor:
        return Energy().law.energy(x, sigma) + 5 * (80.0 / sigma).log()

    def score_and_slope(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = sigma**2 + STD**2
        squares = (x - MEAN).square().flatten(1).sum(1) / variance
        return Energy().law.score(x, sigma), sigma**2 / variance * (D - squares) - 5


def test_the_corrected_density_is_right_whatever_function_of_sigma_the_energy_errs_by(tmp_path: Path) -> None:
    given = work(tmp_path, Tilted(nn.Identity(), pooled, sigma_data=STD))
    figures = metric("density", images=50, anchors=400, levels=24)(given)
    found, per_dim = figures.values, D * math.log(2)
    expected = truth(given, figures.details["images"], sigma=0.002)
    too_many = 5 * math.log(80 / 0.002)
    np.testing.assert_allclose(figures.details["nll"], expected + too_many + figures.details["constant"], rtol=0, atol=0.01)
    bits = expected.mean() / per_dim - math.log2(QUANTUM)
    error = 4 * math.hypot(found["slope_gap_stderr"], found["bits_per_dim_corrected_stderr"]) + 0.001
    assert found["bits_per_dim"] == pytest.approx(bits + too_many / per_dim, abs=error)
    assert found["bits_per_dim_corrected"] == pytest.approx(bits, abs=error)
    assert error < too_many / per_dim / 4
    np.testing.assert_allclose(np.log(figures.details["levels"])[[0, -1]], [math.log(0.002) + math.log(4e4) / 48,
                                                                           math.log(80) - math.log(4e4) / 48])


def test_the_energy_score_of_outliers_is_that_of_the_least_noise(tmp_path: Path) -> None:
    given = work(tmp_path, Energy())
    measure = replace(metric("outliers"), count=60, calibration=60, levels=3, made=["blurred"], data_root=str(tmp_path))
    images, _ = measure.images(given)
    law, level = Energy().law, torch.full((60,), 0.01)
    low, high = (law.energy(pixels.float() / 127.5 - 1, level).numpy() for pixels in (images["held_out"], images["blurred"]))
    figures = measure(given)
    assert figures.values["auroc_energy_blurred"] == auroc(low, high)
    rows = {"energies": np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 0.0]])}
    assert measure.score("energy", rows, {}).tolist() == [1.0, 5.0]


def test_levels_that_a_run_hardly_saw_are_named(tmp_path: Path) -> None:
    given = work(tmp_path, Energy())  # trained at σ from 0.01 to 10, a hundredth of which lies outside 0.0107 … 9.33
    measure = replace(metric("outliers"), sigma_min=0.0105, sigma_max=9.4, levels=4)
    assert measure.untrained_levels(given) == pytest.approx([0.0105, 9.4])
    assert replace(measure, sigma_min=0.0109, sigma_max=9.2).untrained_levels(given) == []


def test_images_that_keep_their_noise_are_compared_with_noised_images(tmp_path: Path) -> None:
    measure = replace(metric("metropolis", grid={"_target_": "ebm.schedule.Single", "level": 0.3}), count=64, steps=1,
                      steps_per_level=30, step_scales=[0.3], real=400, components=8, groups=8)
    given = work(tmp_path, Energy())
    for denoise in (False, True):
        one: Metropolis = replace(measure, denoise=denoise)
        figures = one(given)
        assert figures is not None and one.grid == Single(level=0.3)
        x = torch.from_numpy(one.draw(given, "metropolis", one.samplers(given)[0]["metropolis", 0.3])["images"])
        reference = Reference.fit(given.train.images(torch.arange(400), device="cpu"), components=8)
        expected = reference.distance(x.float() / 127.5 - 1, sigma=0.0 if denoise else 0.3)
        assert figures.values["metropolis_0.3"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("size", "factor"), [(25, 3**-0.5), (50, 1.0), (51, None)])
def test_the_error_of_a_mean_over_subsets_is_that_of_all_images(
    size: int, factor: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of m of n images drawn without repetition vary by s²/m · (1 − m/n); asked for is s²/n."""
    kid = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity isn't installed")
    returned = {kid.KEY_METRIC_KID_MEAN: 0.5, kid.KEY_METRIC_KID_STD: 0.3}
    monkeypatch.setattr(kid, "kid_features_to_metric", lambda *_, **__: returned)
    compare = metric("quality", kid_subsets=10, kid_subset_size=size, extractor={
        "_target_": "ebm.evaluate.extractors.Random", "seed": 0, "widths": [4]}).comparison()
    rows = {"features": np.zeros((100, 4), np.float32)}
    expected = {"kid": 0.5} | ({} if factor is None else {"kid_stderr": pytest.approx(0.3 * factor)})
    assert compare.kernel(rows, rows, torch.device("cpu")) == expected
