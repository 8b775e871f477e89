"""Training written out a second time: noise, loss weights, clipping, rate and averages of every step."""
from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_trainer import BATCH, images, make_trainer
from torch.testing import assert_close

from ebm.randomness import generator
from ebm.train.budget import Budget
from ebm.train.distributed import World
from ebm.train.ema import Average, Halflife, PowerFunction
from ebm.train.rate import Cosine
from ebm.train.trainer import Trainer

STEPS, CLIP, PEAK, WARMUP = 6, 0.02, 1.0, 10


def sgd_trainer(*, seed: int = 0, steps: int = STEPS, micro_batch: int = BATCH) -> Trainer:
    """A trainer by plain gradient descent whose rate and clipping differ at every step."""
    trainer = make_trainer()
    half, rule = Halflife(images=6, rampup=10.0), PowerFunction(sigma_rel=0.1)
    return replace(trainer, averages=[Average(trainer.model, rule), Average(trainer.model, half)], seed=seed,
                   optimizer=torch.optim.SGD(trainer.model.parameters(), lr=9.0), rate=Cosine(peak=PEAK, warmup=WARMUP),
                   budget=Budget(images=steps * BATCH, batch=BATCH, micro_batch=micro_batch, clip=CLIP))


@pytest.mark.parametrize("micro_batch", [BATCH, 1])
def test_steps_are_those_of_a_loop_by_hand(micro_batch: int) -> None:
    trainer = sgd_trainer(micro_batch=micro_batch)
    model, power, half = (copy.deepcopy(trainer.model) for _ in range(3))
    gamma = trainer.averages[0].rule.gamma  # type: ignore[attr-defined]
    norms = []
    for step, x in zip(range(STEPS), images(), strict=False):
        source = generator("cpu", 0, "noise", step)
        sigma = trainer.schedule.draw(BATCH, generator=source)
        noise = torch.randn(x.shape, generator=source)
        wide = sigma.view(-1, 1, 1, 1)
        weight = (sigma.square() + 0.25) / 0.25
        residual = wide * model.score(x + wide * noise, sigma) + noise
        gradients = torch.autograd.grad((weight * residual.square().mean((1, 2, 3))).mean(), [*model.parameters()])
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        seen = (step + 1) * BATCH
        rate = PEAK * min(1, seen / WARMUP) * (1 + math.cos(math.pi * seen / (STEPS * BATCH))) / 2
        with torch.no_grad():
            for p, g, a, b in zip(model.parameters(), gradients, power.parameters(), half.parameters(), strict=True):
                p -= rate * min(1, CLIP / norms[-1]) * g
                a.lerp_(p, 1 - (1 - 1 / (step + 1)) ** (gamma + 1))
                b.lerp_(p, 1 - 0.5 ** (BATCH / 6))
    assert min(norms) < CLIP < max(norms), norms
    start = sgd_trainer().model.parameters()
    assert max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), start, strict=True)) > 1e-3
    assert trainer.fit(images())
    for found, truth in ((trainer.model, model), (trainer.averages[0].model, power), (trainer.averages[1].model, half)):
        for (name, one), other in zip(found.named_parameters(), truth.parameters(), strict=True):
            assert_close(one, other, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_another_seed_is_other_noise_at_every_step() -> None:
    x, drawn = next(images()), []
    for seed in (0, 1):
        trainer = sgd_trainer(seed=seed)
        for trainer.step in (0, 1):
            drawn.append(trainer.draw(x))
    for index, (sigma, noise) in enumerate(drawn):
        for other, more in drawn[:index]:
            assert not torch.isclose(sigma, other).any() and (noise - more).abs().mean() > 0.5


def test_a_scaled_loss_is_clipped_as_if_it_were_not() -> None:
    plain, scaled = sgd_trainer(), sgd_trainer()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain.fit(images())
    scaled.fit(images())
    for one, other in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_has_its_loss_scale() -> None:
    there, here = (make_trainer(precision="fp16") for _ in range(2))
    there.scaler.load_state_dict({**there.scaler.state_dict(), "scale": 2.0**5, "_growth_tracker": 7})
    here.restore(copy.deepcopy(there.state()))
    assert here.scaler.state_dict() == there.scaler.state_dict()
    assert here.scaler.get_scale() == 2.0**5


def test_no_step_keeps_its_graph() -> None:
    trainer = sgd_trainer(micro_batch=1)
    x = next(images())
    assert not trainer.gradients(x, *trainer.draw(x)).requires_grad, "sums over steps would hold every step's memory"
    trainer.train_step(x)
    assert not any(value.requires_grad for value in trainer.meter.sums.values())


@pytest.mark.parametrize(("asked", "stops"), [(0.0, False), (1.0, True), (3.0, True)])
def test_one_process_that_is_asked_to_stop_is_enough(asked: float, stops: bool) -> None:
    trainer = replace(make_trainer(), world=World(rank=1, size=3, device=torch.device("cpu")), budget=Budget(
        images=12, batch=3, micro_batch=1, clip=1.0))
    assert trainer.accept((0, [0.7, 0.0, asked, math.inf, 0.0])) == stops


@pytest.mark.parametrize(("seen", "steps"), [(32, 4), (33, 4), (39, 4), (40, 5), (3, 1)])
def test_a_run_sees_no_more_images_than_its_budget(seen: int, steps: int) -> None:
    assert Budget(images=seen, batch=8, micro_batch=8, clip=1.0).steps == steps


class Counted(torch.nn.Module):
    """A model inside another, as DistributedDataParallel holds it, that counts its calls."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.module(*inputs)


def test_several_processes_make_one_pass_without_an_update_before_their_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it DistributedDataParallel orders its buckets; without it a resumed run would add gradients in another order."""
    trainer, alone, seen = sgd_trainer(steps=2), sgd_trainer(steps=2), []
    monkeypatch.setattr(World, "parallel", lambda _self, model: seen.append(Counted(model)) or seen[-1])
    before: list[int] = []
    trainer.alive = lambda: before.append(seen[0].calls)
    assert trainer.fit(images()) and alone.fit(images())
    assert before == [1, 2] and seen[0].calls == 3
    for one, other in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
        if one.requires_grad:
            assert_close(one, other, rtol=1e-5, atol=1e-7)
