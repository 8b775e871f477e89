"""Figures of quality against closed forms; names that tell FID from what isn't; a reference that is known by its hash."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from ebm.data import Dataset
from ebm.data.beton import write_beton
from ebm.data.shapes import shapes
from ebm.evaluate.extractors import Extractor
from ebm.evaluate.quality import Comparison, features_of, quality_of
from ebm.train.distributed import World
from launch.config.build import build
from launch.config.manual import CONFIGS
from launch.drawing.batches import Rows
from launch.metrics.evaluation import Samples, Work
from launch.metrics.quality import Quality

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "figures": ["fid"], "kid_subsets": 1, "kid_subset_size": 2, "neighbourhood": 3, "splits": 1, "halves": 0, "seed": 0}


def space(*, published: bool, name: str = "space") -> Extractor:
    return Extractor(name=name, sha256="0" * 64, settings={}, published=published, device=CPU,
                     network=lambda images: {"features": images.flatten(1)[:, :4].float()})


PUBLISHED, OTHER = space(published=True, name="inception"), space(published=False)


def figures(samples: Tensor, reference: Tensor, *, extractor: Extractor = PUBLISHED, **settings: Any) -> dict[str, float]:
    rows = [{"features": x.numpy(), "logits": x.numpy()} for x in (samples, reference)]
    return Comparison(**{**SETTINGS, **settings})(*rows, extractor=extractor, progress=False)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(count: int, mean: Tensor, covariance: Tensor, *, seed: int) -> Tensor:
    """Rows whose sample mean and covariance are just these."""
    x = normal(count, len(mean), seed=seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    factors = normal(2, 6, 6, seed=0)
    a, b = (f @ f.T / 6 + 0.1 * torch.eye(6) for f in factors)
    means = normal(2, 6, seed=1)
    half = root(a)
    exact = (means[0] - means[1]).square().sum() + a.trace() + b.trace() - 2 * root(half @ b @ half).trace()
    found = figures(moments(50, means[0], a, seed=2), moments(80, means[1], b, seed=3))["fid"]
    assert found == pytest.approx(float(exact), rel=1e-6)


def test_equal_sets_are_no_distance_apart() -> None:
    x = normal(60, 5, seed=0).float()
    found = figures(x, x, figures=["fid", "kid", "precision_recall"], kid_subset_size=60)
    assert abs(found["fid"]) < 1e-6
    assert found["kid"] <= 0, "the unbiased estimate over one set twice lies below 0"
    assert (found["precision"], found["recall"]) == (1, 1)


def test_half_samples_tell_the_standard_error() -> None:
    reference = normal(4000, 4, seed=0)
    sets = [figures(1.3 * normal(200, 4, seed=seed) + 0.2, reference, halves=10) for seed in range(1, 61)]
    true = np.std([one["fid"] for one in sets], ddof=1)
    told = np.mean([one["fid_stderr"] for one in sets])
    assert told == pytest.approx(true, rel=0.3), f"told {told}, truly {true}"


def test_the_kernel_distance_is_the_unbiased_discrepancy_and_its_error_is_not_told_too_small() -> None:
    x, y = normal(30, 5, seed=0), normal(30, 5, seed=1) + 0.5
    kernel = [(a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    inner = [(k.sum() - k.trace()) / (30 * 29) for k in kernel[:2]]
    found = figures(x, y, figures=["kid"], kid_subset_size=30)
    assert found == {"kid": pytest.approx(float(sum(inner) - 2 * kernel[2].mean()), rel=1e-6)}, "one subset has no spread"
    reference = normal(2000, 5, seed=2)
    sets = [figures(normal(200, 5, seed=seed) + 0.5, reference, figures=["kid"], kid_subsets=20, kid_subset_size=50)
            for seed in range(10, 50)]
    true, told = np.std([one["kid"] for one in sets], ddof=1), np.mean([one["kid_stderr"] for one in sets])
    assert 0.8 * true < told < 3 * true, f"told {told}, truly {true}"


def test_the_inception_score_counts_classes_that_are_sure_and_equally_many() -> None:
    sure = 100 * torch.eye(5).repeat(8, 1)
    found = figures(sure, sure, figures=["is"], splits=1)["is"]
    assert found == pytest.approx(5)
    assert figures(torch.ones(40, 5), sure, figures=["is"], splits=4)["is"] == pytest.approx(1)
    assert set(figures(sure, sure, figures=["is"], splits=4)) == {"is", "is_stderr"}


def test_samples_of_half_the_classes_are_precise_and_recall_half() -> None:
    modes = torch.stack([torch.zeros(4), torch.full((4,), 100.0)])
    reference = (normal(200, 4, seed=0).unflatten(0, (2, 100)) + modes[:, None]).flatten(0, 1).float()
    half = normal(100, 4, seed=1).float()
    found = figures(half, reference, figures=["precision_recall"])
    assert found["precision"] > 0.8
    assert 0.4 < found["recall"] <= 0.5
    turned = figures(reference, half, figures=["precision_recall"])
    assert turned["precision"] <= 0.5 < 0.8 < turned["recall"], "samples and reference are taken for each other"


def test_only_figures_of_the_published_features_have_the_published_names() -> None:
    x = normal(20, 4, seed=0).float()
    every = figures(x, x, figures=None, halves=2, splits=2)
    assert set(every) == {"fid", "fid_stderr", "kid", "is", "is_stderr", "precision", "recall"}
    other = figures(x, x, figures=None, halves=2, extractor=OTHER)
    assert set(other) == {"fd_space", "fd_space_stderr", "kd_space", "precision_space", "recall_space"}
    with pytest.raises(ValueError, match="figures: 'is' is not accepted; space does not have Inception's classes"):
        figures(x, x, figures=["fid", "is"], extractor=OTHER)


@pytest.mark.parametrize(("settings", "told"), [
    ({"figures": ["psnr"]}, "figures: .'psnr'. is not accepted"), ({"figures": []}, "figures"),
    ({"kid_subset_size": 1}, "kid_subset_size"), ({"halves": 1}, "halves: 1 is not accepted"),
    ({"neighbourhood": 0}, "neighbourhood"),
    ({"figures": ["kid"], "kid_subset_size": 8}, r"n: 6 is not accepted; kid needs at least 8 images \(kid_subset_size\)"),
    ({"figures": ["precision_recall"], "neighbourhood": 6}, r"n: 6 .* precision_recall needs at least 7 images"),
    ({"figures": ["is"], "splits": 7}, "n: 6 .* is needs at least 7")])
def test_settings_that_cannot_be_and_too_few_images_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        figures(normal(6, 2, seed=0), normal(9, 2, seed=1), **settings)


def test_too_few_real_images_are_refused_before_any_feature_is_computed() -> None:
    def never(_: Tensor) -> dict[str, Tensor]:
        pytest.fail("it computed features")

    extractor = Extractor(name="x", sha256="", settings={}, published=False, device=CPU, network=never)
    images = torch.zeros(9, 3, 4, 4, dtype=torch.uint8)
    comparison = Comparison(**{**SETTINGS, "figures": ["kid"], "kid_subset_size": 5})
    with pytest.raises(ValueError, match="reference_count: 4 is not accepted; kid needs at least 5"):
        quality_of(images, images[:4], extractor=extractor, comparison=comparison, batch=4, progress=False)
    with pytest.raises(ValueError, match="n: 1 is not accepted; fid needs at least 2"):
        quality_of(images[:1], images, extractor=extractor, comparison=Comparison(**SETTINGS), batch=4, progress=False)


class SeveralProcesses(Work):
    """Batches computed as if by three processes, the last one first."""

    def compute_rows(self, name: str, count: int, batch: int, compute: Any) -> Rows:
        parts = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
        made = {part.start: compute(part) for rank in (2, 1, 0) for part in parts[rank::3]}
        return {key: np.concatenate([made[part.start][key] for part in parts]) for key in made[0]}


def pictures(count: int, *, seed: int) -> Tensor:
    return torch.from_numpy(np.stack([*shapes(count=count, size=16, seed=seed).images()])).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count, seed in (("train", 50, 0), ("test", 20, 1)):
        source = shapes(count=count, size=16, seed=seed)
        write_beton(tmp_path / f"{split}.beton", source.images(), source=source.name, count=count, progress=False)
    return tmp_path


def work(folder: Path, *, n: int, kind: type[Work] = Work, held_out: bool = True) -> Work:
    pipeline: Any = SimpleNamespace(shape=(3, 16, 16), seed=0, precision=SimpleNamespace(name="fp32"))
    train, test = (Dataset.open(folder / f"{split}.beton") for split in ("train", "test"))
    return kind(pipeline=pipeline, world=World(rank=0, size=1, device=CPU),
                run_config=OmegaConf.create({"data": {"flip": True}}),
                cfg=OmegaConf.create({"out": str(folder / "out"), "ema": 0}), train=train, held_out=test if held_out else None,
                n=n, batch=8, kept={"samples": Samples(images=pictures(n, seed=2), subject={})})


def quality(*overrides: str) -> Quality:
    few = [f"metric.{setting}" for setting in ("kid_subset_size=5", "kid_subsets=4", "halves=2", "batch=16")]
    given = [override if override.startswith("extractor.") else f"metric.{override}" for override in overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=["+extractor=random", "extractor.widths=[4, 8]", "+metric=quality", *few, *given])
    built: Quality = build(cfg.metric, key="metric")
    return built


def test_the_metric_tells_figures_protocol_and_what_real_images_score(folder: Path) -> None:
    metric, place = quality(), work(folder, n=20)
    metric.check(place)
    found = metric(place)
    assert found is not None
    names = {"fd_random", "fd_random_stderr", "kd_random", "precision_random", "recall_random", "fd_random_real"}
    assert set(found.values) >= names
    assert not [name for name in found.values if "fid" in name or "kid" in name or name == "is"]
    extractor = metric.extractor.load(CPU)
    direct, floor = (quality_of(pictures(20, seed=seed), pictures(50, seed=0), extractor=extractor, batch=16, progress=False,
                                comparison=metric.comparison()) for seed in (2, 1))
    for key, value in direct.items():
        assert found.values[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
    assert found.values["fd_random_real"] == pytest.approx(floor["fd_random"], rel=1e-9)
    told = {"n": 20, "reference_count": 50, "reference_sha256": place.train.manifest.sha256, "extractor": "random",
            "extractor_sha256": extractor.sha256, "kid_subset_size": 5, "halves": 2, "seed": 0}
    assert found.measure | told == found.measure
    assert found.measure["library"].startswith("torch-fidelity ")


def test_figures_do_not_depend_on_the_number_of_processes(folder: Path, tmp_path: Path) -> None:
    one = quality(f"cache={tmp_path}/one")(work(folder, n=30))
    several = quality(f"cache={tmp_path}/several")(work(folder, n=30, kind=SeveralProcesses))
    assert one is not None and several is not None
    assert one.values == several.values
    assert one.details["real"].endswith("has 20 images, fewer than n"), "a floor at another n would be no floor"


def test_features_of_real_images_are_kept_by_hash_and_made_again_when_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(images: Tensor, **kwargs: Any) -> dict[str, Any]:
        seen.append(len(images))
        return features_of(images, **kwargs)

    monkeypatch.setattr("launch.metrics.quality.features_of", counted)
    metric = quality("real=false")
    first = metric(work(folder, n=20))
    (kept,) = folder.glob("random-*.npz")
    place = work(folder, n=20)
    assert kept.name == f"random-{metric.extractor.load(CPU).key}-{place.train.manifest.sha256[:12]}-n50.npz"
    assert sum(seen) == 70

    def again(monkey: str) -> None:
        seen.clear()
        place = work(folder, n=20)
        for file in place.batches.rglob("*.npz"):
            file.unlink()
        found = metric(place)
        assert found is not None and first is not None and found.values == first.values, monkey

    again("kept")
    assert sum(seen) == 20, "features that were kept were computed again"
    content = kept.read_bytes()
    for damaged in (content[:len(content) // 2], content[:300] + bytes([content[300] ^ 1]) + content[301:], b""):
        kept.write_bytes(damaged)
        again("damaged")
        assert sum(seen) == 70, "damaged features were believed"
        assert kept.read_bytes() == content
    quality("real=false", "reference_count=30")(work(folder, n=20))
    quality("real=false", "extractor.seed=1")(work(folder, n=20))
    assert len([*folder.glob("random-*.npz")]) == 3, "other images or another extractor are taken for the same"


def test_features_that_cannot_be_kept_are_used_all_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").touch()
    assert quality(f"cache={folder}/file/x", "real=false")(work(folder, n=20)) is not None
    assert "can't be written" in capsys.readouterr().out


def test_fewer_reference_images_are_drawn_and_not_the_first(folder: Path) -> None:
    drawn = work(folder, n=20).train, quality("reference_count=10", "seed=3")
    from ebm.evaluate.reference import dataset_images

    indices = drawn[1].indices(dataset_images(drawn[0]))
    assert len({*indices.tolist()}) == 10
    assert indices.max() > 20, "a file in order of classes would give one class"
    assert (indices == drawn[1].indices(dataset_images(drawn[0]))).all()


def test_the_reference_may_be_held_out_images_or_lie_anywhere(folder: Path) -> None:
    images = np.stack([*shapes(count=25, size=16, seed=5).images()])
    np.savez(folder / "other.npz", a=images, b=images[:7])
    (folder / "pngs").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"pngs/{i:02d}.png")
    found = [quality(f"reference={reference}")(work(folder, n=20))
             for reference in ("held_out", f"{folder}/test.beton", f"{folder}/other.npz:a", f"{folder}/pngs")]
    assert all(found)
    held_out, beton, npz, pngs = (one for one in found if one)
    assert held_out.measure == beton.measure, "the same images under two names do not compare"
    assert "fd_random_real" in held_out.values, "training images are other real images than held-out ones"
    assert npz.values == pngs.values
    assert npz.measure["reference_sha256"] == pngs.measure["reference_sha256"] != held_out.measure["reference_sha256"]


def test_what_cannot_be_a_reference_is_refused_before_any_work(folder: Path) -> None:
    images = np.zeros((8, 16, 16, 3), np.uint8)
    (folder / "empty").mkdir()
    np.savez(folder / "grey.npz", images[..., :1])
    np.savez(folder / "small.npz", images[:, :8, :8])
    np.savez(folder / "float.npz", images / 255)
    (folder / "text.npz").write_text("no")
    np.savez(folder / "two.npz", a=images, b=images)
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_text("no picture")
    refused = {
        "reference=held_out": "reference: 'held_out' is not accepted; the run has none",
        f"reference={folder}/empty": "reference: .*holds no .bmp",
        f"reference={folder}/broken": "reference: .*not a readable image",
        f"reference={folder}/none.npz": "reference: .*no such file",
        f"reference={folder}/text.npz": "reference: .*not an .npz file",
        f"reference={folder}/two.npz": "reference: .*doesn't hold exactly one array; it holds a, b; name one as FILE:KEY",
        f"reference={folder}/grey.npz": r"reference: .*arr_0 is uint8 \(8, 16, 16, 1\)",
        f"reference={folder}/float.npz": "reference: .*arr_0 is float64",
        f"reference={folder}/small.npz": r"reference: images of \(3, 8, 8\) are not accepted; the run's are \(3, 16, 16\)",
        "reference_count=51": "reference_count: 51 is not accepted; .* has 50 images",
        "kid_subset_size=21": "n: 20 is not accepted; kid needs at least 21",
    }
    for override, told in refused.items():
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            quality(override).check(work(folder, n=20, held_out=False))
    assert not [*folder.glob("random-*"), *folder.glob("out")], "something was written"
    with pytest.raises(ValueError, match=r"metric\.halves: 1 is not accepted"):
        quality("halves=1")
