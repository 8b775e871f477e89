"""What W&B receives: a run's records as rows of values, each step whole and once, and the results of finished work."""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb

AXES = ("event", "step", "images", "time", "path", "how", "words")  # fields of a record that are not values
SUBJECT = ("sampler", "n", "nfe", "seconds", "step", "ema")  # of images drawn, what a table of runs shows beside their figures
Record = dict[str, Any]


class Follower:
    """Reads a run's metrics.jsonl as it grows and passes it on to W&B, except what W&B has from earlier starts.

    A step is held back until a later one comes or the run ends: a run that is killed within it will repeat it.
    """

    def __init__(self, run: wandb.Run, folder: Path, *, done: int, checkpoints: bool) -> None:
        self.run, self.folder, self.done, self.checkpoints = run, folder, done, checkpoints
        self.reader = Reader(folder / "metrics.jsonl")
        self.held: list[Record] = []  # of one step

    def read(self) -> None:
        """Passes on all completed steps."""
        for record in self.reader.new():
            if record["event"] == "start":
                self.run.config.update({"start": {name: value for name, value in record.items() if name != "event"}},
                                       allow_val_change=True)  # type: ignore[no-untyped-call]
            if record.get("step", 0) <= self.done or record["event"] in ("start", "end"):
                continue
            if self.held and record["step"] > self.held[0]["step"]:
                self.flush()
            self.held.append(record)

    def flush(self) -> None:
        """Passes on the step that is held back."""
        import wandb

        held, self.held = self.held, []
        if not held:
            return
        row: dict[str, Any] = {"images": held[0]["images"]}
        for record in held:
            row |= values_of(record)
            if record["event"] == "preview" and (self.folder / record["path"]).exists():
                row["preview"] = wandb.Image(str(self.folder / record["path"]))
            if record["event"] == "warning":
                self.run.alert(title="no useful guidance", text=record["words"])
            if record["event"] == "save" and self.checkpoints:
                self.keep(record["step"])
        self.run.log(row, step=held[0]["step"])

    def keep(self, step: int) -> None:
        """Uploads the checkpoint of a step, unless training has removed it by now."""
        import wandb

        for path in (self.folder / "checkpoints").glob(f"step-{step:09d}-*"):
            artifact = wandb.Artifact(f"{self.run.id}-checkpoint", type="checkpoint", metadata={"step": step})
            artifact.add_file(str(path))
            self.run.log_artifact(artifact)


class Reader:
    """Reads the lines of a growing file, each once and whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, 0

    def new(self) -> Iterator[Record]:
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


def values_of(record: Record) -> dict[str, float]:
    """The values of one record of metrics.jsonl, by W&B's names: `train/loss`, `calibration/slope/0.5`, `energy/data/mean`."""
    event, what = record["event"], {name: value for name, value in record.items() if name not in AXES and value is not None}
    if event in ("start", "end", "warning"):
        return {}
    if event == "loss_by_sigma":
        return {f"loss_by_sigma/{record['sigma']:.3g}": what["loss"]} if "loss" in what else {}
    if event == "calibration":
        level = f"{what.pop('sigma'):.3g}"
        return {f"calibration/{name}/{level}": value for name, value in what.items() if name != "seconds"}
    if event == "energy":
        return {f"energy/{record['at']}/{name}": what[name] for name in ("mean", "std") if name in what}
    return {f"{event}/{name}": value for name, value in what.items() if isinstance(value, int | float)}


def summary_and_pictures(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Summary and pictures of a sampling's protocol, a diagnosis or an evaluation, the JSON file at ``path``."""
    if "metric" in content:
        subject, prefix = content["subject"], f"evaluate/{content['metric']}"
        values = {name: subject[name] for name in ("images", *SUBJECT) if name in subject}
        values |= {f"{prefix}/{name}": value for name, value in content["values"].items() if value is not None}
        return values, {f"{prefix}/{name}": path.parent / file for name, file in content["pictures"].items()}
    if "verdicts" in content:
        end = content.get("end", {})
        values = {"verdicts": content["verdicts"], "sampler": content.get("sampler"), "trusted": content.get("trusted"),
                  "distance": end.get("distance"), "words": path.with_suffix(".txt").read_text().strip()}
        return values, {"diagnosis": path.with_suffix(".png")}
    pictures = {"samples": path.with_suffix(".png")}
    if film := content.get("trajectory"):
        pictures["trajectory"] = path.parent / film["path"]
    return {name: content[name] for name in SUBJECT if name in content}, pictures


def config_of(content: dict[str, Any]) -> dict[str, Any]:
    """Additions to W&B's config: for an evaluation all that its values depend on, else nothing."""
    return {"evaluation": {name: content[name] for name in ("metric", "measure", "subject")}} if "metric" in content else {}


def last_step(segment: Path) -> int:
    """The last step in one of W&B's folders, by W&B's own reader; −1 if there is none."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
    with subprocess.Popen(inspect, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as reading:
        assert reading.stdout is not None
        steps = (int(json.loads(line)["history"]["step"]["num"]) for line in reading.stdout if '"type":"history"' in line)
        return max(steps, default=-1)
