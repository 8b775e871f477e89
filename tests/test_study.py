"""What a study is made of: each training once, what waits for what, the same code for all."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from omegaconf import DictConfig, OmegaConf, open_dict

from launch.config.manual import CONFIGS
from launch.config.mistakes import no_such_key
from launch.config.override import key
from launch.study import store
from launch.study.arrays import Array, plan_arrays
from launch.study.checks import check
from launch.study.design import make_points, split, varying_keys
from launch.study.environment import outside_job
from launch.study.point import Point, read_points
from launch.study.store import freeze
from launch.study.submit import Study
from launch.sweep import refuse_other_configs, with_study


def compose(name: str, overrides: Sequence[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra_compose(name, overrides=list(overrides))
    with open_dict(cfg):
        cfg.pop("hydra", None)
    OmegaConf.resolve(cfg)
    return cfg


def make(jobs: list[list[str]], store: Path, code: str = "v1") -> list[Point]:
    return make_points(jobs, compose=compose, check=check, store=store, code=code, sampling={"n": 4, "batch": None})


def without_sampler(tiny: list[str]) -> list[str]:
    return [one for one in tiny if not one.startswith("sampler")]


REFUSED = {
    "precision=fp8": "precision: 'fp8' is not accepted; choose auto, fp32, bf16, fp16",
    "device=gpu": "device: 'gpu' is not accepted; choose auto, cuda or cpu",
    "data.sigma_data=0": "data.sigma_data: 0.0 is not accepted; it must be a positive number",
    "log_every=0": "log_every: 0 is not accepted; it must be at least 1",
    "save.keep=0": "save.keep: 0 is not accepted; it must be at least 1",
    "diagnose.count=1": "diagnose.count: 1 is not accepted; it must be at least 2",
    "hang_seconds=no": "hang_seconds: 'no' is not accepted; it must be a number",
    "channels_last=1": "channels_last: 1 is not accepted; choose auto, true or false",
    "data.loader=fast": "data.loader: 'fast' is not accepted; choose auto, ffcv or plain",
    "average.rules=[]": "average.rules: [] is not accepted; it must name at least one average",
    "average.rules.0.sigma_rel=5": "average.rules.0.sigma_rel: 5 is not accepted",
    "objective.weighting=edm": "objective.weighting: 'edm' is not accepted; select with objective/weighting=<name>: edm,",
    "optimizer.betas=[0.9]": "optimizer.betas: [0.9] is not accepted; it must be two numbers",
    "cuda_graph=true": "cuda_graph: True is not accepted; it needs a GPU and compile=false",
    "average.rules=[1]": "average.rules.0: 1 is not accepted; it must have a _target_",
    "model.network=null": "model.network: None is not accepted; select with model/network=<name>: unet, unet_full",
    "schedule.sigma_max=0": "schedule.sigma_max: 0 is not accepted",
    "data.train=nowhere.beton": "data.train: nowhere.beton: no such data file",
    "data.test=nowhere.beton": "data.test: nowhere.beton: no such data file",
    "data=beton": "data.train: no value is given, and there is no default; add data.train=<value>",
    "sampler.steps=0": "sampler.steps: 0 is not accepted",
    "sampler.grid=karras": "sampler.grid: 'karras' is not accepted; select with sampler/grid=<name>: cosine, geometric, karras",
    "sample.n=0": "sample.n: 0 is not accepted; it must be a whole number of at least 1",
    "sample.ema=1": "sample.ema: 1 is not accepted; it must be at most 0",
    "sample.precision=fp8": "sample.precision: 'fp8' is not accepted; choose auto, fp32, bf16, fp16",
}


@pytest.mark.parametrize("bad", REFUSED)
def test_what_a_job_would_refuse_is_refused_before_it(bad: str, tiny: list[str], tmp_path: Path) -> None:
    group = f"{bad.split('=')[0]}." if bad == "data=beton" else "-"
    asked = [one for one in without_sampler(tiny) if not one.startswith(group)]
    with pytest.raises(ValueError, match="^" + re.escape(REFUSED[bad])):
        make([[*asked, "sampler=heun", bad]], tmp_path)


def test_a_study_may_ask_for_the_metropolis_test_where_there_is_an_energy(tmp_path: Path, tiny: list[str]) -> None:
    asked = [one for one in without_sampler(tiny) if not one.startswith("model")]
    assert len(make([[*asked, "model=unet", "sampler=metropolis"]], tmp_path)) == 2
    with pytest.raises(ValueError, match=r"^sampler\.model: DirectScore is not accepted; the Metropolis test needs an energy"):
        make([[*asked, "model=unet_score", "sampler=metropolis"]], tmp_path)


def test_what_is_said_of_samples_reaches_a_sampler_that_an_experiment_brings(tiny: list[str], tmp_path: Path) -> None:
    asked = [one for one in without_sampler(tiny) if not one.startswith(("model", "schedule", "rate"))]
    jobs = [[*asked, "experiment=journey/noise", f"sample.seed={seed}", "sample.n=null"] for seed in (1, 2)]
    _, first, second = make(jobs, tmp_path)
    assert "seed=1" in first.overrides and "seed=2" in second.overrides and first.folder != second.folder
    assert "n=4" in first.overrides, "null is not what the study says of all samplings"
    with pytest.raises(ValueError, match=r"^sample\.seed: -1 is not accepted"):
        make([[*asked, "experiment=journey/noise", "sample.seed=-1"]], tmp_path)


def test_a_study_names_its_runs_itself(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^run=/tmp/mine: a study names its own runs, in store=; leave run= out$"):
        make([[*tiny, "run=/tmp/mine"]], tmp_path)


def test_points_come_back_from_a_studys_record_as_they_were(tiny: list[str], tmp_path: Path) -> None:
    asked = make([[*without_sampler(tiny), f"sampler={sampler}", f"seed={seed}"] for sampler in ("heun", "dpmpp")
                  for seed in (1, 2)], tmp_path)
    study = Study(cfg=OmegaConf.create({}), params={}, compose=compose, folder=tmp_path)
    study.code, study.points, study.jobs = tmp_path / "code" / "v1", asked, {one.folder: "5" for one in asked}
    study.save()
    assert read_points(tmp_path) == asked


def test_ctrl_c_while_jobs_are_submitted_takes_back_those_that_are(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Executor:
        """As submitit's: the first array is queued, in the second the user has had enough."""

        kind: str

        def map_array(self, _call: object, tasks: list[object]) -> list[SimpleNamespace]:
            if self.kind == "sample":
                raise KeyboardInterrupt
            return [SimpleNamespace(job_id=f"42_{index}") for index, _ in enumerate(tasks)]

    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scancel").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/cancelled\n')
    (tools / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    study = Study(cfg=OmegaConf.create({}), params={}, compose=compose, folder=tmp_path / "study")
    study.folder.mkdir()
    study.code, study.points = tmp_path / "code", make([[*without_sampler(tiny), "sampler=heun"]], tmp_path)
    study.jobs = {one.folder: "" for one in study.points}
    monkeypatch.setattr(study, "executor", lambda array: Executor(array.kind))
    with pytest.raises(KeyboardInterrupt):
        study.submit(plan_arrays(study.points, study.jobs, limit=10))
    assert (tmp_path / "cancelled").read_text() == "42\n"
    assert not study.folder.exists()


def test_no_job_inherits_another_jobs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SLURM_CONF", "SBATCH_ACCOUNT", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.setenv(name, "1")
    with outside_job():
        left = sorted(name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")))
        assert left == ["SBATCH_ACCOUNT", "SLURM_CONF"]
    assert os.environ["SLURM_CPU_BIND"] == "1"


def point(name: str, of: Point | None = None) -> Point:
    return Point("sample" if of else "train", name, Path(name), (name,), of=of)


@pytest.mark.parametrize(("override", "name"), [
    ("a.b=1", "a.b"), ("+a=1,2", "a"), ("~a", "a"), ("sampler/grid@x=karras", "sampler/grid"), ("a='b=c'", "a")])
def test_an_overrides_key(override: str, name: str) -> None:
    assert key(override) == name


def test_samplers_and_studies_own_keys_never_reach_training() -> None:
    sampling = ["sampler=heun", "sampler.steps=18", "sampler/grid=karras", "sample.n=5"]
    overrides = ["seed=0", *sampling, "store=x", "dry=true", "seed=1"]
    assert split(overrides) == (("seed=1",), ("sampler=heun", "sampler.steps=18", "sampler/grid=karras", "n=5"))


def test_what_only_changes_sampling_trains_once(tiny: list[str], tmp_path: Path) -> None:
    made = make([[*tiny, f"seed={seed}", f"sampler={name}"] for seed in (0, 1) for name in ("heun", "langevin")], tmp_path)
    kinds = [p.kind for p in made]
    assert kinds.count("train") == 2
    assert kinds.count("sample") == 4
    assert len({p.folder for p in made}) == 6
    assert {p.of.label for p in made if p.of} == {"seed=0", "seed=1"}


def test_samples_that_are_measured_are_those_that_would_be_drawn(tiny: list[str], tmp_path: Path) -> None:
    asked = [*without_sampler(tiny), "sampler=heun"]
    quality = ["metrics=[quality]", "extractor=random", "metric.quality.kid_subset_size=2", "metric.quality.reference_count=20"]
    (_, drawn), (_, measured), (_, otherwise) = (make([[*asked, *more]], tmp_path) for more in (
        [], quality, [*quality, "metric.quality.batch=7"]))
    assert drawn.folder == measured.folder == otherwise.folder
    assert (drawn.entry, measured.entry) == ("sample", "evaluate")
    labels = {next(one for one in p.overrides if one.startswith("label=")) for p in (measured, otherwise)}
    assert len(labels) == 2, "what was measured by one protocol would count as measured by another"
    drawn.folder.mkdir(parents=True)
    (drawn.folder / "x.npz").touch()
    assert drawn.done()
    assert not measured.done()
    measured.records.mkdir(parents=True)
    (measured.records / f"evaluation-{next(one for one in measured.overrides if one.startswith('label='))[6:]}.json").touch()
    assert measured.done()
    assert not otherwise.done()
    with pytest.raises(ValueError, match="measure the same samples in two ways"):
        make([[*asked, *quality], [*asked, *quality, "metric.quality.batch=7"]], tmp_path)
    with pytest.raises(ValueError, match="metrics: metric settings are given but no metric is selected"):
        make([[*asked, "extractor=random"]], tmp_path)
    with pytest.raises(ValueError, match=r"fetch_weights\.py"):
        make([[*asked, "metrics=[quality]", "extractor.file=nowhere.pth"]], tmp_path)


@pytest.mark.parametrize(("more", "said"), [
    (["metrics=[quality]", "extractor=random"], "sample.n: 4 is not accepted; kid needs at least 1000 images"),
    (["metrics=density"], "metric.density: a run trained by DenoisingScoreMatching is not accepted"),
    (["metrics=[likelihood]", "metric.likelihood.images=1000"], "metric.likelihood.images: 1000 is not accepted"),
    (["metrics=[neighbours]", "metric.neighbours.k=500"], "metric.neighbours.k: 500 is not accepted; there are 60"),
])
def test_what_no_trained_run_could_be_measured_by_is_refused_before_it_trains(
        more: list[str], said: str, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        make([[*without_sampler(tiny), "sampler=heun", *more]], tmp_path)


@pytest.mark.parametrize(("change", "same"), [
    ("log_every=8", True), ("save.every=8", True), ("budget.images=8", False), ("schedule.sigma_max=3", False),
    ("data.train={copy}", True), ("data.train={other}", False)])
def test_a_run_is_known_by_config_data_and_code(change: str, same: bool, tiny: list[str], tmp_path: Path) -> None:
    data = next(Path(one.split("=")[1]) for one in tiny if one.startswith("data.train="))
    for path in data.parent.glob("train.beton*"):
        shutil.copy(path, tmp_path / path.name.replace("train", "copy"))
    change = change.format(copy=tmp_path / "copy.beton", other=data.with_name("test.beton"))
    before, after = make([tiny], tmp_path)[0], make([[*tiny, change]], tmp_path)[0]
    assert (before.folder == after.folder) == same
    assert make([tiny], tmp_path, code="v2")[0].folder != before.folder
    assert make([tiny[::-1]], tmp_path)[0].folder == before.folder, "the order of overrides makes another run"


def test_the_command_line_of_a_study_has_a_sweep_and_a_store(capfd: pytest.CaptureFixture[str]) -> None:
    assert with_study(["-m", "seed=1"]) == ["-m", "seed=1", "sweep=default"]
    assert with_study(["-m", "seed=1,2"]) == ["-m", "seed=1,2"]
    assert with_study(["-m", "sampler=heun,"]) == ["-m", "sampler=heun,"], "Hydra says what is wrong with it"
    with pytest.raises(SystemExit):
        with_study(["-m", "store="])
    assert capfd.readouterr().err == "error: store: must not be empty\n"


@pytest.mark.parametrize(("arguments", "name"), [
    (["-cd", "mine"], "--config-dir"), (["--config-dir=mine"], "--config-dir"), (["--config-path", "mine"], "--config-path"),
    (["hydra.searchpath=[mine]"], "hydra.searchpath")])
def test_configs_that_no_job_would_have_are_refused(
        arguments: list[str], name: str, capfd: pytest.CaptureFixture[str]) -> None:
    refuse_other_configs(["-m", "seed=1,2"])
    with pytest.raises(SystemExit):
        refuse_other_configs(["-m", "seed=1,2", *arguments])
    said = f"error: {name}: no job of a study would have those configs; put them into configs/ and git add them\n"
    assert capfd.readouterr().err == said


def test_a_wrong_key_of_the_launcher_is_answered_with_what_lists_them() -> None:
    assert no_such_key("hydra.launcher.foo", "sweep") == (
        "hydra.launcher.foo: no such key; python launch/sweep.py --cfg hydra -p hydra.launcher lists them")


def test_labels_tell_apart_and_no_more() -> None:
    assert varying_keys([("a=1", "b=1"), ("a=1", "b=2"), ("a=1", "b=2", "c=1")]) == {"b", "c"}


def test_arrays_go_side_by_side_in_pieces() -> None:
    runs = [point(f"r{i}") for i in range(5)]
    samples = [Point("sample", "heun", run.folder / "heun", ("heun",), of=run) for run in runs]
    arrays = plan_arrays([*runs, *samples], {p.folder: "" for p in [*runs, *samples]}, limit=2)
    assert [len(array.points) for array in arrays] == [2, 2, 1, 2, 2, 1]
    for array in arrays[:3]:
        array.ids = [f"{len(array.points)}7_{i}" for i in range(len(array.points))] if len(array.points) > 1 else ["9"]
    assert [array.dependency for array in arrays[3:]] == ["aftercorr:27", "aftercorr:27", "afterok:9"]


def test_samples_of_what_is_done_wait_for_nothing_and_of_what_another_study_trains_for_it() -> None:
    done, elsewhere, new = point("done"), point("elsewhere"), point("new")
    samples = [Point("sample", "heun", run.folder / "heun", ("heun",), of=run) for run in (done, elsewhere, new)]
    jobs = {done.folder: "done", elsewhere.folder: "5_3", new.folder: "", **{s.folder: "" for s in samples}}
    arrays = plan_arrays([done, elsewhere, new, *samples], jobs, limit=10)
    arrays[0].ids = ["8"]
    waits = {array.points[0].run.name: array.dependency for array in arrays if array.kind == "sample"}
    assert waits == {"done": "", "elsewhere": "afterok:5_3", "new": "afterok:8"}


def test_one_sample_of_an_array_waits_for_its_own_run() -> None:
    runs = [point("a"), point("b")]
    sample = Point("sample", "heun", Path("b/heun"), ("heun",), of=runs[1])
    arrays = plan_arrays([*runs, sample], {p.folder: "" for p in [*runs, sample]}, limit=10)
    arrays[0].ids = ["4_0", "4_1"]
    assert arrays[1].dependency == "afterok:4_1"
    assert isinstance(arrays[1], Array)


def test_frozen_code_is_what_stood_there(tmp_path: Path) -> None:
    version = freeze(tmp_path)
    assert freeze(tmp_path) == version
    for name in ("launch/train.py", "ebm/energy.py", "configs/train.yaml"):
        assert (tmp_path / "code" / version / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list((tmp_path / "code").glob(".*"))


def test_another_byte_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "checkout"
    for name in store.code_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    monkeypatch.setattr(store, "ROOT", copy)
    before = freeze(tmp_path)
    (copy / "ebm" / "energy.py").write_text("changed")
    after = freeze(tmp_path)
    assert before != after
    assert (tmp_path / "code" / before / "ebm" / "energy.py").read_bytes() == (ROOT / "ebm" / "energy.py").read_bytes()


def test_a_file_that_no_job_would_have_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    for name, text in (("train.yaml", "seed: 0"), ("my own.yaml", "seed: 1"), ("ignored.yaml", "seed: 2")):
        (tmp_path / "configs" / name).write_text(text)
    (tmp_path / ".gitignore").write_text("ignored.yaml")
    monkeypatch.setattr(store, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert len(store.code_files()) == 3, "where git tracks nothing, it does not tell what the code is"
    subprocess.run(["git", "-C", str(tmp_path), "add", "configs/train.yaml"], check=True)
    with pytest.raises(ValueError, match=r"^code: git doesn't track configs/my own\.yaml, so no job would have them; git add"):
        freeze(tmp_path / "store")
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    assert store.code_files() == ["configs/my own.yaml", "configs/train.yaml"]


def test_a_module_that_is_neither_frozen_nor_installed_is_named(
        tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    text = "_target_: {}\nnodes:\n- _target_: ebm.schedule.Single\n- _target_: torch.optim.Adam\n- _target_: math.sqrt\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "schedule.py").write_text("raise ImportError('it is only looked for')")
    (tmp_path / "other.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert store.modules_outside(text.format("mine.schedule.Triangle")) == {"mine.schedule"}
    assert store.modules_outside(text.format("other.Triangle")) == {"other"}
    assert store.modules_outside(text.format("collections.OrderedDict")) == set()

    (tmp_path / "mine" / "schedule.py").write_text("from ebm.schedule import LogUniform as Triangle")
    asked = OmegaConf.create({
        "store": str(tmp_path), "code": None, "again": None, "report": None, "dry": True, "metrics": None, "sample": {"n": 4},
        "hydra": {"runtime": {"choices": {"cluster": "site"}}}})
    monkeypatch.setattr("launch.study.submit.available", lambda: False)
    study = Study(cfg=asked, params={"nodes": 1, "timeout_min": 60, "tasks_per_node": 1}, compose=compose)
    study.launch([[*without_sampler(tiny), "schedule._target_=mine.schedule.Triangle", "sampler=heun"]])
    assert capfd.readouterr().err.startswith("note: mine.schedule is not in the frozen code: after a change to it,")


def test_code_that_the_store_has_not_or_of_an_older_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code" / "abc").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^code: 'abc' is older than .*; use its own: python .*/code/abc/launch/sweep\.py$"):
        store.frozen_code(tmp_path, "abc")
    with pytest.raises(ValueError, match=r"^code: 'def' is not in .*; there are abc$"):
        store.frozen_code(tmp_path, "def")


@pytest.mark.parametrize(("arguments", "words"), [
    (["nowhere"], "nowhere holds no study.json"), (["--resubmit", "all"], "failed")])
def test_status_refuses_in_one_line(arguments: list[str], words: str) -> None:
    command = [sys.executable, "launch/status.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
