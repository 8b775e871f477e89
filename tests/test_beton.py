"""A .beton file of ours is FFCV's, to the bit; it is the same bytes every time, whole or not there at all."""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ebm.data.beton import Beton, read_beton, write_beton
from ebm.data.manifest import Manifest
from ebm.data.sources import npz
from ebm.data.stream import COMPILED, import_ffcv

REAL = Path(__file__).resolve().parents[2] / "shared/data/cifar10-lossless-part.npz"
needs_ffcv = [
    pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed"),
    # FFCV builds its code from syntax-tree classes that newer Pythons call deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, images: np.ndarray) -> Manifest:
    return write_beton(path, iter(images), source="test", count=len(images), progress=False)


def uses_ffcv(path: Path, *, os_cache: bool) -> np.ndarray:
    assert not import_ffcv()
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    loader = Loader(str(path), batch_size=64, num_workers=1, os_cache=os_cache, order=OrderOption.SEQUENTIAL, seed=0,
                    drop_last=False, pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()]})
    COMPILED.append(loader.code)
    return np.concatenate([images.numpy().copy() for (images,) in loader])


@pytest.mark.parametrize("os_cache", [True, False], ids=["os-cache", "page-cache"])
@pytest.mark.parametrize("shape", [(700, 33, 31, 3), (3, 5, 700, 3)], ids=["two-pages", "odd"])
class TestFFCV:
    pytestmark = needs_ffcv

    def test_reads_what_was_written(self, tmp_path: Path, shape: tuple[int, ...], os_cache: bool) -> None:
        images = noise(*shape)
        write(tmp_path / "a.beton", images)
        np.testing.assert_array_equal(uses_ffcv(tmp_path / "a.beton", os_cache=os_cache), images)
        np.testing.assert_array_equal(read_beton(tmp_path / "a.beton"), images)


@pytest.mark.skipif(not REAL.exists(), reason="real images are not here")
class TestRealImages:
    pytestmark = needs_ffcv

    def test_pass_to_the_bit(self, tmp_path: Path) -> None:
        source = npz(REAL, key="test")
        write_beton(tmp_path / "a.beton", source.images(), source=source.name, count=source.count, progress=False)
        images = np.stack(list(source.images()))
        np.testing.assert_array_equal(uses_ffcv(tmp_path / "a.beton", os_cache=True), images)


class TestFFCVsOwnFile:
    pytestmark = needs_ffcv

    def test_is_read_and_its_jpeg_kind_refused(self, tmp_path: Path) -> None:
        assert not import_ffcv()
        from ffcv.fields import RGBImageField
        from ffcv.writer import DatasetWriter

        images = noise(20, 9, 7, 3)
        for mode in ("raw", "jpg"):
            DatasetWriter(str(tmp_path / mode), {"image": RGBImageField(write_mode=mode)},
                          num_workers=1).from_indexed_dataset([(image,) for image in images])
        np.testing.assert_array_equal(read_beton(tmp_path / "raw"), images)
        with pytest.raises(ValueError, match="jpg: holds compressed images"):
            read_beton(tmp_path / "jpg")


def test_the_same_images_are_the_same_bytes(tmp_path: Path) -> None:
    images = noise(50, 8, 8, 3)
    assert write(tmp_path / "a.beton", images) == write(tmp_path / "b.beton", images)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    manifest = Manifest.load(tmp_path / "a.beton")
    manifest.check(tmp_path / "b.beton", whole=True)
    assert (manifest.count, manifest.height, manifest.width) == (50, 8, 8)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_half_written_stays(tmp_path: Path, error: type[BaseException]) -> None:
    def breaks() -> Iterator[np.ndarray]:
        yield from noise(3, 8, 8, 3)
        raise error("midway")

    with pytest.raises(error, match="midway"):
        write_beton(tmp_path / "a.beton", breaks(), source="test", count=9, progress=False)
    assert not list(tmp_path.iterdir())
    before = write(tmp_path / "a.beton", noise(4, 8, 8, 3))
    with pytest.raises(error, match="midway"):
        write_beton(tmp_path / "a.beton", breaks(), source="test", count=9, progress=False)
    assert Manifest.load(tmp_path / "a.beton") == before  # the old file stands, with its manifest
    before.check(tmp_path / "a.beton", whole=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_old_file_with_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "a.beton", noise(4, 8, 8, 3))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.beton", noise(5, 8, 8, 3))
    assert Manifest.load(tmp_path / "a.beton") == before
    before.check(tmp_path / "a.beton", whole=True)


@pytest.mark.parametrize(("count", "said"), [(4, "more images than the 4"), (6, "5 images where 6")])
def test_a_wrong_count_is_refused(tmp_path: Path, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_beton(tmp_path / "a", iter(noise(5, 4, 4, 3)), source="test", count=count, progress=False)


def test_unequal_and_absent_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image 1 is uint8 \(4, 5, 3\)"):
        write_beton(tmp_path / "a", iter([noise(4, 4, 3), noise(4, 5, 3)]), source="test", count=2, progress=False)
    with pytest.raises(ValueError, match="no images"):
        write_beton(tmp_path / "a", iter([]), source="test", count=0, progress=False)
    assert not list(tmp_path.iterdir())


def test_damage_is_named_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    with pytest.raises(FileNotFoundError, match=r"a.beton: no such data file; make it with tools/prepare_data.py"):
        Manifest.load(path)
    manifest = write(path, noise(5, 8, 8, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"a.beton: damaged: .* --force"):
        manifest.check(path, whole=False)
    for data, said in ((whole[:-1], "cut short"), (b"", "too few"), (whole[:100], "too few"),
                       (b"\x01" + whole[1:], "version 2"), (whole[:24] + b"\x01" + whole[25:], "other fields")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.beton: .*{said}"):
            Beton.open(path)
    flipped = bytearray(whole)
    flipped[1 << 21] ^= 1  # the first pixel
    path.write_bytes(flipped)
    manifest.check(path, whole=False)
    with pytest.raises(ValueError, match=r"a.beton: damaged: SHA-256"):
        manifest.check(path, whole=True)
    Manifest.beside(path).write_text('{"count": 3}')
    with pytest.raises(ValueError, match=r"a.beton.json: not a manifest"):
        Manifest.load(path)


def test_a_new_file_never_stands_beside_an_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is killed: the old pair, then no manifest, then the new pair."""
    path, replace, seen = tmp_path / "a.beton", os.replace, []
    before = write(path, noise(4, 8, 8, 3))

    def moved(aside: Path, name: Path) -> None:
        seen.append((name.name, path.stat().st_size == before.bytes, Manifest.beside(path).exists()))
        replace(aside, name)

    monkeypatch.setattr(os, "replace", moved)
    write(path, noise(5, 8, 8, 3))
    assert seen == [("a.beton", True, False), (Manifest.beside(path).name, False, False)]
