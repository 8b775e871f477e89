#!/usr/bin/env python3
"""Weights & Biases beside a run, W&B's side: mirrors the run's metrics.jsonl until the run says how it has ended.

`launch/track.py` starts it and writes two lines of JSON to its standard input, what is to be mirrored and, at the end, how
it went; an end without a word is a kill. Nothing here can reach the run.
"""
from __future__ import annotations

import json
import logging
import netrc
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

os.environ["WANDB_SILENT"] = "true"  # read when wandb is imported
sys.path[0] = str(Path(__file__).resolve().parents[1])

import wandb

from ebm.files import write_atomically
from launch.history import rows, shown

POLL = 2.0  # seconds
FULL = 20 << 20  # bytes free below which nothing more is written
TAG = 64  # characters that W&B takes
Spec = dict[str, Any]


def main() -> None:
    """Mirrors one run; what goes wrong is said in one line, once."""
    os.nice(10)
    logging.raiseExceptions = False  # on a full disk wandb's own log would print a traceback for each of its lines
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ.pop("WANDB_MODE", None)  # it has been read, and may be "auto", which is our word and not W&B's
    spec = json.loads(sys.stdin.buffer.readline())
    try:
        run = begin(spec)
        how = follow(run, spec)
        finish(run, spec, how)
    except Exception as error:  # whatever it is: the run goes on
        say(f"W&B: {type(error).__name__}: {' '.join(str(error).split())}; the run goes on, metrics.jsonl holds everything")
        sys.exit(1)


def say(text: str) -> None:
    """One line on the run's terminal."""
    print(f"\n{text}", file=sys.stderr, flush=True)


def begin(spec: Spec) -> wandb.Run:
    """W&B's run: online where that is asked for and can be, else offline."""
    mode, why = spec["mode"], ""
    if mode == "auto" or (mode == "online" and not key()):
        mode, why = ("online", "") if key() else ("offline", " (no key is known)")
    if mode == "online":
        try:
            return init(spec, "online")
        except wandb.errors.Error as error:
            wandb.teardown()  # else its service holds the run's id to be in use
            why = f" ({' '.join(str(error).split())})"
    if spec["kind"] == "train":
        say(f"W&B: offline{why}; python tools/sync.py {os.path.relpath(spec['folder'])} uploads it")
    return init(spec, "offline")


def key() -> bool:
    """Whether a key for the server is known; it is never asked for."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def init(spec: Spec, mode: Literal["online", "offline"]) -> wandb.Run:
    """The run in one mode, always of the same id for the same folder and name."""
    folder = Path(spec["folder"])
    place = Path(os.environ.get("WANDB_DIR") or folder)
    place.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_save_requirements=False,
        x_stats_pid=spec["pid"], x_transaction_log_flush_interval=1.0, init_timeout=spec["start_seconds"],
        x_graphql_retry_max=3, finish_timeout=spec["finish_seconds"])
    run = wandb.init(
        mode=mode, dir=str(place), project=spec["project"], entity=spec["entity"], id=identity(folder, spec["name"]),
        resume="allow", name=spec["name"], group=spec["group"], job_type=spec["kind"],
        tags=[one[:TAG] for one in spec["overrides"]], settings=settings,
        config={**spec["config"], "about": spec["about"], "chosen": chosen(spec["overrides"])})
    run.define_metric("images")
    run.define_metric("*", step_metric="images")
    if spec["changes"]:
        diff = Path(run.dir) / "changes.diff"
        diff.write_text(spec["changes"])
        run.save(str(diff), base_path=run.dir, policy="now")
    return run


def chosen(overrides: list[str]) -> dict[str, str]:
    """What was chosen of each group, such as model=unet: the config itself holds only what the choice stands for."""
    pairs = (one.lstrip("+").split("=", 1) for one in overrides)
    return {name: value for name, value in pairs if "." not in name}


def identity(folder: Path, name: str) -> str:
    """The run's id at W&B, made up once and kept in its folder."""
    path = folder / "track.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        known[name] = f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:80]}-{uuid.uuid4().hex[:8]}"
        write_atomically(path, json.dumps(known, indent=1).encode())
    return known[name]


def follow(run: wandb.Run, spec: Spec) -> Spec:
    """Passes on the records as they come; what the run has said of its end, or that it was killed."""
    folder = Path(spec["folder"])
    done = last_step(Path(run.dir).parent.parent, run.id) if spec["kind"] == "train" else -1
    reader, said, full = Reader(folder / "metrics.jsonl"), None, False
    while said is None:
        ready, _, _ = select.select([sys.stdin], [], [], POLL)
        if ready:
            line = sys.stdin.buffer.readline()
            said = json.loads(line) if line.endswith(b"\n") else {"how": "killed", "code": 137, "error": "", "records": []}
        if spec["kind"] != "train":
            continue
        if shutil.disk_usage(run.dir).free < FULL:
            if not full:
                say(f"W&B: the disk of {run.dir} is full; what comes is not written there, but in metrics.jsonl")
            full = True
            continue
        for record in reader.new():
            pass_on(run, record, spec, done)
    return said


def pass_on(run: wandb.Run, record: dict[str, Any], spec: Spec, done: int) -> None:
    """One record of metrics.jsonl, unless W&B has it from an earlier start."""
    folder, step = Path(spec["folder"]), record.get("step", 0)
    if record["event"] == "start":
        told = {name: value for name, value in record.items() if name != "event"}
        run.config.update({"start": told}, allow_val_change=True)  # type: ignore[no-untyped-call]
    if step <= done:
        return
    if record["event"] == "warning":
        run.alert(title="no useful guidance", text=record["words"])
    if values := rows(record):
        run.log({**values, "images": record["images"]}, step=step)
    if record["event"] == "preview" and (folder / record["path"]).exists():
        run.log({"preview": wandb.Image(str(folder / record["path"])), "images": record["images"]}, step=step)
    found = sorted((folder / "checkpoints").glob(f"step-{step:09d}-*"))
    if record["event"] == "save" and spec["checkpoints"] and found:
        artifact = wandb.Artifact(f"{run.id}-checkpoint", type="checkpoint", metadata={"step": step})
        artifact.add_file(str(found[0]))
        run.log_artifact(artifact)


def finish(run: wandb.Run, spec: Spec, said: Spec) -> None:
    """Passes on what finished work has left, and ends W&B's run as the run itself has ended."""
    for path in map(Path, said["records"]):
        values, pictures = shown(json.loads(path.read_text()), path)
        run.log({name: wandb.Image(str(picture)) for name, picture in pictures.items() if picture.exists()})
        run.summary.update(values)
    if said["how"] == "stopped":
        run.mark_preempting()
    if said["how"] == "failed":
        run.alert(title=f"{run.name} failed", text=said["error"], level="ERROR")
    run.finish(exit_code=said["code"])


def last_step(place: Path, name: str) -> int:
    """The last step that W&B's files of earlier starts hold, read by W&B's own reader; −1 where there are none."""
    last = -1
    for path in sorted(place.glob(f"*run-*-{name}")):
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        text = subprocess.run(inspect, capture_output=True, text=True, check=False).stdout
        last = max([last, *(json.loads(line)["history"]["step"]["num"] for line in text.splitlines() if '"history"' in line)])
    return last


class Reader:
    """The lines of a file that grows, each once and whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The records since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.place += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "event" in record:
                    yield record


if __name__ == "__main__":
    main()
