"""Out-of-distribution detection, held to closed forms, to counting by hand and to a law whose outliers are known."""
from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import models
import numpy as np
import pytest
import torch
from exact import Gaussian
from hydra import compose, initialize_config_dir
from measured import Energy, Score, work
from PIL import Image
from torch.testing import assert_close

from ebm.data.beton import write_beton
from ebm.data.shapes import shapes
from ebm.evaluate.outlier_sets import MADE, STANDARD, fit, load_standard, read_set
from ebm.evaluate.outliers import Typical, auroc, auroc_stderr, fpr95, readings
from launch.config.build import build
from launch.config.manual import CONFIGS
from launch.metrics.outliers import Outliers

PHI = NormalDist().cdf


def normal(count: int, *, mean: float = 0.0, seed: int) -> np.ndarray:
    return mean + np.random.default_rng(seed).standard_normal(count)


def counted(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """AUROC by looking at every pair."""
    wins = [(high > low) + (high == low) / 2 for high in outliers for low in inliers]
    return float(np.mean(wins))


@pytest.mark.parametrize("levels", [1000, 6, 1], ids=["few ties", "many ties", "all ties"])
def test_auroc_is_what_counting_pairs_gives(levels: int) -> None:
    draws = np.random.default_rng(levels)
    inliers, outliers = draws.integers(levels, size=83).astype(float), draws.integers(levels, size=57) + 0.2 * (levels == 6)
    assert auroc(inliers, outliers) == pytest.approx(counted(inliers, outliers), abs=1e-12)
    assert auroc(inliers, outliers) + auroc(outliers, inliers) == pytest.approx(1, abs=1e-12)


def test_auroc_is_scipys_statistic() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy isn't installed")
    inliers, outliers = np.round(normal(200, seed=0), 1), np.round(normal(150, mean=0.5, seed=1), 1)
    assert auroc(inliers, outliers) == pytest.approx(stats.mannwhitneyu(outliers, inliers).statistic / (200 * 150), abs=1e-12)


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.7, 2.5])
def test_two_gaussians_have_their_closed_forms(shift: float) -> None:
    count = 40_000
    inliers, outliers = normal(count, seed=2), normal(count, mean=shift, seed=3)
    error = auroc_stderr(inliers, outliers)
    assert auroc(inliers, outliers) == pytest.approx(PHI(shift / math.sqrt(2)), abs=4 * error)
    accepted = PHI(NormalDist().inv_cdf(0.95) - shift)
    # the threshold's own error, √(0.05 · 0.95/n)/φ(1.645), moves the share by at most φ(0) of it
    spread = math.sqrt(accepted * (1 - accepted) / count) + 0.4 * math.sqrt(0.0475 / count) / 0.103
    assert fpr95(inliers, outliers) == pytest.approx(accepted, abs=4 * spread)


def test_the_standard_error_is_the_spread_of_repetitions() -> None:
    pairs = [(normal(60, seed=10 + i), normal(40, mean=1, seed=1000 + i)) for i in range(400)]
    spread = np.std([auroc(*pair) for pair in pairs])
    assert np.mean([auroc_stderr(*pair) for pair in pairs]) == pytest.approx(spread, rel=0.12)  # 3.5 % is its own error


def test_fpr95_by_hand_and_what_cannot_be_scored() -> None:
    inliers = np.arange(1, 21.0)
    assert fpr95(inliers, np.array([18.5, 19, 19.5, 30])) == 0.5, "19 of 20 are accepted, and so is what scores 19"
    assert auroc(inliers, np.array([math.nan, math.inf, 30])) == 1.0, "what can't be scored is an outlier"
    assert fpr95(inliers, np.array([math.nan])) == 0
    assert auroc(inliers, np.zeros(3)) == 0, "what scores below the inliers was turned round"


def test_readings_are_the_models() -> None:
    law = Gaussian(mean=torch.zeros(2, 4, 4, dtype=torch.float64), std=torch.full((2, 4, 4), 0.5, dtype=torch.float64))
    levels = [0.1, 0.5, 2.0]
    for model, shape in ((law, (2, 4, 4)), (models.energy("unet", "inner_product"), models.SHAPE)):
        x = models.normal(5, *shape, seed=0)
        read = readings(model, x, levels=levels)
        assert {name: array.shape for name, array in read.items()} == {"norms": (5, 3), "energies": (5, 3)}
        for index, level in enumerate(levels):
            sigma = torch.full((5,), level, dtype=torch.float64)
            norm = level * model.score(x, sigma).flatten(1).norm(dim=1) / math.sqrt(x[0].numel())
            assert_close(torch.from_numpy(read["norms"][:, index]), norm.detach())
            assert_close(torch.from_numpy(read["energies"][:, index]), model.energy(x, sigma).detach())
    assert set(readings(models.direct("unet"), x, levels=levels)) == {"norms"}


def test_distance_is_mahalanobis_on_both_sides() -> None:
    draws = np.random.default_rng(4)
    root = np.array([[2.0, 0, 0], [1.5, 0.5, 0], [-0.3, 0.2, 1.0]])
    learnt = Typical.fit(5 + draws.standard_normal((200_000, 3)) @ root.T)
    assert learnt.shrinkage < 1e-3
    point = np.array([[1.0, 2.0, -1.0], [-1.0, -2.0, 1.0], [0, 0, 0], [math.nan, 0, 0]])
    truth = np.sqrt(np.einsum("nk,kl,nl->n", point[:3], np.linalg.inv(root @ root.T), point[:3]))
    found = learnt.distance(5 + point)
    np.testing.assert_allclose(found[:2], truth[:2], rtol=0.02)
    assert found[2] < 0.02
    assert math.isinf(found[3])
    assert found[0] == pytest.approx(found[1], rel=0.02), "energies too low are no less untypical than those too high"


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    x = np.random.default_rng(5).standard_normal((40, 6))
    learnt = Typical.fit(x)
    z = (x - x.mean(0)) / x.std(0)
    sample = sum(np.outer(row, row) for row in z) / 40
    error = sum(((np.outer(row, row) - sample) ** 2).sum() for row in z) / 40**2
    assert learnt.shrinkage == pytest.approx(min(1, error / ((sample - np.eye(6)) ** 2).sum()), rel=1e-9)
    assert learnt.shrinkage > 0.5, "independent readings show no correlation beyond chance"
    np.testing.assert_allclose(learnt.correlation, learnt.shrinkage * np.eye(6) + (1 - learnt.shrinkage) * sample, atol=1e-12)


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((20, 2)), "must differ at each level"),
    (np.full((20, 2), math.nan), "one that is not finite"),
    (np.random.default_rng(0).random((7, 2)), "7 of them"),
])
def test_what_cannot_be_learnt_from_is_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Typical.fit(array)


def test_made_up_sets_are_what_they_say() -> None:
    images = torch.from_numpy(np.stack([*shapes(count=12, size=20, seed=0).images()])).permute(0, 3, 1, 2).contiguous()
    made = {name: make(images, seed=0) for name, make in MADE.items()}
    for name, x in made.items():
        assert (x.shape, x.dtype) == (images.shape, torch.uint8), name
        assert torch.equal(x, MADE[name](images, seed=0)), f"{name} is not a function of its seed"
        assert (x != images).float().mean() > 0.1, f"{name} are the images themselves"
    assert (made["constant"].flatten(2).float().std(2) == 0).all()
    assert made["uniform"].float().std() == pytest.approx(256 / math.sqrt(12), rel=0.02)
    before, after = images.flatten(2), made["shuffled"].flatten(2)
    code = torch.tensor([1, 256, 65536])[:, None]
    assert torch.equal((before * code).sum(1).sort(1).values, (after * code).sum(1).sort(1).values), "pixels were torn apart"
    assert torch.equal(255 - made["inverted"], images)
    rough = {name: x.float().diff(dim=3).square().mean() for name, x in {**made, "images": images}.items()}
    assert rough["blurred"] < 0.5 * rough["images"] < 0.2 * rough["shuffled"]


@pytest.mark.parametrize("name", STANDARD)
def test_absent_sets_are_named_with_the_cure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something is being downloaded"))
    with pytest.raises(FileNotFoundError, match=f"{name}: ") as told:
        load_standard(name, tmp_path, count=8, shape=(3, 16, 16), seed=0)
    assert "on a node with a network: python -c" in str(told.value) or "pip install" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_textures_are_read_and_fitted(tmp_path: Path) -> None:
    place = tmp_path / "dtd" / "dtd"
    for index, kind in enumerate(("banded", "woven")):
        (place / "images" / kind).mkdir(parents=True)
        Image.new("RGB", (40, 24), (90 * index, 7, 200)).save(place / "images" / kind / "a.png")
    (place / "labels").mkdir()
    (place / "labels" / "test1.txt").write_text("banded/a.png\nwoven/a.png\n")
    read = load_standard("textures", tmp_path, count=5, shape=(3, 16, 16), seed=0)
    assert (read.shape, read.dtype) == ((2, 3, 16, 16), torch.uint8)
    assert sorted(read[:, 0, 3, 3].tolist()) == [0, 90]


def test_sets_at_a_path(tmp_path: Path) -> None:
    source = shapes(count=9, size=16, seed=0)
    write_beton(tmp_path / "a.beton", source.images(), source=source.name, count=9, progress=False)
    every = np.stack([*source.images()])
    np.savez(tmp_path / "a.npz", images=every)
    (tmp_path / "a").mkdir()
    for index, pixels in enumerate(every):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{index}.png")
    for path in (tmp_path / "a.beton", tmp_path / "a.npz", tmp_path / "a"):
        read = read_set(path, count=20, shape=(3, 16, 16), seed=0)
        np.testing.assert_array_equal(read.permute(0, 2, 3, 1).numpy(), every, str(path))
        few = read_set(path, count=4, shape=(3, 8, 12), seed=0)
        assert few.shape == (4, 3, 8, 12)
    wide = torch.randint(256, (8, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "wide").mkdir()
    Image.fromarray(wide.numpy()).save(tmp_path / "wide" / "a.png")
    read = read_set(tmp_path / "wide", count=1, shape=(3, 8, 16), seed=0)
    np.testing.assert_array_equal(read[0].permute(1, 2, 0).numpy(), wide.numpy(), "a run of wide images sees a part of them")
    for index in range(50):  # pictures that nobody chose are not read
        (tmp_path / "wide" / f"broken-{index}.png").write_bytes(b"")
    chosen = [seed for seed in range(200) if _opens(tmp_path / "wide", seed)]
    assert 0 < len(chosen) < 20
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: holds no"):
        read_set(tmp_path / "none", count=4, shape=(3, 8, 8), seed=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_set(tmp_path / "nowhere.beton", count=4, shape=(3, 8, 8), seed=0)
    grey = fit(Image.new("L", (8, 8), 9), (3, 8, 8))
    assert grey.unique().tolist() == [9]


def _opens(folder: Path, seed: int) -> bool:
    """Whether the one picture drawn from a folder of mostly broken ones can be read."""
    try:
        read_set(folder, count=1, shape=(3, 8, 16), seed=seed)
    except ValueError:
        return False
    return True


def metric(**settings: Any) -> Outliers:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        built = build(compose("metric/outliers").metric, key="metric.outliers")
    return replace(built, count=100, calibration=400, levels=4, **settings)


def test_a_known_law_finds_its_outliers(tmp_path: Path) -> None:
    measure = metric(data_root=str(tmp_path), made=["blurred", "gaussian", "inverted", "shuffled"])
    given = work(tmp_path, Energy())
    measure.check(given)
    figures = measure(given)
    assert figures is not None
    json.dumps([figures.values, figures.measure, figures.details], allow_nan=False)
    assert set(figures.pictures) == {"table", "profiles"}
    assert all(picture.startswith(b"\x89PNG") for picture in figures.pictures.values())
    value = figures.values
    # means of 4 × 4 pixels have a sixteenth of the variance: energies some d/2 · 15/16 lower, a likelihood above any image's
    assert value["auroc_energy_blurred"] < 0.01, "simple images must be seen to be likely, and not turned round"
    assert value["fpr95_energy_blurred"] == 1
    assert value["auroc_typicality_blurred"] > 0.99
    assert value["fpr95_typicality_blurred"] < 0.02
    for score in ("energy", "typicality", "score_norms"):
        for name in ("gaussian", "shuffled"):  # of the same law as the images
            assert abs(value[f"auroc_{score}_{name}"] - 0.5) < 4.5 * math.sqrt(1 / 600), f"{score} tells {name} apart"
            assert value[f"auroc_{score}_{name}_stderr"] == pytest.approx(math.sqrt(1 / 600), rel=0.25)  # of 100 and 100
        assert value[f"auroc_{score}_inverted"] > 0.9
    assert set(figures.details["skipped"]) == set(STANDARD)
    assert figures.details["levels beyond training's"] == [0.01, 10.0]


def test_a_direct_score_has_only_its_norms(tmp_path: Path) -> None:
    measure, given = metric(data_root=str(tmp_path), made=["inverted"], standard=[]), work(tmp_path, Score())
    measure.check(given)
    figures = measure(given)
    assert figures is not None
    assert set(figures.values) == {f"{name}_score_norms_inverted{end}" for name, end in (
        ("auroc", ""), ("auroc", "_stderr"), ("fpr95", ""))}
    assert set(figures.details["skipped"]) == {"energy", "typicality"}
    with pytest.raises(ValueError, match="for a direct score choose score_norms"):
        replace(measure, scores=["energy"]).check(given)


@pytest.mark.parametrize(("settings", "words"), [
    ({"scores": ["energie"]}, "scores: 'energie' is not accepted; choose from energy"),
    ({"standard": ["mnist"]}, "standard: 'mnist' is not accepted; choose from svhn"),
    ({"sets": {"svhn": "x"}}, "sets: 'svhn' is not accepted"),
    ({"sets": {"mine": "nowhere"}}, "nowhere: no such folder"),
    ({"sigma_min": 20.0}, "sigma_max: 10.0 is not accepted"),
    ({"made": [], "standard": []}, "there must be a set"),
])
def test_bad_settings_are_refused_before_any_work(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        metric(**settings).check(work(tmp_path, Energy()))
