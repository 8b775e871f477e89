"""Uploading: wandb's own files and its own `wandb sync`, against a server that takes them, one that refuses, and none."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("wandb")

from conftest import ROOT
from wandb_server import Server, serving

from launch.study import cluster, here
from tools import sync
from tools.review.offline import Segment, folders, is_over, pending, segments

# Each start of a run as launch/tracking/mirror.py makes it, all by one process: importing wandb is what takes time.
STARTS = """
import json, os, sys
os.environ["WANDB_SILENT"] = "true"
import wandb
for folder, name, steps, picture in json.loads(sys.argv[1]):
    run = wandb.init(mode="offline", dir=folder, id=name, resume="allow", project="ebm", group="study", job_type="train",
                     settings=wandb.Settings(silent=True, console="off", x_save_requirements=False, x_disable_stats=True))
    for step in steps:
        run.log({"images": 10 * step, "train/loss": 1 / step}, step=step)
    if picture:
        run.log({"preview": wandb.Image(picture)}, step=steps[-1])
    run.finish()
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as state:
        yield state


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two runs, the first started twice; as its jobs have left it."""
    folder = tmp_path_factory.mktemp("written")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "picture.png")
    starts: list[Any] = [[f"{folder}/runs/a", "a", [1, 2], f"{folder}/picture.png"], [f"{folder}/runs/b", "b", [1, 2, 3], None],
                         [f"{folder}/runs/a", "a", [3, 4], None]]
    subprocess.run([sys.executable, "-c", STARTS, json.dumps(starts)], check=True, cwd=folder)
    # In which second a start falls is up to the clock: here each has its own.
    found = sorted(folder.glob("runs/*/wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    for second, path in enumerate(found):
        name = "a" if "/runs/a/" in str(path) else "b"
        path.rename(path.with_name(f"offline-run-20260101_00000{second}-{name}"))
    for name in "ab":
        (folder / "runs" / name / "config.yaml").write_text("")
        (folder / "runs" / name / "track.json").write_text(json.dumps({"run": {"id": name, "place": "/nowhere"}}))
    return folder


@pytest.fixture
def study(written: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may send."""
    shutil.copytree(written / "runs", tmp_path / "runs", symlinks=True)
    points = [{"kind": "train", "label": name, "of": "", "folder": f"{tmp_path}/runs/{name}", "steps": 4, "batch": 8,
               "job": "local 1", "overrides": []} for name in "ab"]
    points.append({**points[0], "kind": "sample", "label": "heun", "of": "a", "folder": f"{tmp_path}/runs/a/samples/heun"})
    (tmp_path / "study.json").write_text(json.dumps({"points": points, "command": []}))
    return tmp_path


def test_a_study_that_was_moved_is_found_with_its_runs(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for name in ("runs/a", "studies/one"):
        (after / name).mkdir(parents=True)
    point = {"kind": "train", "label": "a", "of": "", "folder": f"{before}/runs/a", "steps": 4, "batch": 8, "job": "done",
             "overrides": []}
    (after / "studies" / "one" / "study.json").write_text(json.dumps({"points": [point], "command": []}))
    assert folders(after / "studies" / "one") == [after / "runs" / "a"]
    (after / "runs" / "a").rmdir()
    with pytest.raises(FileNotFoundError, match=r"a study whose runs are not here, such as .*/before/runs/a;"):
        folders(after / "studies" / "one")


Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(server: Server, tmp_path: Path) -> Call:
    """Runs tools/sync.py as a user does, whose settings are those of no one in particular."""

    def run(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        around = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        # A user who silences wandb and works offline is told nothing by it, and must be told by us.
        around |= {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url, "WANDB_MODE": "offline", "WANDB_SILENT": "true",
                   "WANDB__GRAPHQL_RETRY_MAX": "1", "WANDB__FILE_TRANSFER_RETRY_MAX": "1", "HOME": str(tmp_path), **env}
        return subprocess.run([sys.executable, f"{ROOT}/tools/sync.py", *map(str, words)], capture_output=True, text=True,
                              env=around, timeout=60, check=False, stdin=subprocess.DEVNULL, cwd=tmp_path)

    return run


def names(found: list[Segment]) -> list[str]:
    return [one.file.parent.name.removeprefix("offline-run-20260101_00000") for one in found]


def marked(study: Path) -> list[str]:
    return sorted(path.parent.name.removeprefix("offline-run-20260101_00000") for path in study.rglob("*.synced"))


def test_everything_arrives_once_in_order_and_what_has_grown_is_sent_again(study: Path, server: Server, call: Call) -> None:
    done = call(study)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 sent, 0 sent before, empty or still being written, 0 failed\n"
    assert server.rows == {"a": [1, 2, 3, 4], "b": [1, 2, 3]}
    assert server.order == ["a", "b"]
    assert any(name.endswith(".png") for name in server.files)
    assert "3/3" in done.stderr  # the progress bar
    assert call(study).stdout == "nothing to send: 3 files, sent before, empty or still being written\n"
    assert server.rows == {"a": [1, 2, 3, 4], "b": [1, 2, 3]}
    grown = next(study.glob("runs/b/wandb/*/*.wandb"))
    # As old as the file was before: what it grows by while it is being sent is not taken for sent.
    assert grown.with_name("run-b.wandb.synced").stat().st_mtime_ns == grown.stat().st_mtime_ns
    os.utime(grown)
    assert names(pending(segments(folders(study), online=False))) == ["1-b"]


def test_a_file_cut_in_the_middle_of_a_record_counts_as_sent_until_it_grows(study: Path, server: Server, call: Call) -> None:
    file = next(study.glob("runs/b/wandb/*/*.wandb"))
    os.truncate(file, file.stat().st_size - 60)
    while not Segment(file).live:  # wandb doesn't write its records in the same order each time: until the end is gone
        os.truncate(file, file.stat().st_size - 60)
    assert names(pending(segments([study / "runs" / "b"], online=False))) == [], "somebody may still write it"
    os.utime(file, (time.time() - 130,) * 2)
    done = call(study / "runs" / "b")
    assert done.returncode == 0, done.stderr
    assert server.rows["b"][:2] == [1, 2]
    assert marked(study) == ["1-b"]


@pytest.mark.parametrize(("broken", "words"), [("rows", "Fatal error while uploading data"), ("files", "403"), ("key", "401")])
def test_what_a_server_does_not_take_is_named_and_sent_again(study: Path, server: Server, call: Call, broken: str,
                                                             words: str) -> None:
    server.broken = broken  # wandb itself marks the files as sent in the first two cases, and exits with 0 in all
    done = call(study / "runs" / "a")
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert done.returncode == 1
    assert len(failed) == 1 and "00000" in failed[0] and words in failed[0], done.stderr
    assert done.stdout.endswith("1 failed, 1 later starts of theirs held back\n")
    assert marked(study) == []


def test_no_server_fails_soon_for_each_run_and_leaves_nothing_marked(study: Path, call: Call) -> None:
    done = call(study, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.count("connection refused") >= 2 and done.stderr.count("failed: ") == 2
    assert marked(study) == []


def test_a_file_that_takes_too_long_is_given_up(study: Path, call: Call) -> None:
    done = call(study / "runs" / "b", "--timeout", "0.2")
    assert done.returncode == 1
    assert "not finished after 0.2 s (--timeout)" in done.stderr
    assert marked(study) == []


def test_without_a_key_nobody_is_asked(study: Path, call: Call) -> None:
    done = call(study, WANDB_API_KEY="")
    assert done.returncode == 2
    assert "set WANDB_API_KEY or run `wandb login` once" in done.stderr.splitlines()[-1]


def test_dry_runs_list_in_order_and_send_nothing(study: Path, server: Server, call: Call) -> None:
    done = call(study, "--dry-run")
    listed = [line.split("20260101_00000")[1] for line in done.stdout.splitlines()[:-1]]
    assert (done.returncode, listed) == (0, ["0-a", "1-b", "2-a"])
    assert done.stdout.splitlines()[-1] == "3 of 3 to send"
    assert server.rows == {} and marked(study) == []


def test_bad_folders_and_records_are_one_line(study: Path, call: Call) -> None:
    for folder, words in ((study / "runs", "holds no study.json and no run"), (study / "nowhere", "holds no study.json")):
        done = call(folder)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and words in done.stderr
    (study / "study.json").write_text("{")
    assert "is not the record of a study" in call(study).stderr


def test_where_wandb_is_missing_it_is_named(study: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sync.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["sync.py", str(study)])
    with pytest.raises(SystemExit, match="2"):
        sync.main()
    assert capsys.readouterr().err == "error: wandb: not installed; uploads need pip install -e '.[wandb]'\n"


def touch(path: Path, size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_starts_are_in_order_also_within_one_second_and_each_is_found_once(tmp_path: Path) -> None:
    for name in ("20260102_000000-r-1", "20260102_000000-r-1-2", "20260102_000000-r-1-10", "20260101_235959-z"):
        touch(tmp_path / "wandb" / f"offline-run-{name}" / f"run-{'z' if name.endswith('z') else 'r-1'}.wandb")
    touch(tmp_path / "wandb" / "run-20250101_000000-o" / "run-o.wandb")
    touch(tmp_path / "samples" / "heun" / "wandb" / "offline-run-20260103_000000-s" / "run-s.wandb")
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-20260101_235959-z")
    found = segments([tmp_path, tmp_path, tmp_path / "samples" / "heun"], online=False)
    assert [one.file.parent.name[27:] for one in found] == ["-z", "-r-1", "-r-1-2", "-r-1-10", "-s"]
    assert [one.run for one in found] == ["z", "r-1", "r-1", "r-1", "s"]
    assert segments([tmp_path], online=True)[0].run == "o"


def test_files_elsewhere_are_found_by_the_runs_id(tmp_path: Path) -> None:
    for name in ("a[1]", "a1", "other"):
        touch(tmp_path / "disk" / "wandb" / f"offline-run-20260101_000000-{name}" / f"run-{name}.wandb")
    known = {"run": {"id": "a[1]", "place": str(tmp_path / "disk")}}
    touch(tmp_path / "run" / "track.json").write_text(json.dumps(known))
    assert [one.run for one in segments([tmp_path / "run"], online=False)] == ["a[1]"]


def test_after_a_start_that_is_missing_the_later_ones_of_its_run_are_sent_again(tmp_path: Path) -> None:
    files = [touch(tmp_path / "wandb" / f"offline-run-20260101_00000{second}-{name}" / f"run-{name}.wandb",
                   7 if name == "c" else 100) for second, name in enumerate("abac")]
    for file in files:
        touch(file.with_name(f"{file.name}.synced"))
        os.utime(file, (time.time() - 130,) * 2)
    assert pending(segments([tmp_path], online=False)) == []
    files[0].with_name("run-a.wandb.synced").unlink()
    assert names(pending(segments([tmp_path], online=False))) == ["0-a", "2-a"]
    files[3].with_name("run-c.wandb.synced").unlink()  # nothing was written into it
    assert names(pending(segments([tmp_path], online=False))) == ["0-a", "2-a"]


def test_a_study_is_over_when_no_point_waits_or_runs(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with here.Life.of(study, here.STUDY).held():  # as where there is no SLURM
        assert not is_over(study)
    assert is_over(study), "nobody is there who would start what waits"
    record = json.loads((study / "study.json").read_text())
    for point in record["points"]:
        point["job"] = "5_0"  # of which SLURM knows nothing any more
    (study / "study.json").write_text(json.dumps(record))
    monkeypatch.setattr(cluster, "jobs", lambda numbers: {})
    assert not is_over(study)
    touch(study / "runs" / "a" / "failure.json").write_text('{"error": "no"}')  # its samples will not come
    assert not is_over(study)
    touch(study / "runs" / "b" / "failure.json").write_text('{"error": "no"}')
    assert is_over(study)
    record["points"][1]["job"] = "7_1"
    (study / "study.json").write_text(json.dumps(record))
    for state, ended in (("RUNNING", False), ("COMPLETED", True)):
        monkeypatch.setattr(cluster, "jobs", lambda numbers, state=state: {"7_1": cluster.Job(state=state)})
        assert is_over(study) == ended
    assert not is_over(study / "runs" / "a")


def test_a_measured_sampling_is_over_when_it_has_been_measured(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "jobs", lambda numbers: {})
    record = json.loads((study / "study.json").read_text())
    record["points"] = [{**record["points"][2], "job": "5_0", "overrides": ["metrics=[cost]", "label=ab12"]}]
    (study / "study.json").write_text(json.dumps(record))
    touch(study / "runs" / "a" / "samples" / "heun" / "heun.npz")
    assert not is_over(study)
    touch(study / "runs" / "a" / "evaluations" / "heun" / "evaluation-ab12.json")
    assert is_over(study)


def test_watching_ends_with_the_study_and_sends_what_came_last(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []
    monkeypatch.setattr(sync, "is_over", lambda folder: len(rounds) == 2)
    monkeypatch.setattr(sync, "send", lambda found, seconds: rounds.append(len(found)) or ["a"] * (len(rounds) < 3))
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(sys, "argv", ["sync.py", str(study), "--watch", "7"])
    with pytest.raises(SystemExit, match="0"):
        sync.main()
    assert (rounds, waits) == ([3, 3, 3], [7, 7])


def test_a_watch_that_never_waits_is_refused(study: Path, call: Call) -> None:
    done = call(study, "--watch", "0")
    assert done.returncode == 2
    assert done.stderr.endswith("error: --watch: 0 is not accepted; it must be at least 1 second\n")
