"""What a study asks of SLURM for its jobs, and when a point counts as done or as queued, without a SLURM at hand."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.study import cluster
from launch.study.arrays import Array
from launch.study.point import Point
from launch.study.store import queued_by
from launch.study.submit import Study

PARAMS = {"submitit_folder": "x", "max_num_timeout": 0, "nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "timeout_min": 60,
          "signal_delay_s": 120, "array_parallelism": 256, "account": None, "additional_parameters": {"exclude": "n1"},
          "srun_args": ["--label"], "setup": ["module load x"]}


def study(folder: Path, **params: Any) -> Study:
    made = Study(cfg=OmegaConf.create({}), params={**PARAMS, **params}, compose=lambda *_: OmegaConf.create({}), folder=folder)
    made.code = folder / "code" / "v1"
    made.points = [Point("train", "a", folder / "a", (), steps=10, batch=24)]
    made.jobs = {point.folder: "" for point in made.points}
    return made


def test_every_job_may_be_requeued_and_none_outlives_its_run(tmp_path: Path) -> None:
    runs = Array("train", study(tmp_path).points, ids=["5_0"])
    train, sample, report = (study(tmp_path).parameters(array) for array in (
        runs, Array("sample", [Point("sample", "b", tmp_path / "b", (), of=runs.points[0])], on=runs), Array("report", [])))
    for own in (train, sample, report):
        assert own["slurm_additional_parameters"] == {"requeue": True, "kill-on-invalid-dep": "yes", "exclude": "n1"}
        assert own["slurm_srun_args"] == ["--kill-on-bad-exit=1", "--label"], "a failed process would leave the others waiting"
        assert own["slurm_setup"][0] == "module load x"
        (end,) = own["slurm_teardown"]
        assert end.startswith("exec ") and end.endswith("/launch/job/epilogue.py $?")
        assert "account" not in str(own)
    assert [(own["nodes"], own["tasks_per_node"]) for own in (train, sample, report)] == [(2, 4), (1, 4), (1, 1)]
    assert [own.get("slurm_dependency") for own in (train, sample, report)] == [None, "afterok:5", None]
    assert [own["name"] for own in (train, sample, report)] == ["ebm-train", "ebm-sample", "ebm-report"]


@pytest.mark.parametrize(("params", "words"), [
    ({"signal_delay_s": 3600}, r"hydra\.launcher\.signal_delay_s: 3600 is not accepted; .* below the 3600 seconds"),
    ({"signal_delay_s": 0}, r"signal_delay_s: 0 "), ({"nodes": 0}, r"hydra\.launcher\.nodes: 0 "),
    ({"timeout_min": 0}, "timeout_min: 0 "), ({"array_parallelism": 0}, "array_parallelism: 0 "),
    ({"tasks_per_node": 5}, r"budget\.batch: 24 is not accepted; it must divide among 10 processes"),
])
def test_what_no_job_can_use_is_refused(params: dict[str, int], words: str, tmp_path: Path) -> None:
    study(tmp_path).check_asked()
    study(tmp_path, signal_delay_s=3599).check_asked()
    with pytest.raises(ValueError, match=words):
        study(tmp_path, **params).check_asked()


def test_a_run_is_done_at_its_last_step_and_no_sooner(tmp_path: Path) -> None:
    point = study(tmp_path).points[0]
    (point.folder / "checkpoints").mkdir(parents=True)
    for step, done in ((0, False), (9, False), (10, True), (12, True)):
        (point.folder / "checkpoints" / f"step-{step:09d}-0123456789abcdef.pt").touch()
        assert point.done() == done, step


def test_a_point_is_queued_as_long_as_its_job_lives(tmp_path: Path) -> None:
    point = study(tmp_path).points[0]
    assert queued_by(point, {"5_0"}) == "", "nobody has queued it"
    point.folder.mkdir()
    (point.folder / "queued").write_text("5_0")
    assert queued_by(point, {"5_0", "6"}) == "5_0"
    assert queued_by(point, {"5_1", "6"}) == "", "a job that has ended would be waited for"


def test_an_array_has_no_more_elements_than_slurm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its indices go from 0 and stay below MaxArraySize (slurm.conf)."""
    monkeypatch.setattr(cluster, "ask", lambda *_: "Configuration data\nMaxArraySize            = 1001\n")
    assert cluster.array_limit() == 1000
