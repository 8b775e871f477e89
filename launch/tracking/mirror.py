#!/usr/bin/env python3
"""Weights & Biases beside a run, W&B's side: mirrors the run's metrics.jsonl until the run reports how it has ended.

`launch/tracking/track.py` starts it and writes two lines of JSON to its standard input: what to mirror and, at the end, how the
run ended; an end without the second line means that it was killed. Nothing here can affect the run.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import shlex
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path[0] = str(Path(__file__).resolve().parents[2])

from ebm.files import write_atomically
from launch.run.version import changes, commit, version
from launch.tracking.history import Follower, config_of, last_step, summary_and_pictures

if TYPE_CHECKING:
    import wandb

POLL = 2.0  # seconds
PATIENCE = 30.0  # extra seconds for W&B's client to start: it takes 10 to find out that no server answers
FULL = 20 << 20  # bytes free below which nothing more is written
TAG = 64  # characters that W&B takes
NAMES = "track.json"  # in a run's folder: what W&B knows of it, by name
Spec = dict[str, Any]


def main() -> None:
    """Mirrors one run; an error is reported once, in one line."""
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    spec: Spec = json.loads(sys.stdin.buffer.readline())
    logging.raiseExceptions = False  # on a full disk wandb's own log would print a traceback for each of its lines
    os.environ["WANDB_SILENT"] = "true"  # read when wandb is imported
    os.environ.pop("WANDB_MODE", None)  # the config has it, in our words
    try:
        with mirror_lock(Path(spec["folder"]), spec["name"]):
            run, done = begin_run(spec)
            finish(run, spec, follow(run, spec, done))
    except Exception as error:  # whatever it is: the run goes on
        say(f"{type(error).__name__}: {' '.join(str(error).split())}; the run goes on, metrics.jsonl holds everything")
        sys.exit(1)


def say(text: str) -> None:
    """Prints one line on the run's terminal, if it still exists."""
    with contextlib.suppress(OSError):
        print(f"W&B: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def mirror_lock(folder: Path, name: str) -> Iterator[None]:
    """Context in which no other process mirrors this run: that of an earlier start may still be finishing."""
    with open(folder / f".{name}.mirror.lock", "w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def begin_run(spec: Spec) -> tuple[wandb.Run, int]:
    """Begins W&B's run, online if requested and possible, else offline; the run, and the last step that it already has."""
    import wandb

    folder = Path(spec["folder"])
    place = Path(os.environ.get("WANDB_DIR") or folder).resolve()
    known = run_id(folder, spec["name"], place)
    offline, why = [*place.glob(f"wandb/offline-run-*-{known}")], ""
    if offline:
        why = "as it began"  # a server takes no steps before those that it has
    elif spec["mode"] in ("auto", "online"):
        with at_most(spec["start_seconds"] + PATIENCE):
            try:
                if wandb.login(prompt=False, timeout=max(1, round(spec["start_seconds"]))):
                    run = init_run(spec, place, known, "online")
                    return run, (run.starting_step if run.resumed else 0) - 1
                why = "no key is known"
            except (wandb.errors.Error, ValueError, OSError) as error:
                with contextlib.suppress(SystemExit):  # if its service has not ended cleanly
                    wandb.teardown()  # else its service holds the run's id to be in use
                end_service()
                why = " ".join(str(error).split())
    if spec["kind"] == "train" and not offline:
        say(f"offline{f' ({why})' if why else ''}; python tools/sync.py {shlex.quote(os.path.relpath(folder))} uploads it")
    return init_run(spec, place, known, "offline"), max([-1, *map(last_step, offline)])


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Context after whose time W&B's service is killed: its client waits for it without end, in `wandb.teardown` for one, but
    not for one that is gone."""
    timer = threading.Timer(seconds, end_service)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_service() -> None:
    """Kills the service that W&B's client has started, so that it starts another."""
    with contextlib.suppress(OSError):  # Linux alone tells
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
    os.environ.pop("WANDB_SERVICE", None)


def run_id(folder: Path, name: str, place: Path) -> str:
    """The run's id at W&B, generated once and kept in its folder with the place of W&B's own files."""
    with open(folder / f".{NAMES}.lock", "w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        path = folder / NAMES
        known: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
        if name not in known:
            known[name] = {"id": f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:80]}-{uuid.uuid4().hex[:8]}"}
        if known[name].get("place") != str(place):
            known[name]["place"] = str(place)
            write_atomically(path, json.dumps(known, indent=1).encode())
    return known[name]["id"]


def init_run(spec: Spec, place: Path, known: str, mode: Literal["online", "offline"]) -> wandb.Run:
    """Calls `wandb.init` in the given mode."""
    import wandb

    place.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_save_requirements=False,
        x_stats_pid=spec["pid"], x_transaction_log_flush_interval=1.0, init_timeout=max(1.0, spec["start_seconds"]),
        x_graphql_retry_max=3, finish_timeout=max(1.0, spec["finish_seconds"]))
    about = {**spec["about"], "version": version(), "commit": commit()}
    run = wandb.init(
        mode=mode, dir=str(place), project=spec["project"], entity=spec["entity"], id=known, resume="allow",
        name=spec["name"], group=spec["group"], job_type=spec["kind"], tags=[one[:TAG] for one in spec["overrides"]],
        settings=settings, config={**spec["config"], "about": about, "chosen": group_choices(spec["overrides"])})
    run.define_metric("images")
    run.define_metric("*", step_metric="images")
    if text := changes():
        diff = Path(run.dir) / "changes.diff"
        diff.write_text(text)
        run.save(str(diff), base_path=run.dir, policy="now")
    return run


def group_choices(overrides: list[str]) -> dict[str, str]:
    """The choice in each group, such as model=unet; the config itself holds only the values behind it."""
    pairs = (one.lstrip("+~").partition("=")[::2] for one in overrides)
    return {name: value for name, value in pairs if "." not in name}


def follow(run: wandb.Run, spec: Spec, done: int) -> Spec:
    """Passes on the records after step ``done`` as they come; the run's report of its end, or that it was killed."""
    follower = Follower(run, Path(spec["folder"]), done=done, checkpoints=spec["checkpoints"])
    said, full = None, False
    while said is None:
        ready, _, _ = select.select([sys.stdin], [], [], POLL)
        if ready:
            line = sys.stdin.buffer.readline()
            said = json.loads(line) if line.endswith(b"\n") else {"how": "killed", "code": 137, "error": "", "records": []}
        if shutil.disk_usage(run.dir).free >= FULL:
            follower.read()
        elif not full:
            full = True
            say(f"the disk of {run.dir} is full; metrics.jsonl holds what is missing there")
    if said["how"] != "killed" and not full:
        follower.flush()
    return said


def finish(run: wandb.Run, spec: Spec, said: Spec) -> None:
    """Passes on the results of finished work, and ends W&B's run as the run itself has ended."""
    import wandb

    for path in map(Path, said["records"]):
        content = json.loads(path.read_text())
        values, pictures = summary_and_pictures(content, path)
        if told := config_of(content):
            run.config.update(told, allow_val_change=True)  # type: ignore[no-untyped-call]
        run.log({name: wandb.Image(str(picture)) for name, picture in pictures.items() if picture.exists()} | charted(values))
        run.summary.update(values)
    if said["how"] == "stopped":
        run.mark_preempting()
    if said["how"] == "failed":
        run.alert(title=f"{run.name} failed", text=said["error"], level="ERROR")
    run.finish(exit_code=said["code"])


def charted(values: Spec) -> Spec:
    """The evaluated values in a summary and the images seen, which are also logged, as W&B charts only what is."""
    return {name: value for name, value in values.items() if name.startswith("evaluate/") or name == "images"}


if __name__ == "__main__":
    main()
