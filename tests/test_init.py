"""A run may begin with the weights of another: once, on every process, and only where they fit."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Command, final_state, fingerprint
from test_study import make, without_sampler

from ebm.train.checkpoint import Checkpoints
from ebm.train.metrics import read

STILL = "rate.peak=1e-30"  # a step of that size leaves every parameter as it is


@pytest.fixture(scope="module")
def before(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose average is not its model."""
    run = tmp_path_factory.mktemp("before") / "run"
    command("train", *tiny, f"run={run}", "budget.images=32")
    return run


def parameters(run: Path, part: str) -> dict[str, torch.Tensor]:
    state = final_state(run)
    return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_begins_with_the_average_of_another(
    processes: int, before: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    command("train", *tiny, f"run={tmp_path}/run", f"init={before}", "seed=5", "budget.images=8", STILL, processes=processes)
    average, model = parameters(before, ".averages.0."), parameters(before, ".model.")
    assert any(not torch.equal(average[name], model[name]) for name in model)
    for part in (".model.", ".averages.0."):
        begun = parameters(tmp_path / "run", part)
        assert begun.keys() == average.keys()
        assert all(torch.equal(begun[name], average[name]) for name in average), part
    newest = Checkpoints(before / "checkpoints", keep=1).newest()
    assert newest is not None
    (start,) = (record for record in read(tmp_path / "run" / "metrics.jsonl") if record["event"] == "start")
    assert start["init"] == newest.name


def test_a_run_that_goes_on_does_not_ask_for_what_it_began_with(
    before: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    other = shutil.copytree(before, tmp_path / "other")
    asked = [*tiny, f"init={other}"]
    command("train", *asked, f"run={tmp_path}/whole", "budget.images=40")
    command("train", *asked, f"run={tmp_path}/run", "budget.images=16")
    shutil.rmtree(other)
    command("train", *asked, f"run={tmp_path}/run", "budget.images=40")
    assert fingerprint(final_state(tmp_path / "run")) == fingerprint(final_state(tmp_path / "whole"))
    begun = [record.get("init") for record in read(tmp_path / "run" / "metrics.jsonl") if record["event"] == "start"]
    assert begun[1:] == [None] and begun[0]
    done = command("train", *tiny, f"run={tmp_path}/run", "budget.images=48", check=False)
    assert f"init: '{other}' -> None" in done.stderr, "it was resumed as another run"


BAD = {
    "": ("init: '' is not accepted; it must be a path", []),
    "3": ("init: 3 is not accepted; it must be a string", []),
    "EMPTY": ("init: EMPTY holds no config.yaml; give the folder of a trained run", []),
    "YOUNG": ("init: YOUNG holds no checkpoint; give the folder of a run that has saved one", []),
    "BEFORE": ("init: BEFORE is a run of another model: model.network.width: 8 -> 16", ["model.network.width=16"]),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_a_run_can_t_begin_with_is_refused(
    bad: str, before: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    for name in ("EMPTY", "YOUNG"):
        (tmp_path / name).mkdir()
    shutil.copy(before / "config.yaml", tmp_path / "YOUNG")
    said, more = BAD[bad]
    places = {"EMPTY": str(tmp_path / "EMPTY"), "YOUNG": str(tmp_path / "YOUNG"), "BEFORE": str(before)}
    for name, place in places.items():
        said = said.replace(name, place)
    asked = [*tiny, f"init={places.get(bad, bad)}", *more]
    done = command("train", *asked, f"run={tmp_path}/run", check=False)
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
    assert not (tmp_path / "run").exists(), "something was written before the refusal"
    with pytest.raises(ValueError, match=r"^init: ") as refused:
        make([without_sampler(asked)], tmp_path)
    assert str(refused.value) == said


def test_an_energy_may_begin_with_a_score(tiny: list[str], command: Command, tmp_path: Path) -> None:
    small = [*(one for one in tiny if not one.startswith("model")), "model.network.width=16", "model.network.blocks=1"]
    command("train", *small, "model=unet_score", f"run={tmp_path}/score", "budget.images=8")
    command("train", *small, "model=unet", f"init={tmp_path}/score", f"run={tmp_path}/energy", "budget.images=8", STILL)
    score, energy = parameters(tmp_path / "score", ".averages.0."), parameters(tmp_path / "energy", ".model.")
    torch.testing.assert_close(energy, score, rtol=0, atol=1e-20)  # some are zero, and moved by that step
    assert make([[*without_sampler(small), "model=unet", f"init={tmp_path}/score"]], tmp_path)
