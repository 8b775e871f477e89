"""Bad input ends in one line that names the key and what is accepted, before anything is written; help helps."""
from __future__ import annotations

import contextlib
import gc
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ebm.train.events import Preview
from ebm.train.metrics import read
from ebm.train.trainer import Trainer
from launch import diagnose, entry, evaluate, sample, train
from launch.config.build import build
from launch.config.keys import flat
from launch.config.manual import CONFIGS, choices, headed, manual
from launch.config.mistakes import choice_mistake, chosen
from launch.entry import run
from launch.job.faults import Refused, record_failures
from launch.job.process import node_name

BAD = {
    "model=unett": "model=unett: no such choice; accepted: cnn, cnn_sigma, unet, unet_full",
    "schedule=": "schedule=: no such choice; accepted: cosine",
    "modle=unet": "modle: no such key; did you mean model",
    "budget.bach=4": "budget.bach: no such key; did you mean budget.batch",
    "budget.batch=-4": "budget.batch: -4 is not accepted; it must be a whole number of at least 1",
    "budget.batch=many": "budget.batch: 'many' is not accepted; it must be an integer",
    "budget.batch=1000": "budget.batch: 1000 is not accepted; it must be from 1 to the data set's 60 images",
    "budget.images=1e3": "budget.images: 1000.0 is not accepted; it must be an integer, written 1_000\n",
    "rate.warmup=1e4": "rate.warmup: 10000.0 is not accepted; it must be an integer, written 10_000\n",
    "data.sigma_data=0": "data.sigma_data: 0.0 is not accepted; it must be a positive number\n",
    "run='${foo}'": "run: ${foo} refers to a key that the config does not have\n",
    "learning_rate=0.1": "learning_rate: no such key; set rate.peak instead\n",
    "batch_size=8": "batch_size: no such key; set budget.batch instead\n",
    "epochs=8": "epochs: no such key; set budget.images instead\n",
    "schedule._target_=mine.schedule.Triangle": "schedule._target_: 'mine.schedule.Triangle' can't be imported: No module ",
    "schedule._target_=ebm.schedule.Triangle": "schedule._target_: 'ebm.schedule.Triangle' can't be imported: ebm.schedule ",
    "schedule._target_=3": "schedule._target_: 3 can't be imported: ",
    "schedule._target_=ebm.schedule": "schedule._target_: 'ebm.schedule' is not accepted; it must be a class or a function",
    "schedule._target_=ebm.train.rate.Constant": "schedule._target_: 'ebm.train.rate.Constant' is not accepted; it must be a "
                                                "class derived from ebm.schedule.NoiseSchedule\n",
    "model.head._target_=ebm.schedule.Karras": "model.head._target_: 'ebm.schedule.Karras' is not accepted; it must be a func",
    "sampler.grid._target_=ebm.objective.EDM": "sampler.grid._target_: 'ebm.objective.EDM' is not accepted; it must be a ",
    "average.rules.0._target_=ebm.objective.EDM": "average.rules.0._target_: 'ebm.objective.EDM' is not accepted; it must be ",
    "budget.images=2.5": "budget.images: 2.5 is not accepted; it must be an integer",
    "data.flip=no": "data.flip: 'no' is not accepted; it must be true or false",
    "compile=1": "compile: 1 is not accepted; it must be true or false",
    "run=/dev/null/run": f"node {node_name()}: /dev/null/run can't be written: Not a directory",
    "run=": "run: '' is not accepted; it must be a path",
    "run=null": "run: None is not accepted; it must be a string",
    "rate.peak=abc": "rate.peak: 'abc' is not accepted; it must be a number",
    "rate.peak=-1": "rate.peak: -1 is not accepted; it must be a positive number",
    "average.rules.0.sigma_rel=5": "average.rules.0.sigma_rel: 5 is not accepted",
    "schedule.sigma_min=-1": "schedule.sigma_min: -1 is not accepted; it must be a positive number",
    "schedule.sigma_max=0.001": "schedule.sigma_max: 0.001 is not accepted; it must be above sigma_min=0.002",
    "precision=fp8": "precision: 'fp8' is not accepted; choose auto, fp32, bf16, fp16",
    "channels_last=1": "channels_last: 1 is not accepted; choose auto, true or false",
    "cuda_graph=maybe": "cuda_graph: 'maybe' is not accepted; choose auto, true or false",
    "cuda_graph=true": "cuda_graph: True is not accepted; it needs a GPU and compile=false",
    "track=null": "track=null: no such choice; accepted: none, wandb",
    "schedule=[1]": "schedule=1: no such choice; accepted: cosine",
    "objective=[a]": "objective=a: no such choice; accepted: dsm, dual",
    "model=3": "model=3: no such choice; accepted: cnn, cnn_sigma,",
    "average.rules=3": "average.rules: 3 is not accepted; it must be a list, as in configs/average/",
    "hang_seconds=1e11": "hang_seconds: 100000000000.0 is not accepted; it must be at most 1000000000.0",
    "device=tpu": "device: 'tpu' is not accepted; choose auto, cuda or cpu",
    "optimizer.eps=abc": "optimizer.eps: 'abc' is not accepted; it must be a number",
    "optimizer.eps=-1": "optimizer: Invalid epsilon value",
    "optimizer.betas=[0.9]": "optimizer.betas: [0.9] is not accepted; it must be two numbers, as in [0.9,0.99]",
    "optimizer.betas=3": "optimizer.betas: 3 is not accepted; it must be two numbers",
    "optimizer.betas=[a,b]": "optimizer: {'betas': ['a', 'b'], 'eps': 1e-08, 'fused': True} is not accepted (",
    "++optimizer.lr=0.1": "optimizer.lr: 0.1 is not accepted; set rate.peak instead",
    "optimizer.lr=0.1": "optimizer.lr: no such key; set rate.peak instead\n",
    "lr=0.1": "lr: no such key; set rate.peak instead\n",
    "model.head=pooled": "model.head: 'pooled' is not accepted; select with model/head=<name>: inner_product, pooled",
    "data=beton": "data.name: no value is given, and there is no default; add data.name=<value>",
    "objective.weighting=edm": "objective.weighting: 'edm' is not accepted; select with objective/weighting=<name>: edm,",
    "sampler.grid=karras": "sampler.grid: 'karras' is not accepted; select with sampler/grid=<name>: cosine, geometric, karras",
    "timeout_seconds=inf": "timeout_seconds: inf is not accepted; it must be a finite number",
    "seed=abc": "seed: 'abc' is not accepted; it must be an integer",
    "save.keep=0": "save.keep: 0 is not accepted; it must be at least 1",
    "sampler.steps=0": "sampler.steps: 0 is not accepted",
    "sampler/grid=levels": "sampler.steps: 2 is not accepted; each of the 12 listed levels is visited once, so it must be 12",
    "sampler.grid.sigma_max=0": "sampler.grid.sigma_max: 0 is not accepted",
    "data.train=nowhere.beton": "data.train: nowhere.beton: no such data file; make it with tools/prepare_data.py",
    "data.train=null": "data.train: None is not accepted; it must be a string",
    "data.test=nowhere.beton": "data.test: nowhere.beton: no such data file; make it with tools/prepare_data.py",
    "data.test=[1]": "data.test: [1] is not accepted; it must be a string",
    "+model/head=inner_product": "model: its network turns images (3, 16, 16) into (1, 4, 4)",
    "model.network.width=-8": "model.network.width: -8 is not accepted; it must be a whole number of at least 1",
    "model.network.levels=-1": "model.network.levels: -1 is not accepted; it must be a whole number of at least 0",
    "++model.network.multipliers=2": "model.network.multipliers: no such key",
    "data.loader=quick": "data.loader: 'quick' is not accepted; choose auto, ffcv or plain",
    "seed=-1": "seed: -1 is not accepted; it must be at least 0",
    "seed=99999999999999999999": "seed: 99999999999999999999 is not accepted; it must be at most 9223372036854775807",
    "average.rules=[]": "average.rules: [] is not accepted",
}


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Entries set signal handlers and Hydra keeps global state; both are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    yield
    GlobalHydra.instance().clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("bad", BAD)
def test_bad_values_end_in_one_line(
    bad: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = bad if bad.startswith("++") else bad.removeprefix("+")
    key = given.lstrip("+").split("=")[0]
    overrides = [o for o in (*tiny, f"run={tmp_path}/run") if o.split("=")[0] != key and (key, o[:5]) != ("data", "data.")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides, given])
    with pytest.raises(SystemExit) as ended:
        run(train.main, config="train")
    error = capfd.readouterr().err
    assert ended.value.code == 2, error
    assert error.startswith(f"error: {BAD[bad]}"), error
    assert error.count("\n") == 1, error
    assert not [*tmp_path.iterdir()], "something was written before the refusal"


def test_a_run_that_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py", f"run={tmp_path}", "device=cpu"])
    with pytest.raises(SystemExit):
        run(sample.main, config="sample")
    assert capfd.readouterr().err == f"error: run: {tmp_path} holds no config.yaml; give the folder of a trained run\n"


@pytest.mark.parametrize("entry", [sample, evaluate, diagnose])
def test_a_run_that_nobody_named_is_asked_for(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = entry.__name__.removeprefix("launch.")
    monkeypatch.setattr(sys, "argv", [f"{config}.py"])
    with pytest.raises(SystemExit) as ended:
        run(entry.main, config=config)
    assert ended.value.code == 2
    assert capfd.readouterr().err == "error: run: no value is given, and there is no default; add run=<value>\n"


def test_a_grid_for_a_sampler_without_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py", f"run={tmp_path}", "sampler=langevin", "sampler/grid=karras"])
    with pytest.raises(SystemExit):
        run(sample.main, config="sample")
    assert capfd.readouterr().err == "error: sampler/grid: the chosen sampler has no such part\n"


@pytest.mark.parametrize(("config", "main"), [("train", train.main), ("sample", sample.main)])
def test_help_names_choices_and_keys(
    config: str, main: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{config}.py", "--help"])
    run(main, config=config)  # type: ignore[arg-type]
    text = capfd.readouterr().out
    for word in ("dpmpp", "steps: 18", f"launch/{config}.py"):
        assert word in text, f"--help doesn't say {word}"


def test_help_tells_of_what_is_chosen_and_accepted_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py", "sampler=annealed", "--help"])
    run(sample.main, config="sample")
    text = capfd.readouterr().out
    for word in ("n: 64", "steps_per_level: 5", "in units of σ²", "(settings: sampler.grid.*)", "(annealed)"):
        assert word in text, f"--help doesn't say {word}"
    assert "model=" not in text, "a group that sampling refuses"


@pytest.mark.parametrize(("config", "choice"), [
    *(("train", f"{group}={choice}") for group in (
        "model", "model/network", "schedule", "sampler", "sampler/grid", "objective", "average", "experiment", "data")
      for choice in choices(group)),
    *(("sample", f"task={choice}") for choice in choices("task")),
    ("evaluate", "extractor=torchscript"), ("diagnose", "sampler=heun")])
def test_help_has_every_key(config: str, choice: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        made = OmegaConf.to_container(compose(config, [choice]), resolve=False)
    text = manual(config, chosen(config, [choice]), "")
    for key in flat(made):
        last = key.rpartition(".")[2]
        assert last == "_partial_" or re.search(rf"\b{last}:", text), key


@pytest.mark.parametrize("choice", choices("cluster"))
def test_help_of_a_study_has_every_key_of_a_cluster(choice: str) -> None:
    text = "\n".join(headed("cluster", choice))
    for key in OmegaConf.load(CONFIGS / "cluster" / "site.yaml") if choice != "here" else ():
        assert f"\n  {key}: " in text
    assert text.startswith(f"cluster={choice} (settings: hydra.launcher.*)\n")


def test_a_list_is_called_one() -> None:
    settings = OmegaConf.create({"_target_": "ebm.nets.unet.UNet", "channels": 3, "width": 8, "multipliers": 2})
    with pytest.raises(ValueError, match=r"^network\.multipliers: 2 is not accepted; .* a list of integers, as in \[1,2\]$"):
        build(settings, key="network")


def test_an_object_that_no_group_offers_is_asked_for_by_its_target() -> None:
    settings = OmegaConf.create({"_target_": "ebm.energy.DirectScore", "network": None, "sigma_data": 0.5})
    with pytest.raises(ValueError, match=r"^score\.network: None is not accepted; it must have a _target_ that builds Module$"):
        build(settings, key="score")


@pytest.mark.parametrize(("source", "said"), [
    ("import nowhere", "No module named 'nowhere'"), ("1 / 0", "ZeroDivisionError: division by zero")])
def test_a_users_module_that_can_t_be_imported_says_why(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"mine_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=rf"^schedule\._target_: '{module}\.Triangle' can't be imported: {said}$"):
        build(OmegaConf.create({"_target_": f"{module}.Triangle"}), key="schedule")


def test_a_target_without_types_takes_what_it_is_given() -> None:
    node = OmegaConf.create({"_target_": "textwrap.indent", "text": "a", "prefix": "b", "predicate": None})
    assert build(node, key="model") == "ba"


@pytest.mark.parametrize(("arguments", "said"), [
    (["task=inpaint"],
     "task: not a group of this config; groups: average, data, experiment, model, model/head, model/network, "),
    (["experiment=journy/noise"], "experiment=journy/noise: no such choice; accepted: dual, energy_vs_score/inner_product, "),
    (["--batch", "64"], "--batch: no such flag; a setting is written key=value, as in seed=1, and --help lists them\n"),
    (["budget.batch", "64"], "budget.batch: can't be parsed; a setting is written key=value, a list as key=[1,2]\n"),
    (["model=cnn,"], "model=cnn,: can't be parsed; a setting is written key=value, a list as key=[1,2]\n"),
    (["=3"], "=3: names no key; a setting is written key=value, as in seed=1, and --help lists them\n"),
    (["run=runs/my run é"], "run=runs/my run é: can't be parsed; a setting is written key=value, a list as key=[1,2], a text "
                            "with special characters as \"run='runs/my run é'\"\n"),
    (["data=mine/train.beton"], "data=mine/train.beton: no such choice; accepted: beton, cifar10, shapes; for images of your "
                                "own: data=beton data.name=<name> data.train=mine/train.beton\n"),
    (["data=/mine"], "data=/mine: no such choice; accepted: beton, cifar10, shapes; for images of your own: data=beton "),
    (["schedule=lognormal,karras"], "schedule=lognormal,karras: train.py takes one value for each key; for a study of several: "
                                    "python launch/sweep.py -m schedule=lognormal,karras\n"),
    (["~rate"], "~rate: a group can't be removed; choose rate=<name>: constant, cosine, inverse_sqrt\n"),
    (["~rate.peak"], "~rate.peak: a setting can't be removed; give it a value, as in rate.peak=<value>\n"),
    (["+sampler/grid={_target_:x}"], "sampler/grid={_target_:x}: no such choice; accepted: cosine, geometric, karras, "),
    (["++model/network={a:1}"], "model/network={a:1}: no such choice; accepted: unet, unet_full\n"),
    (["+foo/bar=1"], "foo/bar: not a group of this config; groups: average, data, experiment, model, model/head, model/netw"),
    (["+sead=3"], "sead: no such key; did you mean seed"),
    (["+save.evry=3"], "save.evry: no such key; did you mean save.every"),
    (["+optimizer2.lr=3"], "optimizer2.lr: no such key"),
    (["+schedul@schedule=single"], "schedul: no such key; did you mean schedule"),
    (["save={evry: 3}"], "save.evry: no such key; did you mean save.every"),
    (["schedule=single", "schedule.sigma_min=1"], "schedule.sigma_min: no such key of the chosen schedule\n"),
    (["-m", "seed=0,1"], "-m: train.py takes one value for each key; for a study of several: python launch/sweep.py -m\n"),
])
def test_what_is_no_setting_is_answered_with_what_is(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(train.main, config="train")
    error = capfd.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_another_config_for_the_same_run_is_refused(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for extra in ("seed=0", "seed=1"):
        asked = [*tiny, f"run={tmp_path}", "budget.images=16", extra]
        monkeypatch.setattr(sys, "argv", ["train.py", *asked])
        if extra == "seed=0":
            run(train.main, config="train")
        else:
            with pytest.raises(SystemExit):
                run(train.main, config="train")
    error = capfd.readouterr().err
    assert "holds a checkpoint of another config: seed: 0 -> 1" in error
    begun = shlex.join(["python", "launch/train.py", *asked[:-1], "seed=0"])
    assert error.endswith(f"; it was last started with: {begun}\n"), "the overrides that were forgotten aren't to be had"
    assert not (tmp_path / "failure.json").exists(), "the run has not failed: a command line was refused"


def test_a_group_may_be_given_values_in_place_of_a_choice() -> None:
    assert choice_mistake(["model={network: {width: 8}}", "model=cnn,unet", "~experiment", "seed=1"]) == ""


@pytest.mark.parametrize(("code", "study", "left"), [
    (2, "", False), (2, "EBM_JOB", True), (2, "EBM_STUDY", True), (1, "", True)])
def test_a_refusal_is_written_down_where_nobody_reads_the_line(
    code: int, study: str, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EBM_JOB", "EBM_STUDY"):
        monkeypatch.delenv(name, raising=False)
    if study:
        monkeypatch.setenv(study, str(tmp_path))
    with pytest.raises(Refused), record_failures(tmp_path):
        raise Refused(code, "no")
    assert (tmp_path / "failure.json").exists() == left


@pytest.mark.parametrize("before", ["fp32", "bf16"])
def test_a_run_that_goes_on_elsewhere_keeps_the_precision_it_was_begun_in(
    before: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [one for one in tiny if not one.startswith("precision=")]
    for images, precision in ((16, before), (24, "auto")):
        mine = [f"run={tmp_path}", f"budget.images={images}", f"precision={precision}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *asked, *mine])
        run(train.main, config="train")
    assert f"precision: {before}\n" in (tmp_path / "config.yaml").read_text()


def test_what_a_kill_takes_of_the_last_step_is_done_again(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], Preview.__call__

    def killed(self: Preview, trainer: Trainer) -> None:
        drawn.append(trainer.step)
        if len(drawn) == 1:
            raise SystemExit(137)
        draw(self, trainer)

    monkeypatch.setattr(Preview, "__call__", killed)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["train.py", *tiny, f"run={tmp_path}", "budget.images=16"])
        with pytest.raises(SystemExit) if not drawn else contextlib.nullcontext():
            run(train.main, config="train")
    assert drawn == [2, 2], "the last step's picture was not drawn again"
    events = [record["event"] for record in read(tmp_path / "metrics.jsonl")]
    assert "preview" in events and events[-1] == "end"
    (tmp_path / "metrics.jsonl").write_text("".join(
        line for line in (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True) if '"event": "end"' not in line))
    run(train.main, config="train")  # killed before its last word
    assert [record["event"] for record in read(tmp_path / "metrics.jsonl")] == events


def test_fewer_images_than_a_run_has_seen_are_refused(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for images, batch in ((24, 8), (24, 8), (16, 8), (16, 16)):
        asked = [f"run={tmp_path}", f"budget.images={images}", f"budget.batch={batch}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *tiny, *asked])
        with pytest.raises(SystemExit) if images == 16 else contextlib.nullcontext():
            run(train.main, config="train")
    fewer, other = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert fewer.startswith(f"error: budget.images: 16 is not accepted; {tmp_path} has seen 24 already")
    assert "holds a checkpoint of another config: budget.batch: 8 -> 16" in other
    assert "images: 24" in (tmp_path / "config.yaml").read_text()


def test_work_is_collected_and_imports_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(entry.hydra, "main", lambda **_: lambda main: main)
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg=job"])
    gc.disable()
    try:
        entry.call(lambda: seen.append((gc.isenabled(), len(gc.get_objects()))), config="train")  # type: ignore[arg-type, misc]
    finally:
        gc.enable()
    ((on, watched),) = seen
    assert on, "the collector stays off while the work goes on"
    assert watched < 1000, "what was imported is gone through again and again"


def test_a_config_made_once_is_that_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    seen = []

    def take(cfg: DictConfig) -> None:
        alone = OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir")  # which only Hydra's own way fills in
        seen.append((cfg, OmegaConf.to_container(cfg, resolve=True), alone))

    for more in ([], ["hydra.verbose=false"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "model=cnn", "seed=3", *more])
        entry.call(take, config="train")
    (ours, plain, once), (theirs, same, twice) = seen
    assert once
    assert not twice
    assert plain == same
    assert plain["run"] == "runs/shapes-cnn-lognormal-seed3"
    assert OmegaConf.is_struct(ours) == OmegaConf.is_struct(theirs), "unknown keys would be taken"
