"""Flips and dequantisation noise: drawn anew for every seed, step and row, whatever the number of processes."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from ebm.data.loader import flipped, to_float
from ebm.data.order import local_rows
from ebm.data.quantum import QUANTUM, dequantised_batches

BATCH = 64
IMAGES = torch.randint(256, (BATCH, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def flips(seed: int, step: int, rows: slice) -> Tensor:
    """Which of the rows are mirrored, (b,)."""
    x = flipped(IMAGES[rows], seed=seed, step=step, batch=BATCH, rows=rows)
    mirrored = (x == IMAGES[rows].flip(-1)).flatten(1).all(1)
    assert ((x == IMAGES[rows]).flatten(1).all(1) ^ mirrored).all()
    return mirrored.float()


def quantum_noise(seed: int, step: int, rows: slice) -> Tensor:
    """The noise on the rows in units of a quantum, from −½ to ½, (b, C, H, W)."""
    def endless() -> Iterator[Tensor]:
        while True:
            yield to_float(IMAGES[rows])

    begun = dequantised_batches(endless(), seed=seed, start=max(0, step - 1), batch=BATCH, rows=rows)
    *_, x = islice(begun, 1 + min(step, 1))  # where a run resumes, and what it comes to from the step before
    return (x - to_float(IMAGES[rows])) / QUANTUM


@pytest.mark.parametrize("draw", [flips, quantum_noise])
def test_every_seed_step_and_row_has_its_own_draw(draw: Callable[[int, int, slice], Tensor]) -> None:
    whole = slice(0, BATCH)
    drawn = {(seed, step): draw(seed, step, whole) for seed in (0, 1) for step in (0, 1, 2)}
    for one, values in drawn.items():
        assert (draw(*one, whole) == values).all()
        assert len(values.unique(dim=0)) == (2 if values.dim() == 1 else BATCH)
        for other, more in drawn.items():
            assert one == other or (values != more).float().mean() > 0.2, f"(seed, step) = {one} draws as {other}"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("draw", [flips, quantum_noise])
def test_processes_together_draw_what_one_draws(draw: Callable[[int, int, slice], Tensor], world: int) -> None:
    for seed, step in ((0, 0), (3, 7)):
        parts = [draw(seed, step, local_rows(BATCH, rank, world)) for rank in range(world)]
        torch.testing.assert_close(torch.cat(parts), draw(seed, step, slice(0, BATCH)), rtol=0, atol=1e-3)


def test_dequantisation_noise_is_uniform_over_a_quantum() -> None:
    noise = torch.stack([quantum_noise(0, step, slice(0, BATCH)) for step in range(4)])
    assert noise.min() > -0.501 and noise.max() < 0.501
    error = 4 / noise.numel() ** 0.5
    torch.testing.assert_close(noise.mean().item(), 0.0, rtol=0, atol=error / 12**0.5)
    torch.testing.assert_close(noise.std().item(), 1 / 12**0.5, rtol=error, atol=0)
