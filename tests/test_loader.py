"""Batches are a function of (seed, step): whatever reads them, wherever they start, however many share them."""
from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor

import ebm.data.loader
from ebm.data import Dataset, to_float, to_uint8
from ebm.data.beton import write_beton
from ebm.data.order import batch_indices, local_rows, steps_per_epoch
from ebm.data.stream import ffcv_batches, guarded, uses_ffcv

COUNT, BATCH = 50, 8  # 6 steps an epoch, 2 images left over
needs_ffcv = [
    pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed"),
    # FFCV builds its code from syntax-tree classes that newer Pythons call deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 7, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "a.beton"
    write_beton(path, iter(PIXELS), source="test", count=COUNT, progress=False)
    return Dataset.open(path)


@pytest.fixture
def no_ffcv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    uses_ffcv.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "ffcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    yield
    uses_ffcv.cache_clear()


def take(dataset: Dataset, steps: int, *, start: int = 0, rank: int = 0, world: int = 1, resident: bool = False,
         flip: bool = True, loader: str = "auto") -> Tensor:
    """(steps, batch / world, 3, H, W)."""
    stream = dataset.batches(batch=BATCH, seed=3, start=start, rank=rank, world=world, device="cpu", flip=flip,
                             resident_bytes=10**9 if resident else 0, workers=1, timeout=60, ffcv=uses_ffcv(loader))
    return torch.stack(list(islice(stream, steps)))


def expected(start: int, steps: int) -> Tensor:
    """Unflipped batches straight from the source."""
    rows = [batch_indices(count=COUNT, batch=BATCH, seed=3, step=step) for step in range(start, start + steps)]
    return to_float(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)[torch.stack(rows)])


def test_an_epoch_shows_each_image_at_most_once_in_an_order_of_its_own() -> None:
    def epoch(number: int, seed: int, batch: int) -> Tensor:
        steps = steps_per_epoch(count=COUNT, batch=batch)
        return torch.cat([batch_indices(count=COUNT, batch=batch, seed=seed, step=number * steps + i)
                          for i in range(steps)])

    assert len(epoch(0, 0, BATCH).unique()) == 48
    assert epoch(0, 0, 10).sort().values.equal(torch.arange(COUNT))  # 10 divides 50: a whole permutation
    orders = [epoch(0, 0, BATCH), epoch(1, 0, BATCH), epoch(0, 1, BATCH)]
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_shares_tile_the_batch() -> None:
    rows = list(range(12))
    for world in (1, 2, 3, 4, 6, 12):
        assert [row for rank in range(world) for row in rows[local_rows(12, rank, world)]] == rows


def test_an_impossible_batch_is_refused_at_once(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"^batch: 9 .*2 processes"):
        local_rows(9, 0, 2)
    with pytest.raises(ValueError, match=r"^rank: 2"):
        local_rows(8, 2, 2)
    for field, value in (("batch", COUNT + 1), ("batch", 0), ("start", -1), ("workers", 0)):
        options = {"batch": BATCH, "start": 0, "workers": 1, field: value}
        with pytest.raises(ValueError, match=f"^{field}: {value}"):
            dataset.batches(seed=0, rank=0, world=1, device="cpu", flip=False, resident_bytes=0, timeout=1, ffcv=False,
                            **options)


@pytest.mark.usefixtures("no_ffcv")
class TestWithoutFFCV:
    @pytest.mark.filterwarnings("always:FFCV cannot be imported")
    def test_batches_are_the_source_s_and_one_warning_says_what_is_missing(
        self, dataset: Dataset, recwarn: pytest.WarningsRecorder
    ) -> None:
        for resident in (True, False):
            assert take(dataset, 14, start=4, resident=resident, flip=False).equal(expected(4, 14))
        (said,) = recwarn.list
        assert "libturbojpeg0-dev" in str(said.message)

    @pytest.mark.filterwarnings("ignore:FFCV cannot be imported")
    def test_flips_are_fair_and_the_same_for_any_world(self, dataset: Dataset) -> None:
        plain, batches = expected(0, 60), take(dataset, 60, resident=True)
        mirrored = (batches == plain.flip(-1)).flatten(2).all(2)
        assert ((batches == plain).flatten(2).all(2) ^ mirrored).all()
        assert 0.4 < mirrored.float().mean() < 0.6  # 480 coins: four standard deviations are 0.09
        assert batches.equal(take(dataset, 60))
        for resident in (True, False):
            shares = [take(dataset, 60, rank=rank, world=4, resident=resident) for rank in range(4)]
            assert torch.cat(shares, 1).equal(batches)
        assert take(dataset, 8, start=9).equal(batches[9:17])


    def test_who_does_without_it_is_not_warned(self, dataset: Dataset, recwarn: pytest.WarningsRecorder) -> None:
        assert take(dataset, 8, flip=False, loader="plain").equal(expected(0, 8))
        assert not recwarn.list

    def test_who_asks_for_it_is_told_what_is_missing(self) -> None:
        with pytest.raises(ValueError, match=r"^loader: 'ffcv' is not accepted; FFCV cannot be imported.*libturbojpeg0-dev"):
            uses_ffcv("ffcv")


def test_no_other_loader_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"^loader: 'quick' is not accepted; choose auto, ffcv or plain$"):
        uses_ffcv("quick")


class TestFFCV:
    pytestmark = needs_ffcv

    @pytest.mark.parametrize("resident", [True, False])
    def test_a_plain_loop_reads_the_same_batches(self, resident: bool, dataset: Dataset) -> None:
        assert take(dataset, 8, start=4, resident=resident, loader="plain").equal(
            take(dataset, 8, start=4, resident=resident, loader="ffcv"))

    def test_its_import_compiles_nothing(self) -> None:
        code = ("from numba.core import event; from ebm.data.stream import import_ffcv\n"
                "with event.install_recorder('numba:compile') as compiled: assert not import_ffcv()\n"
                "from numba import typed; print(len(compiled.buffer), typed.Dict is dict)")
        done = subprocess.run([sys.executable, "-Wignore", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.split() == ["0", "False"]

    def test_streams_the_same_batches_across_epochs(self, dataset: Dataset) -> None:
        threads, drawn = torch.get_num_threads(), np.random.get_state()[2]
        assert take(dataset, 14, flip=False).equal(expected(0, 14))
        assert torch.get_num_threads() == threads
        assert np.random.get_state()[2] == drawn

    def test_shares_from_the_middle_of_an_epoch_are_the_resident_batches(self, dataset: Dataset) -> None:
        shares = [take(dataset, 9, start=4, rank=rank, world=2) for rank in range(2)]
        assert torch.cat(shares, 1).equal(take(dataset, 9, start=4, resident=True))

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 6])  # near an epoch's end FFCV's thread waits for room without a limit
    def test_its_threads_end_with_the_iterator(self, count: int, dataset: Dataset) -> None:
        before = set(threading.enumerate())
        take(dataset, count)
        until = time.monotonic() + 30
        while set(threading.enumerate()) - before and time.monotonic() < until:
            time.sleep(0.05)
        assert not set(threading.enumerate()) - before

    def test_ffcv_s_thread_ends_where_it_waits_to_say_that_the_epoch_has(self, dataset: Dataset) -> None:
        before = set(threading.enumerate())
        batches = ffcv_batches(dataset.path, [np.arange(48)], batch=8, workers=1, device=torch.device("cpu"))
        for _ in range(3):
            next(batches)
        time.sleep(1.0)  # the other three fill FFCV's queue, and it has no place for its last word
        batches.close()  # type: ignore[attr-defined]
        assert not set(threading.enumerate()) - before


def test_a_hanging_pipeline_becomes_a_time_out(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hangs(*_: object, **__: object) -> Iterator[Tensor]:
        yield torch.from_numpy(PIXELS[:BATCH])
        released.wait()

    monkeypatch.setattr(ebm.data.loader, "ffcv_batches", hangs)
    stream = dataset.batches(batch=BATCH, seed=0, start=0, rank=0, world=1, device="cpu", flip=False, resident_bytes=0,
                             workers=1, timeout=0.2, ffcv=True)
    next(stream)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"a.beton: no batch for 0.2 seconds"):
        next(stream)
    assert time.monotonic() - begun < 5
    released.set()


def test_the_guard_passes_items_and_errors_on() -> None:
    def breaks() -> Iterator[int]:
        yield from range(5)
        raise OSError("disk gone")

    stream = guarded(breaks(), timeout=5, path=Path("a"))
    assert list(islice(stream, 5)) == list(range(5))
    with pytest.raises(OSError, match="disk gone"):
        next(stream)
    assert list(guarded(iter("abc"), timeout=5, path=Path("a"))) == ["a", "b", "c"]


def test_pixels_go_in_and_out_unchanged() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert to_uint8(to_float(every)).equal(every)
    assert to_float(every)[[0, -1]].tolist() == [-1, 1]
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_some_images_are_from_all_over_a_file_that_is_sorted(dataset: Dataset) -> None:
    every = dataset.random_subset(COUNT)
    assert sorted(every.tolist()) == list(range(COUNT))
    assert dataset.random_subset(20).tolist() == every[:20].tolist(), "fewer are the first of more"
    assert {index // 10 for index in dataset.random_subset(20).tolist()} == set(range(5))


def test_held_out_images_are_the_source_s(dataset: Dataset) -> None:
    rows = torch.tensor([49, 0, 7])
    assert dataset.shape == (3, 7, 5)
    assert to_uint8(dataset.images(rows, device="cpu")).equal(torch.from_numpy(PIXELS)[rows].permute(0, 3, 1, 2))
    with pytest.raises(IndexError):
        dataset.images(torch.tensor([COUNT]), device="cpu")
