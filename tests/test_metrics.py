"""Metrics outlive kills and resumes; random streams and batches depend on what they are said to depend on, no more."""
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ebm.randomness import generator, image_generators, normal_like, seed_of, uniform
from ebm.sampling import batches_of, draw
from ebm.train.metrics import Metrics, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def timeless(path: Path) -> list[dict[str, Any]]:
    """The records without their times, which must be now."""
    records = list(read(path))
    assert all(abs(record.pop("time") - time.time()) < 60 for record in records)
    return records


def test_records_are_read_as_they_were_written(path: Path) -> None:
    metrics = Metrics(path)
    metrics.write("train", step=1, loss=0.1 + 0.2)
    Metrics(path).write("save", step=2, file="a\nb\u2028é")
    assert timeless(path) == [
        {"event": "train", "step": 1, "loss": 0.1 + 0.2},
        {"event": "save", "step": 2, "file": "a\nb\u2028é"},
    ]


def test_numbers_that_are_not_finite_are_written_as_json(path: Path) -> None:
    Metrics(path).write("train", step=1, loss=float("nan"), grad_norm=float("inf"))
    assert "NaN" not in path.read_text()
    assert timeless(path) == [{"event": "train", "step": 1, "loss": None, "grad_norm": None}]


def test_no_file_has_no_records(path: Path) -> None:
    assert list(read(path)) == []


def test_unwritable_place_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        Metrics(tmp_path / "missing" / "metrics.jsonl").write("train", step=1)


@pytest.mark.parametrize("lost", range(1, 30, 4))
def test_half_written_line_is_passed_over(path: Path, lost: int) -> None:
    metrics = Metrics(path)
    for step in (1, 2):
        metrics.write("train", step=step, loss=0.5)
    path.write_bytes(path.read_bytes()[: -1 - lost])  # a kill in the middle of the second line
    assert [record["step"] for record in read(path)] == [1]
    metrics.cut(5)  # what resuming does
    metrics.write("train", step=2, loss=0.25)
    assert [(record["step"], record["loss"]) for record in read(path)] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("line", ["3", "null", '["train"]', ""])
def test_line_that_is_no_record_is_passed_over(path: Path, line: str) -> None:
    path.write_text(line + "\n")
    Metrics(path).write("train", step=1)
    assert timeless(path) == [{"event": "train", "step": 1}]


def test_cut_drops_what_comes_after_the_step_and_keeps_what_has_none(path: Path) -> None:
    metrics = Metrics(path)
    metrics.write("start", seed=7)
    for step in (10, 20, 30):
        metrics.write("train", step=step)
        metrics.write("save", step=step)
    metrics.cut(20)
    assert [(record["event"], record.get("step")) for record in read(path)] == [
        ("start", None), ("train", 10), ("save", 10), ("train", 20), ("save", 20)
    ]  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_seed_of_a_key_never_changes() -> None:
    # BLAKE2b of "(0, 'noise', 1)": a change here changes every run that has been recorded
    assert seed_of(0, "noise", 1) == 2376061928063757211
    assert all(0 <= seed_of(number) < 2**63 for number in range(100))


def test_seeds_of_different_keys_differ() -> None:
    keys = [(0, "noise", 1), (0, "noise", 2), (1, "noise", 1), (0, "level", 1), (0, "noise"), (0, "noise", "1"), (0, "noise1")]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_generator_depends_on_its_key_alone() -> None:
    first = torch.rand(5, generator=generator("cpu", 3, "a"))
    torch.rand(100)
    assert_close(torch.rand(5, generator=generator("cpu", 3, "a")), first, rtol=0, atol=0)
    assert not torch.equal(torch.rand(5, generator=generator("cpu", 3, "b")), first)


def test_image_has_its_noise_in_any_batch() -> None:
    def noise(*indices: int) -> tuple[Tensor, Tensor]:
        generators = image_generators("cpu", 7, indices)
        return normal_like(torch.empty(len(indices), 2, 3, 3, dtype=torch.float64), generators), uniform(generators)

    normals, uniforms = noise(0, 1, 2, 3, 4)
    assert normals.dtype == torch.float64
    for index in (4, 0, 2):
        alone, number = noise(index)
        assert_close(alone[0], normals[index], rtol=0, atol=0)
        assert_close(number[0], uniforms[index], rtol=0, atol=0)
    assert_close(noise(3, 1)[0], normals[[3, 1]], rtol=0, atol=0)
    assert len({float(number) for number in uniforms}) == 5
    assert not torch.equal(normals[0], normals[1])


def test_image_noise_is_standard_normal_and_its_uniform_number_uniform() -> None:
    generators = image_generators("cpu", 1, range(2000))
    normals = normal_like(torch.empty(2000, 1, 2, 2), generators)
    numbers = uniform(generators)
    # five standard errors
    assert_close(normals.mean(0), torch.zeros(1, 2, 2), rtol=0, atol=5 / 2000**0.5)
    assert_close(normals.var(0), torch.ones(1, 2, 2), rtol=0, atol=5 * (2 / 2000) ** 0.5)
    assert_close(numbers.mean().item(), 0.5, rtol=0, atol=5 * (1 / 24000) ** 0.5)
    assert ((numbers >= 0) & (numbers < 1)).all()


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (10, 3), (12, 4), (5, 100), (64, 1)])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_batches_are_cut_alike_for_any_number_of_processes(count: int, batch: int, world: int) -> None:
    alone = batches_of(count, batch=batch, rank=0, world=1)
    assert [index for part in alone for index in part] == list(range(count))
    assert all(len(part) == batch for part in alone[:-1])
    shares = [batches_of(count, batch=batch, rank=rank, world=world) for rank in range(world)]
    assert sorted((part for share in shares for part in share), key=lambda part: part.start) == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("count", "batch", "field"), [(0, 1, "n"), (-1, 1, "n"), (1, 0, "batch"), (1, -2, "batch")])
def test_bad_counts_are_named(count: int, batch: int, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        batches_of(count, batch=batch, rank=0, world=1)


def test_a_sampler_that_takes_no_step_is_refused() -> None:
    def nothing(model: nn.Module, noise: Tensor, *, generators: list[torch.Generator]) -> Iterator[object]:
        return iter(())

    with pytest.raises(ValueError, match="sampler"):
        draw(nn.Identity(), nothing, shape=(1, 2, 2), indices=[0], seed=0, device=torch.device("cpu"))
