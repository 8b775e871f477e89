"""What an image costs: the arithmetic of joules on a counter made up for it, and passes counted through real samplers."""
from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measured import CPU, Energy, Score, work
from omegaconf import OmegaConf
from torch import Tensor

from ebm.evaluate import power
from ebm.evaluate.power import Usage, gpu_counter, joule_counter, measure_usage, total
from ebm.graph import NotRecordableError
from ebm.model import has_energy
from ebm.samplers.annealed import annealed_langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.samplers.ode import heun
from ebm.schedule import Karras
from launch.config.settings import sampling_graph
from launch.drawing.batches import Drawn, batch_file, compute_batches, draw_batch
from launch.drawing.recorded import recorded
from launch.drawing.sampling import draw_batches
from launch.evaluate import evaluate
from launch.job.faults import Refused
from launch.metrics.cost import Cost, per_image
from launch.metrics.evaluation import Work

GRID = Karras(sigma_min=0.02, sigma_max=5, rho=7)
HEUN = partial(heun, grid=GRID, steps=4, churn=0, churn_min=0, churn_max=50, churn_noise=1)
ANNEALED = partial(annealed_langevin, grid=GRID, steps=3, steps_per_level=5, step_scale=0.1, denoise=True)
METROPOLIS = partial(metropolis_annealed, grid=GRID, steps=3, steps_per_level=5, step_scale=0.1, denoise=True)


class Board:
    """NVML's module as far as it is called here, with a counter that is told what to show."""

    class NVMLError(Exception):
        pass

    def __init__(self, *millijoules: int | None, uuid: str = "GPU-1") -> None:
        self.shown, self.uuid = list(millijoules), uuid

    def nvmlInit(self) -> None:  # noqa: N802  (NVML's names)
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != self.uuid:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == self.uuid
        value = self.shown.pop(0)
        if value is None:
            raise self.NVMLError("Not Supported")
        return value


def test_joules_are_the_counters_difference_in_thousandths() -> None:
    counter, reason = gpu_counter(Board(999, 5_000, 12_500), "GPU-1")  # the first is asked whether it tells at all
    assert not reason
    with measure_usage(CPU, counter) as spent:
        time.sleep(0.02)
    assert spent.joules == 7.5
    assert 0.02 <= spent.seconds < 2


@pytest.mark.parametrize(("board", "words"), [
    (Board(None), "Not Supported"), (Board(1, uuid="GPU-2"), "Not Found")], ids=["too old", "not this one"])
def test_a_gpu_that_does_not_tell(board: Board, words: str) -> None:
    counter, reason = gpu_counter(board, "GPU-1")
    assert reason == f"the GPU reports no energy ({words})"
    with measure_usage(CPU, counter) as spent:
        pass
    assert spent.joules is None


def test_a_counter_that_stops_telling_tells_nothing() -> None:
    counter, _ = gpu_counter(Board(0, 1_000, None), "GPU-1")
    with measure_usage(CPU, counter) as spent:
        pass
    assert spent.joules is None


def test_a_cpu_and_a_missing_library_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, reason = joule_counter(CPU)
    assert counter() is None
    assert reason == "a cpu reports no energy"

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(power.importlib, "import_module", absent)
    counter, reason = joule_counter(torch.device("cuda"))
    assert counter() is None
    assert reason == "nvidia-ml-py: not installed; joules need pip install -e '.[evaluate]'"


def test_the_gpu_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power.importlib, "import_module", lambda name: Board(0, 3_000, uuid="GPU-ab"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab"))
    counter, reason = joule_counter(torch.device("cuda", 1))
    assert (counter(), reason) == (3.0, "")


def test_joules_of_several_devices_are_added_or_not_told() -> None:
    assert total([1.5, 2.0]) == 3.5
    assert total([1.5, None]) is None
    assert total([]) is None


def test_an_image_takes_its_share() -> None:
    spent = [Usage(seconds=2.0, joules=100.0), Usage(seconds=4.0, joules=140.0)]
    found = per_image(spent, 10)
    assert found == {"seconds_per_image": pytest.approx(0.3), "images_per_s": pytest.approx(10 / 3),
                     "seconds_per_image_stderr": pytest.approx(0.1), "joules_per_image": pytest.approx(12.0)}
    assert "joules_per_image" not in per_image([Usage(seconds=1.0, joules=None), *spent], 10)
    assert set(per_image(spent[:1], 10)) == {"seconds_per_image", "images_per_s", "joules_per_image"}


@pytest.mark.parametrize(("model", "sampler", "forward", "backward"), [
    (Score, HEUN, 7, 0),  # two scores for each of four steps but the last
    (Energy, HEUN, 7, 7),  # each the gradient of an energy
    (Energy, ANNEALED, 16, 16),  # 3 levels of 5, and the denoising
    (Energy, METROPOLIS, 36, 18),  # 3 levels of 1 + 5 states, each energy and score in passes of their own; the end's is kept
])
def test_passes_are_counted(model: Any, sampler: Any, forward: int, backward: int, tmp_path: Path) -> None:
    given = work(tmp_path, model(), sampler=sampler)
    drawn = drawn_in_batches(given, tmp_path / "batches")
    assert (drawn.nfe, drawn.gradients, drawn.joules) == (forward, backward, None)
    assert drawn.images.shape == (5, 3, 8, 8)
    assert not given.pipeline.model.network._forward_pre_hooks, "the counter was left on the network"


class Tape:
    """`ebm.graph.Recorded` without a GPU: from the fourth call on hooks see nothing, and results overwrite the last ones."""

    def __init__(self, work: Callable[[Tensor, Tensor], Tensor], _: Sequence[Tensor]) -> None:
        self.work, self.calls, self.graph = work, 0, None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        if self.graph is None:
            output = self.work(x, sigma)
            self.graph = output.clone() if self.calls == 4 else None
            return output if self.graph is None else self.graph
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Module, "__call__", lambda self, *inputs: self.forward(*inputs))
            return self.graph.copy_(self.work(x, sigma))


@pytest.mark.parametrize(("model", "sampler"), [(Score, HEUN), (Energy, HEUN), (Energy, ANNEALED), (Energy, METROPOLIS)])
def test_a_recorded_score_gives_the_same_images_at_the_same_cost(
    model: Any, sampler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.drawing.recorded.Recorded", Tape)
    pipeline = work(tmp_path, model(), sampler=sampler).pipeline
    fast = replace(pipeline, cuda_graph=True)
    for part in (range(3), range(3, 6), range(6, 8)):  # recorded in the first, replayed in the second, of another size
        one, other = pipeline.draw(part), fast.draw(part)
        assert torch.equal(one.pixels, other.pixels)
        assert (one.forward, one.backward) == (other.forward, other.backward)
    assert fast.recorded.replayed.forward > 0
    assert len({key[1] for key in fast.recorded.graphs}) == 1, "graphs of another size of batch hold memory"
    fast.recorded.release()
    assert not fast.recorded.graphs


@pytest.mark.parametrize(("asked", "trained", "gpu", "expected"), [
    ("auto", "auto", True, True), ("auto", "auto", False, False), ("auto", False, True, False), ("auto", None, True, True),
    (True, False, True, True), (False, True, True, False), (None, "auto", True, False)])
def test_scores_are_recorded_where_training_was(asked: Any, trained: Any, gpu: bool, expected: bool) -> None:
    cfg, run = (OmegaConf.create({} if one is None else {"cuda_graph": one}) for one in (asked, trained))
    assert sampling_graph(cfg, run, gpu=gpu) == expected


def test_graphs_are_released_when_all_is_drawn_and_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = work(tmp_path, Score(), sampler=HEUN)
    pipeline = replace(given.pipeline, cuda_graph=True)
    cfg = OmegaConf.create({"n": 5, "batch": 3, "seed": 0, "ema": 0, "sampler": {}, "out": str(tmp_path / "out")})
    monkeypatch.setattr("launch.drawing.recorded.Recorded", Tape)
    draw_batches(cfg, pipeline, given.world)
    assert pipeline.recorded.replayed.forward > 0 and not pipeline.recorded.graphs

    class Unrecordable(Tape):
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise NotRecordableError("cuda_graph: this model can't be recorded (why)")

    monkeypatch.setattr("launch.drawing.recorded.Recorded", Unrecordable)
    cfg.seed = 1
    with pytest.raises(Refused):
        draw_batches(cfg, pipeline, given.world)
    assert re.fullmatch(r"error: rank 0 on \S+: cuda_graph: this model can't be recorded \(why\) \(in a study, .*\)",
                        capsys.readouterr().err.splitlines()[-1])


def test_the_time_of_replayed_scores_is_another_figure(tmp_path: Path) -> None:
    given, metric = work(tmp_path, Score(), sampler=HEUN), Cost(warmup=0, batches=1)
    fast = replace(given, pipeline=replace(given.pipeline, cuda_graph=True))
    assert (metric.inputs(given), metric.inputs(fast)) == ([], ["cuda_graph"])


@pytest.mark.parametrize("of_samples", [True, False])
def test_metrics_are_computed_in_a_fixed_order_and_those_of_the_model_in_float32(
    of_samples: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # as `join` has it on a GPU
    given, seen = work(tmp_path, Score(), sampler=HEUN), []

    class Probe:
        def __call__(self, _: Work) -> None:
            seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32))
            raise ValueError("seen enough")

    probe = Probe()
    probe.of_samples = of_samples  # type: ignore[attr-defined]
    cfg = OmegaConf.merge(given.cfg, {"samples": "given.npz", "again": False, "n": 5, "batch": 5, "seed": 0, "sampler": {}})
    given.kept["samples"] = SimpleNamespace(subject={"sha256": "0"})  # type: ignore[assignment]
    with pytest.raises(Refused):
        evaluate(replace(given, cfg=cfg), "probe", probe, None)  # type: ignore[arg-type]
    assert seen == [(True, of_samples)]


def test_where_gradients_are_enabled_a_recorded_score_is_the_models_own() -> None:
    x, sigma = torch.ones(2, 3, 8, 8), torch.ones(2)
    subject = recorded(Energy())
    with torch.enable_grad():
        assert torch.equal(subject.score(x, sigma), Energy().score(x, sigma))
    assert not subject.graphs
    assert has_energy(subject) and not has_energy(recorded(Score()))


def test_joules_of_all_batches_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(0, 1_000, 3_000, 0, 5_000, 5_500)
    monkeypatch.setattr("launch.drawing.batches.joule_counter", lambda device: gpu_counter(board, "GPU-1"))
    given = work(tmp_path, Score(), sampler=HEUN)
    assert drawn_in_batches(given, tmp_path / "batches").joules == 2.5


def drawn_in_batches(given: Work, folder: Path) -> Drawn:
    compute_batches(folder, 5, batch=3, world=given.world, compute=lambda part: draw_batch(given.pipeline, part), label="test")
    return Drawn.read(folder, 5, batch=3)


def test_the_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = work(tmp_path, Energy(), sampler=HEUN, batch=4)
    given.kept["samples"] = SimpleNamespace(subject={"n": 20, "seconds": 1.0, "sampler": "heun"})  # type: ignore[assignment]
    metric = Cost(warmup=1, batches=3)
    metric.check(given)
    figures = metric(given)
    assert figures is not None
    json.dumps([figures.values, figures.measure, figures.details], allow_nan=False)
    assert set(figures.values) == {"nfe", "gradients", "seconds_per_image", "seconds_per_image_stderr", "images_per_s"}
    assert (figures.values["nfe"], figures.values["gradients"]) == (7, 7)
    assert figures.values["images_per_s"] == pytest.approx(1 / figures.values["seconds_per_image"])
    assert (figures.measure["device"], figures.measure["batch"], figures.measure["precision"]) == ("cpu", 4, "fp32")
    assert len(figures.details["batch_seconds"]) == 3, "a warm-up was counted"
    assert figures.details["joules"] == "not told: a cpu reports no energy"
    assert figures.details["all_samples"] == {"n": 20, "seconds": 1.0}
    board = Board(0, *(1_000 * i * i for i in range(8)))
    monkeypatch.setattr("launch.metrics.cost.joule_counter", lambda device: gpu_counter(board, "GPU-1"))
    told = metric(given)
    assert told is not None
    assert told.values["joules_per_image"] == pytest.approx((5 + 9 + 13) / 12), "the warm-up's joules were counted"
    assert "idle" in told.details["joules"]


def test_what_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    given = work(tmp_path, Score(), sampler=HEUN)
    with pytest.raises(ValueError, match=r"^batches: 0 is not accepted"):
        Cost(warmup=1, batches=0).check(given)
    cfg = given.cfg.copy()
    cfg.samples = "images.npz"
    with pytest.raises(ValueError, match=r"samples: images\.npz is not accepted by the metric cost"):
        Cost(warmup=1, batches=1).check(replace(given, cfg=cfg))


def test_seconds_and_joules_of_batches_are_added_and_the_passes_of_an_image_are_not(tmp_path: Path) -> None:
    for start, stop, seconds, joules in ((0, 3, 1.5, 4.0), (3, 5, 0.25, 1.0)):
        rows = {"images": np.full((stop - start, 3, 2, 2), start, np.uint8), "not_finite": np.array([1]), "nfe": np.array([7]),
                "gradients": np.array([5]), "seconds": np.array([seconds]), "joules": np.array([joules])}
        if start == 0:
            rows |= {"film": np.frombuffer(b"film", np.uint8), "frame_step": np.array([1]), "frame_sigma": np.array([0.5])}
        np.savez(batch_file(tmp_path, range(start, stop)), **rows)  # type: ignore[arg-type]
    found = Drawn.read(tmp_path, 5, batch=3)
    assert (found.seconds, found.joules, found.nfe, found.gradients, found.not_finite) == (1.75, 5.0, 7, 5, 2)
    assert found.images[:, 0, 0, 0].tolist() == [0, 0, 0, 3, 3]
