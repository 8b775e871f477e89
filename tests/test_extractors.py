"""Feature spaces: each is what its hash says, comes from a file or a seed and is never downloaded; spoilt images lie far."""
from __future__ import annotations

import hashlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from ebm.data.shapes import shapes
from ebm.evaluate.extractors import Inception, Random, Source, TorchScript
from ebm.evaluate.quality import Comparison, features_of, quality_of
from launch.config.build import build
from launch.config.manual import CONFIGS, choices

CPU = torch.device("cpu")
FRECHET = Comparison(figures=["fid"], kid_subsets=1, kid_subset_size=2, neighbourhood=3, splits=1, halves=0, seed=0)


def configured(choice: str, *overrides: str) -> Source:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=[f"+extractor={choice}", *overrides])
    return build(cfg.extractor, key="extractor")


def real(count: int, *, seed: int) -> Tensor:
    return torch.from_numpy(np.stack([*shapes(count=count, size=16, seed=seed).images()])).permute(0, 3, 1, 2).contiguous()


def blurred(x: Tensor, width: float) -> Tensor:
    k = torch.exp(-(torch.arange(-4, 5.0) / width).square() / 2)
    k = (k / k.sum()).expand(3, 1, 1, 9)
    y = F.conv2d(F.pad(x.float(), (4,) * 4, mode="reflect"), k, groups=3)
    return F.conv2d(y, k.transpose(2, 3), groups=3).round().to(torch.uint8)


def noisy(x: Tensor, size: float) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x.float() + size * noise).round().clamp(0, 255).to(torch.uint8)


def distances(reference: Tensor, *sets: Tensor) -> list[float]:
    extractor = configured("random").load(CPU)
    known = features_of(reference, extractor=extractor, batch=100, progress=False)
    return [quality_of(images, known, extractor=extractor, comparison=FRECHET, batch=100, progress=False)["fd_random"]
            for images in sets]


def scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return path


class Corner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :1, :2]


class Upset(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 0


@pytest.mark.parametrize("choice", choices("extractor"))
def test_every_config_is_an_extractor(choice: str) -> None:
    given = ["extractor.name=mine", "extractor.file=mine.pt"] if choice == "torchscript" else []
    assert callable(configured(choice, *given).load)


def test_the_random_network_is_the_same_bits_everywhere() -> None:
    extractor = configured("random").load(CPU)
    assert extractor.sha256[:12] == "232da1fbc492", "its parameters have changed, and with them the meaning of every fd_random"
    rows = extractor(real(5, seed=0))["features"]
    assert rows.shape == (5, 3 + 2 * (32 + 64 + 128))
    torch.testing.assert_close(rows[1:2], extractor(real(2, seed=0)[1:])["features"])
    others = [Random(seed=1, widths=[32, 64, 128]).load(CPU), Random(seed=0, widths=[32, 64]).load(CPU)]
    assert len({extractor.key, *(other.key for other in others)}) == 3


def test_the_random_network_orders_noise_and_blur() -> None:
    reference, other = real(150, seed=0), real(150, seed=1)
    floor, *blur = distances(reference, other, *(blurred(other, width) for width in (0.7, 2.0)))
    *noise, white = distances(reference, *(noisy(other, size) for size in (20, 40)), noisy(torch.full_like(other, 128), 60))
    assert [floor, *blur] == sorted([floor, *blur]), f"more blur is not farther: {floor}, {blur}"
    assert [floor, *noise] == sorted([floor, *noise]), f"more noise is not farther: {floor}, {noise}"
    assert white > 2 * blur[-1] > 4 * floor, f"noise {white}, blurred {blur[-1]}, real {floor}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like Inception's, of random weights, saved by the library's own module."""
    import torch_fidelity.feature_extractor_inceptionv3 as library

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = library.FeatureExtractorInceptionV3("x", ["2048"])
    torch.save(net.state_dict(), path)
    return path


def test_inception_is_read_from_its_file_alone(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_fidelity.feature_extractor_inceptionv3 as library

    def download(*_: object, **__: object) -> None:
        pytest.fail("it tried to download")

    monkeypatch.setattr(library, "load_state_dict_from_url", download)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    extractor = Inception(file=str(weights), sha256=sha256).load(CPU)
    found = extractor(real(2, seed=0))
    assert (found["features"].shape, found["logits"].shape) == ((2, 2048), (2, 1008))
    plain = library.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    torch.testing.assert_close((found["features"], found["logits"]), plain(real(2, seed=0)), rtol=0, atol=0)
    assert not extractor.published, "figures in other weights would be called FID"
    assert extractor.measure == {"extractor": "inception", "extractor_sha256": sha256}


def test_weights_that_are_absent_or_others_are_refused_unread(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    told = r"extractor\.file: .*inception\.pth' is not accepted; its SHA-256 is .*, not 6726825d0af5"
    with pytest.raises(ValueError, match=told) as no:
        configured("inception", f"extractor.file={weights}").load(CPU)
    assert "fetch_weights" in str(no.value)
    monkeypatch.setenv("EBM_WEIGHTS", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/weights-.*: no such file; tools/fetch_weights.py fetches it"):
        configured("inception").load(CPU)


def test_figures_without_the_library_say_how_to_get_it(
        weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"torch-fidelity: not installed; .*pip install -e '\.\[evaluate\]'"):
        Inception(file=str(weights), sha256=sha256).load(CPU)
    with pytest.raises(ValueError, match="not installed"):
        distances(real(4, seed=0), real(4, seed=1))
    (tmp_path / "torch_fidelity.py").write_text("import torch_fidelitys_own_need")
    monkeypatch.delitem(sys.modules, "torch_fidelity")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"torch-fidelity: cannot be imported \(No module named 'torch_fidelitys_own_need'\);"):
        distances(real(4, seed=0), real(4, seed=1))


def test_a_torchscript_network_sees_what_its_settings_say(tmp_path: Path) -> None:
    path = scripted(Corner(), tmp_path / "corner.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    images = real(3, seed=0)
    std = [128.0, 64.0, 1.0]
    extractor = TorchScript(name="corner", file=str(path), sha256=sha256, size=None, mean=[127.0], std=std).load(CPU)
    pixels = (images[:, :, :1, :2].float() - 127) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(extractor(images)["features"], pixels.mean((2, 3)))
    larger = TorchScript(name="corner", file=str(path), sha256=None, size=32, mean=[0.0], std=[1.0]).load(CPU)
    scaled = F.interpolate(images.float(), (32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    torch.testing.assert_close(larger(images)["features"], scaled[:, :, :1, :2].mean((2, 3)))
    assert (extractor.sha256, larger.sha256, extractor.published) == (sha256, sha256, False)
    assert extractor.key != larger.key, "the settings are no part of the space's name"


def test_a_torchscript_file_that_is_none_or_gives_no_features_is_refused(tmp_path: Path) -> None:
    def source(**changes: object) -> TorchScript:
        return TorchScript(**{"name": "mine", "file": str(tmp_path / "x.pt"), "sha256": None, "size": None,  # type: ignore[arg-type]
                              "mean": [0.0], "std": [1.0], **changes})

    with pytest.raises(FileNotFoundError, match=r"extractor\.file: .*x\.pt': no such file"):
        source().load(CPU)
    (tmp_path / "x.pt").write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"extractor\.file: .*it must be TorchScript"):
        source().load(CPU)
    with pytest.raises(ValueError, match=r"its SHA-256 is .*, not 000000000000"):
        source(sha256="0" * 64).load(CPU)
    scripted(Upset(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="extractor: 'mine' is not accepted; its features must be finite"):
        source().load(CPU)(real(2, seed=0))
    for change in ({"name": "inception"}, {"name": "Mine 2"}, {"mean": [1.0, 2.0]}, {"std": [0.0]}, {"size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}: .* is not accepted"):
            source(**change)


def test_images_of_another_kind_are_refused() -> None:
    extractor = configured("random").load(CPU)
    grey = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    for images in (grey, torch.zeros(2, 3, 16, 16), torch.full((2, 3, 8, 8), torch.nan)):
        with pytest.raises(ValueError, match=r"images: .* is not accepted; features are of uint8 \(B, 3, H, W\)"):
            features_of(images, extractor=extractor, batch=2, progress=False)
    with pytest.raises(ValueError, match="widths"):
        Random(seed=0, widths=[])


class Extremes(nn.Module):
    """The least and the greatest pixel of each image, (B, 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).amin(1), x.flatten(1).amax(1)], 1)


def test_an_enlarged_image_has_no_pixel_value_that_a_file_could_not_hold(tmp_path: Path) -> None:
    """Bicubic interpolation overshoots on both sides of an edge between black and white."""
    scripted(Extremes(), tmp_path / "net.pt")
    edges = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    edges[:, :, :, 4:] = 255
    extractor = TorchScript(name="net", file=str(tmp_path / "net.pt"), sha256=None, size=24, mean=[0.0], std=[1.0])
    assert extractor.load(CPU)(edges)["features"].tolist() == [[0.0, 255.0]] * 2
