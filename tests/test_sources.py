"""Sources give the pixels that they say, the same every time, and refuse bad input by name."""
from __future__ import annotations

import hashlib
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebm.data.shapes import shapes
from ebm.data.sources import cifar10, folder, npz


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_shapes_depend_on_seed_and_index_alone() -> None:
    few, many, other = (np.stack(list(shapes(count=n, size=16, seed=s).images())) for n, s in ((5, 0), (70, 0), (5, 1)))
    assert many.shape == (70, 16, 16, 3)
    np.testing.assert_array_equal(few, many[:5])
    assert all((a != b).any() for a, b in zip(few, other, strict=True))
    assert len({image.tobytes() for image in many}) == 70


def test_shapes_are_the_same_bytes_on_every_machine() -> None:
    images = np.stack(list(shapes(count=64, size=32, seed=7).images()))
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "040380e1c5258884"


def test_shapes_use_the_whole_range_smoothly() -> None:
    images = np.stack(list(shapes(count=200, size=32, seed=0).images())).astype(int)
    assert images.min() < 20
    assert images.max() > 235
    assert np.median(np.abs(np.diff(images, axis=2))) < 6  # flat and soft areas, edges apart
    assert images.reshape(-1, 3).std(0).min() > 40


@pytest.mark.parametrize(("field", "value"), [("count", 0), ("size", 4), ("seed", -1)])
def test_shapes_refuse(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        shapes(**{"count": 1, "size": 8, "seed": 0, field: value})


def test_folder_passes_images_of_the_right_size_unchanged_in_order_of_path(tmp_path: Path) -> None:
    pixels = noise(3, 8, 8, 3)
    for name, image in zip(("b/0.png", "a/1.PNG", "a/0.bmp"), pixels, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    source = folder(tmp_path, size=8)
    assert source.count == 3
    np.testing.assert_array_equal(np.stack(list(source.images())), pixels[[2, 1, 0]])


def test_folder_counts_the_pictures_that_it_leaves_out(tmp_path: Path) -> None:
    for name in ("a.png", "b.gif", "c.tiff", "d.gif"):
        Image.fromarray(noise(1, 8, 8, 3)[0]).save(tmp_path / name)
    with pytest.warns(UserWarning, match=r": 2 \.gif, 1 \.tiff left out; \.bmp, \.jpeg, \.jpg, \.png, \.webp are read"):
        assert folder(tmp_path, size=8).count == 1


def test_folder_cuts_the_centre_square_and_averages_when_it_shrinks(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = noise(16, 16, 3)  # the centre; the sides are black
    Image.fromarray(wide).save(tmp_path / "wide.png")
    small = next(folder(tmp_path, size=4).images())
    assert small.shape == (4, 4, 3)
    assert abs(small.mean() - wide[:, 16:32].mean()) < 6
    np.testing.assert_array_equal(next(folder(tmp_path, size=16).images()), wide[:, 16:32])


def test_folder_makes_grey_rgb(tmp_path: Path) -> None:
    grey = noise(6, 6)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(next(folder(tmp_path, size=6).images()), np.repeat(grey[..., None], 3, -1))


def test_folder_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        folder(tmp_path / "nowhere", size=8)
    with pytest.raises(ValueError, match="holds no"):
        folder(tmp_path, size=8)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(ValueError, match=r"broken.jpg: not a readable image"):
        list(folder(tmp_path, size=8).images())
    (tmp_path / "broken.jpg").unlink()
    Image.fromarray(noise(8, 8).astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png.*more than 8 bits"):
        list(folder(tmp_path, size=8).images())


def test_npz_gives_colour_and_grey(tmp_path: Path) -> None:
    colour, grey = noise(4, 5, 6, 3), noise(4, 5, 6)
    np.savez(tmp_path / "a.npz", colour=colour, grey=grey, channel=grey[..., None])
    np.testing.assert_array_equal(np.stack(list(npz(tmp_path / "a.npz", key="colour").images())), colour)
    for key in ("grey", "channel"):
        np.testing.assert_array_equal(np.stack(list(npz(tmp_path / "a.npz", key=key).images())),
                                      np.repeat(grey[..., None], 3, -1))


def test_npz_refuses_and_lists_the_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4, 3)), y=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="has no array 'z'; it holds x, y"):
        npz(tmp_path / "a.npz", key="z")
    with pytest.raises(ValueError, match="'x' is float64"):
        npz(tmp_path / "a.npz", key="x")
    with pytest.raises(ValueError, match=r"'y' is uint8 \(3,\)"):
        npz(tmp_path / "a.npz", key="y")
    (tmp_path / "b.npz").write_text("text")
    with pytest.raises(ValueError, match=r"not an .npz file"):
        npz(tmp_path / "b.npz", key="x")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"x.npy") + 300] ^= 1
    (tmp_path / "c.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as plain:
        plain.writestr("x", b"text")
    with pytest.raises(ValueError, match=r"d\.npz: x is not an array"):
        npz(tmp_path / "d.npz", key="x")
    with pytest.raises(ValueError, match=r"c\.npz: damaged \(Bad CRC-32"):
        npz(tmp_path / "c.npz", key="x")


def made_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Four images in CIFAR-10's files and with their sums, (4, 32, 32, 3)."""
    from torchvision.datasets import CIFAR10

    planes, base = noise(4, 3, 32, 32), folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for name, content in (("data", {"data": planes.reshape(4, -1), "labels": [0] * 4}), ("meta", {"names": ["a"]})):
        (base / name).write_bytes(pickle.dumps(content))
    md5 = {name: hashlib.md5((base / name).read_bytes()).hexdigest() for name in ("data", "meta")}
    monkeypatch.setattr(CIFAR10, "train_list", [["data", md5["data"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "names", "md5": md5["meta"]})
    return planes.transpose(0, 2, 3, 1)


def test_cifar10_finds_the_folder_and_says_when_it_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no intact CIFAR-10 there"):
        next(cifar10(tmp_path, train=True, download=False).images())
    pixels, base = made_batches(tmp_path, monkeypatch), tmp_path / "cifar-10-batches-py"
    for root in (tmp_path, base):
        np.testing.assert_array_equal(np.stack(list(cifar10(root, train=True, download=False).images())), pixels)
    (base / "data").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="no intact"):
        next(cifar10(tmp_path, train=True, download=False).images())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it can be fetched."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_cifar10_is_fetched_whole_or_not_at_all(
        served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published archive's place is taken by a made one, which goes the same way: over HTTP, its MD5, its files' MD5."""
    from torchvision.datasets import CIFAR10

    there, address = served
    pixels = made_batches(tmp_path / "made", monkeypatch)
    with tarfile.open(there / CIFAR10.filename, "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    content = (there / CIFAR10.filename).read_bytes()
    monkeypatch.setattr(CIFAR10, "url", f"{address}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    home = tmp_path / "home"
    home.mkdir()
    (home / CIFAR10.filename).write_bytes(content[:100])  # what a kill has left
    np.testing.assert_array_equal(np.stack(list(cifar10(home, train=True, download=True).images())), pixels)
    (there / CIFAR10.filename).write_bytes(content[:-1] + b"x")
    with pytest.raises(FileNotFoundError, match=r"the download failed \(.*corrupted"):
        next(cifar10(tmp_path / "other", train=True, download=True).images())
    (there / CIFAR10.filename).unlink()
    with pytest.raises(FileNotFoundError, match=r"the download failed \(.*404"):
        next(cifar10(tmp_path / "third", train=True, download=True).images())
    assert not (tmp_path / "third" / "cifar-10-batches-py").exists()
