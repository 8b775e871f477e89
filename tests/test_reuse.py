"""Earlier samples and features are reused only where nothing that they depend on has changed."""
from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import CPU, Score, work
from omegaconf import OmegaConf

from ebm.evaluate.extractors import Random
from ebm.evaluate.reference import dataset_images, load_features, save_features
from ebm.precision import Precision
from ebm.train.distributed import device_name
from launch.metrics.evaluation import Work, is_current, load_samples
from launch.metrics.quality import real_features

PROTOCOL = {"settings": {"steps": 3, "grid": {"rho": 7}}, "n": 20, "seed": 0, "batch": 50, "ema": 1, "step": 8,
            "precision": "fp32", "device": device_name(CPU), "checkpoint": "step-000000008-0123456789abcdef.pt"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work(tmp_path_factory.mktemp("given"), Score(), train=60, held_out=8)


def asking(given: Work, **more: Any) -> Work:
    """Work that asks for samples of exactly this protocol, except for what is given."""
    pipeline = {"step": PROTOCOL["step"], "checkpoint": PROTOCOL["checkpoint"], **more.pop("pipeline", {})}
    asked = {"sampler": PROTOCOL["settings"], **{key: PROTOCOL[key] for key in ("n", "seed", "batch", "ema")}}
    cfg = OmegaConf.merge(given.cfg, asked, more)
    return replace(given, cfg=cfg, pipeline=replace(given.pipeline, **pipeline))


@pytest.mark.parametrize("change", [
    {"n": 21}, {"batch": 49}, {"seed": 1}, {"ema": 0}, {"sampler": {"steps": 4}}, {"sampler": {"grid": {"rho": 5}}},
    {"pipeline": {"step": 16}}, {"pipeline": {"checkpoint": "step-000000008-fedcba9876543210.pt"}},
    {"pipeline": {"precision": Precision(name="bf16")}}], ids=str)
def test_samples_of_another_protocol_are_not_reused(change: dict[str, Any], given: Work, tmp_path: Path) -> None:
    protocol = tmp_path / "samples.json"
    protocol.write_text(json.dumps({**PROTOCOL, "seconds": 1.0}))
    assert not is_current(protocol, asking(given)), "there are no images beside it"
    protocol.with_suffix(".npz").touch()
    assert is_current(protocol, asking(given))
    assert not is_current(protocol, asking(given, **change))
    for name in PROTOCOL:
        protocol.write_text(json.dumps({key: value for key, value in PROTOCOL.items() if key != name}))
        assert not is_current(protocol, asking(given)), f"a protocol without {name} passes for current"


def test_features_of_other_real_images_are_not_reused(given: Work, tmp_path: Path) -> None:
    folder, images, found = tmp_path / "cache", dataset_images(given.train), {}
    for extractor in (Random(seed=seed, widths=[4]).load(CPU) for seed in (0, 1)):
        for count, seed in ((60, 0), (30, 0), (30, 1), (20, 0)):
            indices = images.choice(count, seed=seed)
            rows = real_features(given, extractor, images, indices, batch=16, cache=str(folder), seed=seed)
            direct = extractor(images.pixels(indices))["features"].numpy()
            np.testing.assert_allclose(rows["features"], direct, rtol=1e-5, atol=1e-6, err_msg=f"{count} by seed {seed}")
            again = real_features(given, extractor, images, indices, batch=16, cache=str(folder), seed=seed)
            np.testing.assert_array_equal(rows["features"], again["features"])
            found[extractor.key, count, seed] = torch.from_numpy(direct)
    assert len([*folder.iterdir()]) == len(found) == 8


def test_features_are_loaded_only_for_as_many_images_as_they_are_of(tmp_path: Path) -> None:
    path, rows = tmp_path / "features.npz", {"features": np.ones((5, 3), np.float32), "mu": np.ones(3)}
    save_features(path, rows)
    found = load_features(path, count=5)
    assert found is not None and {*found} == {*rows}
    assert load_features(path, count=6) is None and load_features(path, count=4) is None
    rows["features"][2, 1] = np.nan
    save_features(path, rows)
    assert load_features(path, count=5) is None, "features that are not finite would give figures that are not"


def test_the_first_images_of_a_file_are_measured_and_recorded_by_their_hash(given: Work, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels)
    found = load_samples(tmp_path / "mine.npz", replace(given, n=4))
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1).numpy(), pixels[:4])
    sha256 = hashlib.sha256(np.ascontiguousarray(pixels[:4].transpose(0, 3, 1, 2)).tobytes()).hexdigest()
    assert found.subject == {"sampler": "file mine.npz", "n": 4, "sha256": sha256}
