"""The loop itself: a step that is not finite changes nothing, mixed precision is on, every event comes when it is due."""
from __future__ import annotations

import copy
import dataclasses
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from forked import FORKED
from torch import Tensor, nn

from ebm.energy import Energy, pooled
from ebm.nets.cnn import CNN
from ebm.objective import EDM, DenoisingScoreMatching
from ebm.precision import Precision
from ebm.schedule import LogUniform
from ebm.train.budget import Budget
from ebm.train.distributed import World, join
from ebm.train.ema import Average, PowerFunction
from ebm.train.rate import Constant
from ebm.train.trainer import Event, NonFiniteError, Trainer

BATCH = 4


def make_trainer(*, steps: int = 8, precision: str = "fp32", events: list[Event] | None = None) -> Trainer:
    torch.manual_seed(0)
    model = Energy(CNN(channels=3, width=8, levels=1, sigma_aware=True), pooled, sigma_data=0.5)
    return Trainer(
        model=model, averages=[Average(model, PowerFunction(sigma_rel=0.1))],
        objective=DenoisingScoreMatching(weighting=EDM(sigma_data=0.5)), schedule=LogUniform(sigma_min=0.1, sigma_max=10.0),
        optimizer=torch.optim.Adam(model.parameters(), fused=True), rate=Constant(peak=1e-3, warmup=0),
        budget=Budget(images=steps * BATCH, batch=BATCH, micro_batch=BATCH, clip=1e9), precision=Precision(name=precision),
        seed=0, world=World(rank=0, size=1, device=torch.device("cpu")), events=events or [],
    )


def images(*, bad_from: int | None = None) -> Iterator[Tensor]:
    source = torch.Generator().manual_seed(0)
    step = 0
    while True:
        x = torch.rand(BATCH, 3, 8, 8, generator=source) * 2 - 1
        yield x if bad_from is None or step < bad_from else x.fill_(torch.nan)
        step += 1


@dataclass
class Memory:
    """An event that keeps what it saw."""

    steps: list[int] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, trainer: Trainer) -> None:
        self.steps.append(trainer.step)
        self.parameters = copy.deepcopy(trainer.model.state_dict())


@pytest.mark.parametrize("every", [BATCH, 100 * BATCH], ids=["events at each step", "no event"])
def test_a_loss_that_is_not_finite_stops_before_the_parameters_change(every: int) -> None:
    good = make_trainer(steps=3)
    good.fit(images())
    memory = Memory()
    bad = make_trainer(steps=8, events=[Event(every=every, action=memory, urgent=True)])
    with pytest.raises(NonFiniteError, match=r"step 3: the loss was not finite \(rank 0, σ from 0\.\d+ to \d"):
        bad.fit(images(bad_from=3))
    for name, value in good.model.state_dict().items():
        torch.testing.assert_close(bad.model.state_dict()[name], value, rtol=0, atol=0, msg=f"{name} changed in the bad step")
    assert memory.steps == ([1, 2, 3] if every == BATCH else []), "an event ran on a bad step"


def overflowing(model: nn.Module) -> None:
    """Makes every gradient of the first parameter infinite, and leaves the loss as it is."""
    next(model.parameters()).register_hook(lambda gradient: torch.full_like(gradient, torch.inf))


def test_a_gradient_that_is_never_finite_stops_fp16_too() -> None:
    trainer = make_trainer(steps=200, precision="fp16")
    overflowing(trainer.model)
    with pytest.raises(NonFiniteError, match="step 40: the gradient was not finite; the parameters are those before"):
        trainer.fit(images())


def test_a_gradient_that_is_not_finite_in_the_last_step_is_seen() -> None:
    trainer = make_trainer(steps=1)
    overflowing(trainer.model)
    with pytest.raises(NonFiniteError, match="step 0: the gradient was not finite"):
        trainer.fit(images())


def test_what_is_done_besides_steps_is_not_counted_as_their_time() -> None:
    seconds: list[float] = []
    pause = Event(every=BATCH, action=lambda _: time.sleep(0.5), urgent=True)
    read = Event(every=4 * BATCH, action=lambda trainer: seconds.append(trainer.meter.take()[1]), urgent=True)
    trainer = make_trainer(steps=4, events=[pause, read])
    trainer.fit(images())
    assert 0 < seconds[0] < 1.5, "four sleeps of half a second were counted as steps"


@pytest.mark.parametrize(("micro_batch", "pieces"), [(8, 1), (5, 1), (4, 2), (3, 5), (1, 5)])
def test_a_share_is_cut_into_the_fewest_equal_pieces(micro_batch: int, pieces: int) -> None:
    assert Budget(images=100, batch=20 if micro_batch != 4 else 32, micro_batch=micro_batch, clip=1.0).pieces(4) == pieces


def test_events_come_when_due_and_at_the_end() -> None:
    each, third = Memory(), Memory()
    trainer = make_trainer(steps=8, events=[Event(every=BATCH, action=each, urgent=True),
                                            Event(every=3 * BATCH, action=third, urgent=False)])
    assert trainer.fit(images())
    assert each.steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert third.steps == [3, 6, 8]


@pytest.mark.parametrize("every", [1, 1000])
def test_a_request_to_stop_is_followed_at_the_next_step_with_what_is_urgent(every: int) -> None:
    saved, drawn = Memory(), Memory()
    trainer = make_trainer(steps=100, events=[Event(every=every * BATCH, action=saved, urgent=True),
                                              Event(every=3 * BATCH, action=drawn, urgent=False)])
    trainer.stop_asked = lambda: trainer.step >= 4
    assert not trainer.fit(images())
    assert trainer.step == (5 if every == 1 else 6)  # asked in step 4 (from 0); read at once only where an event waits
    assert saved.steps[-1] == trainer.step
    assert drawn.steps == [3]


def test_a_request_to_stop_in_the_last_step_leaves_nothing_out() -> None:
    drawn = Memory()
    trainer = make_trainer(steps=8, events=[Event(every=1000 * BATCH, action=drawn, urgent=False)])
    trainer.stop_asked = lambda: trainer.step >= 7
    assert trainer.fit(images())
    assert drawn.steps == [8]


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_is_really_on(name: str, dtype: torch.dtype) -> None:
    trainer = make_trainer(steps=2, precision=name)
    seen: set[torch.dtype] = set()
    for module in trainer.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    trainer.fit(images())
    assert seen == {dtype}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_loss_scaling_is_used_in_fp16_alone_and_leaves_the_updates_alone() -> None:
    assert make_trainer(precision="fp16").scaler.get_scale() > 1
    plain = make_trainer(steps=4)
    assert plain.scaler.get_scale() == 1
    scaled = make_trainer(steps=4)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain.fit(images())
    scaled.fit(images())
    for (name, a), b in zip(plain.model.state_dict().items(), scaled.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_clipping_bounds_the_gradient() -> None:
    trainer = make_trainer(steps=1)
    trainer.budget = Budget(images=BATCH, batch=BATCH, micro_batch=BATCH, clip=1e-3)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.rate = Constant(peak=1.0, warmup=0)
    trainer.fit(images())
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, trainer.model.parameters(), strict=True)]).norm()
    assert 0.9e-3 < float(moved.detach()) < 1.001e-3


@pytest.mark.parametrize(("values", "says"), [
    ({"batch": 6}, "batch: 6 is not accepted; it must divide among 4 processes"),
    ({"clip": 0.0}, "clip: 0.0 is not accepted"),
    ({"batch": True}, "batch: True is not accepted"),
])
def test_budgets_that_do_not_divide_are_refused(values: dict[str, float], says: str) -> None:
    whole = {"images": 100, "batch": 8, "micro_batch": 8, "clip": 1.0}
    with pytest.raises(ValueError, match=says):
        Budget(**{**whole, **values}).pieces(4)  # type: ignore[arg-type]


def test_a_state_from_where_channels_were_last_is_taken_up_where_they_are_not() -> None:
    there, here, other = (make_trainer(steps=4) for _ in range(3))
    there.model.to(memory_format=torch.channels_last)
    there.optimizer = torch.optim.Adam(there.model.parameters(), fused=True)
    batches = images()
    for trainer in (there, other):
        trainer.train_step(next(batches)), trainer.train_step(next(images()))
        batches = images()
    here.restore(there.state())
    for parameter in here.parameters:
        moments = here.optimizer.state[parameter]
        assert all(moments[name].stride() == parameter.stride() for name in ("exp_avg", "exp_avg_sq"))
    for trainer in (here, other):
        trainer.step = 2
        trainer.train_step(next(images()))
    for one, two in zip(here.parameters, other.parameters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def by_hand(rank: int, size: int, port: int, folder: Path) -> None:
    """One process of a run whose steps are recorded, but for the recording; leaves its parameters in a file."""
    import ebm.train.trainer as module

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    module.Recorded = lambda work, parameters: work
    with join(device="cpu", timeout_seconds=60, peers_seconds=60) as world:
        trainer = make_trainer(steps=5)
        trainer = dataclasses.replace(trainer, world=world, cuda_graph=True,
                                      budget=Budget(images=5 * BATCH, batch=BATCH, micro_batch=1, clip=1e9))
        if rank:  # rank 0's are taken
            torch.nn.init.zeros_(trainer.parameters[0])
        share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
        assert trainer.fit(x[share] for x in images())
        assert trainer.parallel is trainer.model
        torch.save(trainer.model.state_dict(), folder / f"{size}-{rank}.pt")


def test_gradients_added_up_after_the_step_train_the_parameters_of_one_process(tmp_path: Path) -> None:
    for size in (1, 2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        processes = [FORKED.Process(target=by_hand, args=(rank, size, port, tmp_path)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * size
    one, *two = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    start = make_trainer().model.state_dict()
    for name, value in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(value, start[name], atol=1e-4) for name, value in one.items()), "nothing was trained"
