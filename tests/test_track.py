"""W&B mirrors a run by its own reader's account, through stops and kills, and never slows or ends it."""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ONE_THREAD, ROOT, Command, final_state, fingerprint
from omegaconf import DictConfig, OmegaConf
from wandb_server import Server, serving

from ebm.train.metrics import Metrics, read
from launch.tracking.history import Follower, values_of
from launch.tracking.track import tracking_of

# W&B may take its time at the end: on two loaded cores its import alone takes seconds.
TRACKED = ["track.mode=offline", "track.project=tests", "track.finish_seconds=120", "budget.images=400", "save.every=80",
           "preview.every=200", "diagnose.every=200", "diagnose.count=4", "diagnose.levels=2"]
DEAD = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}  # the port where everything is thrown away


def inspected(segment: Path) -> list[dict[str, Any]]:
    """The records of one start of a run, by W&B's own reader."""
    return [json.loads(line) for line in leet(segment).splitlines()]


def summary_of(segment: Path) -> dict[str, Any]:
    """What W&B's own reader says of one start as a whole."""
    content: dict[str, Any] = json.loads(leet(segment, "--summary"))
    return content


def leet(segment: Path, *options: str) -> str:
    """What W&B's own reader prints."""
    return subprocess.run([sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(segment)],
                          capture_output=True, text=True, check=True, timeout=60).stdout


def segments(folder: Path) -> list[Path]:
    """W&B's folders of a run's starts, in order."""
    return sorted((folder / "wandb").glob("offline-run-*"))


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of all starts, one after the other."""
    return [record["history"]["item"] for segment in segments(folder) for record in inspected(segment)
            if record["type"] == "history"]


def same_history(run: Path) -> None:
    """Fails unless W&B's rows are those of metrics.jsonl: every step once, in order, with all its values."""
    expected: dict[int, dict[str, float]] = {}
    for record in read(run / "metrics.jsonl"):
        if record["event"] not in ("start", "end"):
            row = expected.setdefault(record["step"], {"images": record["images"]})
            values = values_of(record)
            row |= {name: value for name, value in values.items() if "seconds" not in name and not name.endswith("_s")}
    found = history(run)
    steps = [row["_step"] for row in found]
    assert steps == sorted(set(steps)), "a step came twice or out of order"
    assert steps == sorted(expected)
    for row in found:  # what takes another time when a step is made again is left out
        missing = {name for name, value in expected[row["_step"]].items() if row.get(name) != value} - {"train/peak_memory_gb"}
        assert not missing, f"step {row['_step']}: {missing}"


@pytest.fixture(scope="module")
def run(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracked run that was never interrupted."""
    folder = tmp_path_factory.mktemp("tracked") / "<script>"
    done = command("train", *tiny, *TRACKED, f"run='{folder}'")
    assert done.stderr.count("W&B: offline; python tools/sync.py") == 1, done.stderr
    return folder


def test_every_record_is_mirrored(run: Path) -> None:
    same_history(run)
    expected: dict[str, float] = {}
    for record in read(run / "metrics.jsonl"):
        expected |= values_of(record)
    summary = summary_of(segments(run)[0])
    assert summary["state"] == "finished"
    assert summary["exit_code"] == 0
    assert summary["project"] == "tests"
    assert expected.items() <= summary["summary"].items()
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/average_distance", "train/images_per_s",
            "train/data_s", "train/compute_s", "train/communication_s", "train/peak_memory_gb", "held_out/loss",
            "energy/data/mean", "energy/noise/mean", "energy/samples/mean"} <= {*expected}
    assert any(name.startswith("loss_by_sigma/") for name in expected)
    assert any(name.startswith("calibration/slope/") for name in expected)
    preview = summary["summary"]["preview"]
    assert (segments(run)[0] / "files" / preview["path"]).exists()
    assert summary["config"]["about"]["commit"] == subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert summary["config"]["budget"]["images"] == 400
    assert "model=cnn" in summary["tags"]
    assert summary["config"]["chosen"]["model"] == "cnn"


def test_samples_are_shown_with_their_protocol(run: Path, command: Command) -> None:
    command("sample", f"run='{run}'", "n=4", "sampler=heun", "sampler.steps=3", "device=cpu", "track.mode=offline")
    segment = segments(run / "samples")[0]
    summary = summary_of(segment)
    assert next(record["run"] for record in inspected(segment) if record["type"] == "run")["job_type"] == "sample"
    assert summary["summary"]["nfe"] == 5  # two for each of three steps but the last
    assert {"samples", "trajectory"} <= summary["summary"].keys()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_comes_back_goes_on_without_gap_or_repeat(number: signal.Signals, tiny: list[str], command: Command,
                                                             tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [*tiny, *TRACKED, f"run={run}", "budget.images=5_000", "save.every=1_000"]
    process = subprocess.Popen([sys.executable, f"{ROOT}/launch/train.py", *overrides], cwd=ROOT, env=ONE_THREAD,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not (run.exists() and len(list(read(run / "metrics.jsonl"))) > 500):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it made no steps"
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=240)
    ended_alone(run)
    first = summary_of(segments(run)[0])
    assert (first["exit_code"], first["state"]) == ((143, "failed") if number == signal.SIGTERM else (137, "failed"))
    said = {record["type"] for record in inspected(segments(run)[0])}
    assert ("preempting" in said) == (number == signal.SIGTERM)
    command("train", *overrides)
    assert len(segments(run)) == 2
    assert len({segment.name.rsplit("-", 1)[1] for segment in segments(run)}) == 1, "it came back under another id"
    same_history(run)


def ended_alone(run: Path) -> None:
    """Waits until the mirroring process of a run has left by itself."""
    until = time.monotonic() + 120
    while any(str(run) in text for text in command_lines()):
        assert time.monotonic() < until, "the mirroring process stays when its run is gone"
        time.sleep(0.2)


def command_lines() -> Iterator[str]:
    """Working folders' files that mirroring processes hold open, as they know their run by its files alone."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"mirror.py" in (process / "cmdline").read_bytes():
                yield " ".join(os.readlink(link) for link in (process / "fd").iterdir())
        except OSError:
            continue


def test_a_dead_server_changes_nothing(tiny: list[str], command: Command, run: Path, tmp_path: Path) -> None:
    overrides = [one for one in TRACKED if not one.startswith("track.mode")]
    done = command("train", *tiny, *overrides, f"run={tmp_path}/run", "track.mode=online", "track.start_seconds=5",
                   env={**ONE_THREAD, **DEAD})
    assert done.stderr.count("W&B:") == 1, done.stderr
    assert "W&B: offline (" in done.stderr
    same_history(tmp_path / "run")
    assert fingerprint(final_state(tmp_path / "run")) == fingerprint(final_state(run))


def test_a_service_that_hangs_changes_nothing(tiny: list[str], command: Command, run: Path, tmp_path: Path) -> None:
    frozen: list[int] = []
    over = threading.Event()

    def freeze() -> None:  # W&B's client waits for its service to end, and a stopped one doesn't
        while not (frozen or over.wait(0.02)):
            for service in services(tmp_path):
                os.kill(service, signal.SIGSTOP)
                frozen.append(service)

    overrides = [one for one in TRACKED if not one.startswith("track.mode")]
    freezing = threading.Thread(target=freeze)
    freezing.start()
    try:
        done = command("train", *tiny, *overrides, f"run={tmp_path}/run", "track.mode=online", "track.start_seconds=1",
                       env={**ONE_THREAD, **DEAD})
    finally:
        over.set()
        freezing.join()
    assert frozen, "no service was there to be stopped"
    assert done.stderr.count("W&B:") == 1, done.stderr
    assert "W&B: offline (" in done.stderr
    assert not [*services(tmp_path)], "a hanging service stays"
    same_history(tmp_path / "run")
    assert fingerprint(final_state(tmp_path / "run")) == fingerprint(final_state(run))


def services(folder: Path) -> Iterator[int]:
    """The processes of W&B's service that belong to runs in a folder, as soon as they can be spoken to."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if "wandb-core" not in words[0] or "--port-filename" not in words:  # other tests read its files with it
                continue
            if not Path(words[words.index("--port-filename") + 1]).parent.exists():
                parent = Path("/proc", re.findall(r"PPid:\s*(\d+)", (process / "status").read_text())[0])
                if any(str(folder) in os.readlink(link) for link in (parent / "fd").iterdir()):
                    yield int(process.name)


def test_an_online_run_that_comes_back_goes_on_where_the_server_is(tiny: list[str], command: Command, tmp_path: Path) -> None:
    with serving(Server()) as server:
        env = {name: value for name, value in ONE_THREAD.items() if not name.startswith("WANDB")}
        env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
        for images in (200, 400):
            done = command("train", *tiny, *TRACKED[1:], f"run={tmp_path}/run", f"budget.images={images}", env=env)
            assert "W&B" not in done.stderr, done.stderr
        records = read(tmp_path / "run" / "metrics.jsonl")
        steps = {record["step"] for record in records if record["event"] not in ("start", "end")}
        assert [*server.rows.values()] == [sorted(steps)], "the server has not every step once and in order"
        assert any("preview" in name for name in server.files)


def test_without_a_key_nobody_is_asked_for_one(tiny: list[str], command: Command, tmp_path: Path) -> None:
    env = {name: value for name, value in ONE_THREAD.items() if not name.startswith("WANDB")}
    env |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = command("train", *tiny, f"run={tmp_path}/run", "budget.images=16", "track.finish_seconds=120", env=env)
    assert done.stderr.count("W&B: offline (no key is known)") == 1
    assert segments(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk_is_said_once_and_the_run_goes_on(tiny: list[str], command: Command, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        done = command("train", *tiny, *TRACKED, f"run={tmp_path}/run", env={**ONE_THREAD, "WANDB_DIR": str(small)})
        assert (small / "wandb").exists(), "WANDB_DIR was not honoured"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert done.stderr.count("is full") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_checkpoints_are_artifacts_where_asked_for(tiny: list[str], command: Command, run: Path, tmp_path: Path) -> None:
    command("train", *tiny, *TRACKED, f"run={tmp_path}", "track.checkpoints=true", "save.keep=9")
    kinds = [record["type"] for record in inspected(segments(tmp_path)[0])]
    assert kinds.count("artifact") == sum(record["event"] == "save" for record in read(tmp_path / "metrics.jsonl")) > 0
    assert "artifact" not in {record["type"] for record in inspected(segments(run)[0])}


def test_a_failure_is_a_failure_there_too(tiny: list[str], command: Command, tmp_path: Path) -> None:
    done = command("train", *tiny, *TRACKED, f"run={tmp_path}", "rate.peak=1e30", "budget.clip=1e30", check=False)
    assert done.returncode == 1, done.stderr
    ended_alone(tmp_path)
    summary = summary_of(segments(tmp_path)[0])
    assert summary["exit_code"] == 1
    alerts = [record["alert"] for record in inspected(segments(tmp_path)[0]) if record["type"] == "alert"]
    assert "not finite" in alerts[0]["text"]


def config(**values: object) -> DictConfig:
    given = {"mode": "auto", "project": "p", "entity": None, "checkpoints": False, "start_seconds": 1, "finish_seconds": 1}
    return OmegaConf.create({"track": {**given, **values}})


@pytest.mark.parametrize(("bad", "said"), [
    ({"mode": "loud"}, "track.mode: 'loud' is not accepted; choose auto, online, offline, disabled"),
    ({"mode": "wandb"}, "track.mode: 'wandb' is not accepted"),
    ({"project": 3}, "track.project: 3 is not accepted; it must be a string"),
    ({"checkpoints": "yes"}, "track.checkpoints: 'yes' is not accepted; it must be true or false"),
    ({"finish_seconds": -1}, "track.finish_seconds: -1 is not accepted; it must be at least 0"),
])
def test_bad_values_are_named(bad: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        tracking_of(config(**bad))


@pytest.mark.parametrize(("given", "meant"), [("", "auto"), ("dryrun", "offline"), ("run", "online"), ("shared", "online")])
def test_wandbs_own_words_are_understood(given: str, meant: str) -> None:
    assert tracking_of(config(mode=given)).mode == meant


def test_where_wandb_is_missing_nothing_is_tracked_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tracking_of(config()).mode == "disabled"
    with pytest.raises(ValueError, match=r"pip install -e '\.\[wandb\]'"):
        tracking_of(config(mode="offline"))
    monkeypatch.setenv("WANDB_MODE", "offline")  # of a shell, for other projects
    assert tracking_of(config(mode="offline")).mode == "disabled"


def test_a_step_that_a_kill_cut_short_is_not_passed_on(tmp_path: Path) -> None:
    passed: list[tuple[int, dict[str, Any]]] = []

    class Run:
        def log(self, row: dict[str, Any], *, step: int) -> None:
            passed.append((step, row))

    metrics, follower = Metrics(tmp_path / "metrics.jsonl"), Follower(Run(), tmp_path, done=1, checkpoints=False)  # type: ignore
    for step in (1, 2, 3):
        metrics.write("train", step=step, images=8 * step, loss=float(step))
        metrics.write("held_out", step=step, images=8 * step, loss=10.0 * step)
        follower.read()
    assert passed == [(2, {"images": 16, "train/loss": 2.0, "held_out/loss": 20.0})], "1 was there, 3 may not be over"
    follower.flush()  # a clean end
    assert passed[1:] == [(3, {"images": 24, "train/loss": 3.0, "held_out/loss": 30.0})]
