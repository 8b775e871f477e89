"""What a run says of its steps: losses by σ, where the time goes, the arithmetic of a step."""
from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ebm.energy import DirectScore, Energy, inner_product
from ebm.nets.unet import UNet
from ebm.train.ema import Average, PowerFunction
from ebm.train.meter import BANDS, Meter, by_sigma, middle
from ebm.train.work import flop_per_image, peak_of


def test_losses_are_summed_by_half_decade_of_sigma() -> None:
    sigma = torch.tensor([0.05, 0.06, 0.2, 0.9, 1.1, 1e-9, 1e9])
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    sums, counts = by_sigma(losses, sigma).tolist()
    found = {round(middle(band), 4): (total, count)
             for band, (total, count) in enumerate(zip(sums, counts, strict=True)) if count}
    assert found == {round(10**-2.75, 4): (32, 1), round(10**-1.25, 4): (3, 2), round(10**-0.75, 4): (4, 1),
                     round(10**-0.25, 4): (8, 1), round(10**0.25, 4): (16, 1), round(10**2.75, 4): (64, 1)}
    assert len(sums) == BANDS


def test_waiting_for_images_is_told_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow() -> Iterator[torch.Tensor]:
        for _ in range(3):
            passes(2)
            yield torch.zeros(1)

    meter = Meter()
    meter.begin()
    for _ in meter.read(slow()):
        passes(0.5)
        meter.add(steps=torch.ones(()))
        with meter.away():
            passes(10)
    assert meter.take() == ({"steps": 3}, 7.5, 6)
    assert meter.take() == ({}, 0, 0)
    passes(1)
    with meter.away():
        passes(10)
        assert meter.take()[1] == 11, "what is under way counts with the steps until it is over"
        passes(5)
    passes(1)
    assert meter.take()[1] == 1, "what began before the last reading was taken off twice"


def network() -> UNet:
    return UNet(channels=3, width=16, multipliers=[1], blocks=1, attention=[], patch=1)


def test_an_energys_step_is_twice_a_scores_arithmetic() -> None:
    score = flop_per_image(DirectScore(network(), sigma_data=0.5), (3, 8, 8))
    assert flop_per_image(Energy(network(), inner_product, sigma_data=0.5), (3, 8, 8)) == 2 * score


def test_arithmetic_is_that_of_a_convolution() -> None:
    class One(nn.Conv2d):
        def forward(self, y: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(y)

    model = DirectScore(One(3, 5, 3, padding=1), sigma_data=0.5)
    assert flop_per_image(model, (3, 8, 8)) == 3 * 2 * (3 * 3 * 3) * 5 * 8 * 8


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12),
    ("NVIDIA L40", None), ("NVIDIA RTX A1000", None), ("NVIDIA T400 4GB", None)])
def test_a_gpus_peak_goes_by_its_whole_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda", 0), precision="bf16") == peak
    assert peak_of(torch.device("cuda", 0), precision="fp32") is None


def test_nothing_is_claimed_of_a_device_that_is_not_known() -> None:
    assert peak_of(torch.device("cpu"), precision="bf16") is None


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_averages_distance_is_relative(factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    average = Average(model, PowerFunction(sigma_rel=0.1))
    with torch.no_grad():
        for parameter in average.model.parameters():
            parameter.mul_(factor)
    assert_close(average.distance(model), 1 - factor)
