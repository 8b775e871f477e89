"""The page as a report at W&B: the content that tools/review/collect.py gives, as blocks of wandb-workspaces.

Only `publish` uses the network. Of the collected content it reads `name`, `kind`, `parameters`, `notes`,
`numbers`, `protocols` and, of each run, `label`, `folder`, `state`, `why`, `group`, `config`, `values`, `warnings`,
`diagnoses`, `samplers` and `evaluations`.
"""
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2.interface as wr
from wandb_workspaces import expr

MOST = 6  # parameters with a panel of their own; W&B's pages grow slow with more
WIDTH = 24  # columns of W&B's grid
CHOSEN = "chosen"  # where launch/tracking/mirror.py keeps in W&B's config what `schedule=karras` and its like have chosen
Study = dict[str, Any]


def target(text: str) -> tuple[str, str]:
    """Entity and project of `entity/project`; raises ValueError for anything else."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise ValueError(f"--wandb: {text!r} is not accepted; it must be entity/project")
    entity, project = text.split("/")
    return entity, project


def report(study: Study, *, entity: str, project: str) -> wr.Report:
    """The report, not yet published; raises ValueError for a folder's name that W&B's filters can't express."""
    for name in (study["name"], *(Path(run["folder"]).name for run in study["runs"])):
        if not re.fullmatch(r"[\w.+ -]+", name):  # filters are parsed from text, which quotes nothing
            raise ValueError(f"folder: the name {name!r} is not accepted; W&B's filters allow letters, digits and . _ + -")
    blocks = [wr.TableOfContents(), wr.H2("Outcome"), wr.MarkdownBlock(outcome(study)), *troubles(study),
              wr.H2("Training"), training(study), *parameters(study),
              wr.H2("Calibration"), grid([runs_of(study, "train", name="training")], calibration()),
              *evaluation(study), wr.H2("Pictures"), *pictures(study)]
    return wr.Report(entity=entity, project=project, title=f"{study['kind'].capitalize()} {study['name']}", width="fluid",
                     description=count_text(Counter(run["state"] for run in study["runs"])), blocks=blocks)


def publish(made: wr.Report) -> str:
    """Saves the report at W&B; its address. Raises ValueError without an API key, ConnectionError if W&B refuses."""
    os.environ.pop("WANDB_MODE", None)  # that runs work offline is no reason not to do what is asked for here
    try:
        if not wandb.login(prompt=False):  # else saving would ask the user
            raise ValueError("--wandb: no API key for W&B; set WANDB_API_KEY or run `wandb login` once")
        for block in made.blocks:
            for runset in block.runsets if isinstance(block, wr.PanelGrid) else ():
                runset.entity, runset.project = made.entity, made.project  # from here on, serialising asks the server
        made.save()
        return str(made.url)
    except wandb.errors.Error as error:
        raise ConnectionError(f"--wandb: {' '.join(str(error).split())}") from error


def outcome(study: Study) -> str:
    """The number of runs, and the best of each group with comparable losses, as Markdown."""
    lines = [count_text(Counter(run["state"] for run in study["runs"])) + "."]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in study["runs"]:
        if run["values"].get("held_out") is not None:
            groups.setdefault(run["group"], []).append(run)
    for group, runs in groups.items():
        best = min(runs, key=lambda run: float(run["values"]["held_out"]))
        among = f"of {len(runs)} run{'s' * (len(runs) > 1)}{f' with {escape(group)}' if group else ''}"
        lines.append(f"- Lowest held-out loss {among}: **{escape(best['label'])}**, {best['values']['held_out']:.4g}"
                     f" at {best['values'].get('images') or 0:,} images.")
    if len(groups) > 1:
        lines.append("\nLosses of different schedules, weightings or data are not comparable; each group has its own best.")
    verdicts = Counter(verdict for run in study["runs"] for one in (run, *run["samplers"])
                       for found in one["diagnoses"] for verdict in found["verdicts"])
    if verdicts:
        lines.append(f"\nVerdicts of the doctor: {count_text(verdicts)}.")
    return "\n".join(lines)


def troubles(study: Study) -> list[Any]:
    """The failures with their reasons, and the warnings of training; empty if there are neither."""
    failed, warned = list[str](), list[str]()
    for run in study["runs"]:
        for one in (run, *run["samplers"]):
            if one["state"] == "failed":
                name = escape(run["label"] if one is run else f"{run['label']} × {one['label']}")
                failed.append(f"- **{name}**: {escape(one['why']) or 'no reason recorded'}")
        warned += [f"- **{escape(run['label'])}**: {escape(words)}" for words in dict.fromkeys(run["warnings"])]
    found: list[Any] = []
    for heading, lines in (("Failed", failed), ("Warnings", warned)):
        if lines:
            found += [wr.H2(heading), wr.MarkdownBlock("\n".join(lines))]
    return found


def training(study: Study) -> wr.PanelGrid:
    """Losses against images, with a set of runs for each group with comparable losses."""
    groups = list(dict.fromkeys(run["group"] for run in study["runs"]))
    names = [[Path(run["folder"]).name for run in study["runs"] if run["group"] == group] for group in groups]
    sets = [runs_of(study, "train", name=group, only=only) for group, only in zip(groups, names, strict=True)]
    sets = sets if len(groups) > 1 else [runs_of(study, "train", name="training")]
    panels = [line("train/loss", log=True), line("held_out/loss", log=True), line("train/grad_norm", log=True),
              line("train/learning_rate"), line("train/images_per_s"), line("loss_by_sigma/.*", several=True, log=True),
              line("energy/.*/mean", several=True)]
    return grid(sets, [*panels, wr.RunComparer(diff_only="split")])


def parameters(study: Study) -> list[Any]:
    """The effect of the varying parameters: together, their importance, and the losses by each; empty if none varies."""
    keys = {name: key_of(name, study["runs"]) for name in study["parameters"]}
    if not keys or len(study["runs"]) < 2:
        return []
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=name) for name, key in keys.items()]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("held_out/loss"), log=True))
    whole = [wr.ParallelCoordinatesPlot(columns=columns), wr.ParameterImportancePlot(with_respect_to="held_out/loss")]
    blocks = [wr.H2("Parameters"), grid([runs_of(study, "train", name="training")], whole, columns=2)]
    for name, key in list(keys.items())[:MOST]:
        grouped = runs_of(study, "train", name=f"by {name}", by=[f"config.{key}"])
        losses = [line("train/loss", log=True), line("held_out/loss", log=True)]
        blocks += [wr.H3(f"By {name}"), grid([grouped], losses, columns=2)]
    if len(keys) > MOST:
        blocks.append(wr.P(f"{len(keys) - MOST} more parameters vary; the parallel coordinates above include them."))
    return blocks


def calibration() -> list[Any]:
    """Where the score can be trusted, by noise level, against images."""
    return [line(f"calibration/{name}/.*", several=True) for name in ("explained", "slope", "gain")]


def evaluation(study: Study) -> list[Any]:
    """A table of the values of each protocol, and bars of those that are comparable; empty if nothing was evaluated."""
    tables: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for run in study["runs"]:
        for one in run.get("evaluations", ()):
            tables.setdefault(one["protocol"], []).append((run["label"], one))
    if not tables:
        return []
    text = "\n\n".join(table(study["protocols"][index], rows) for index, rows in sorted(tables.items()))
    if any(about["count"] > 1 for about in study["protocols"]):
        text += "\n\nValues of different protocols are not comparable; each protocol has its own table."
    blocks: list[Any] = [wr.H2("Evaluation"), wr.MarkdownBlock(text)]
    keys = [one["key"].split(".", 1) for one in study["numbers"] if "mixed" in one and not one["mixed"]]
    bars = [wr.BarPlot(title=figure, metrics=[f"evaluate/{metric}/{figure}"]) for metric, figure in keys]
    if bars and study["kind"] == "study":  # a run by itself is in no group by which its evaluations could be found
        blocks.append(grid([runs_of(study, "evaluate", name="evaluations")], bars))
    return blocks


def table(about: dict[str, Any], rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The values of one protocol as Markdown, with what each was measured on."""
    figures = list(dict.fromkeys(name for _, one in rows for name in one["values"]))
    head = " | ".join(["run", *map(escape, figures), "measured on"])
    lines = [f"**{escape(about['metric'])}** ({escape(about['line'])})", "", f"| {head} |", "|" + " --- |" * (len(figures) + 2)]
    for label, one in rows:
        found = [one["values"].get(name, (None, None)) for name in figures]
        cells = ["" if value is None else f"{value:.5g}" + (f" ± {error:.2g}" if error is not None else "")
                 for value, error, *_ in found]
        lines.append(f"| {escape(label)} | " + " | ".join([*cells, escape(one["subject"])]) + " |")
    return "\n".join(lines)


def pictures(study: Study) -> list[Any]:
    """Previews of training; samples, trajectories and diagnoses if there are any."""
    everything = [one for run in study["runs"] for one in (run, *run["samplers"])]
    blocks = [grid([runs_of(study, "train", name="training")], [media("preview")], columns=1)]
    if study["kind"] != "study":  # a run by itself is in no group by which its samplings could be found
        return blocks
    if any(run["samplers"] for run in study["runs"]):
        blocks.append(grid([runs_of(study, "sample", name="samples")], [media("samples"), media("trajectory")], columns=1))
    if any(one["diagnoses"] for one in everything):
        blocks.append(grid([runs_of(study, "diagnose", name="diagnoses")], [media("diagnosis")], columns=1))
    return blocks


def runs_of(study: Study, kind: str, *, name: str, only: Sequence[str] = (), by: Sequence[str] = ()) -> wr.Runset:
    """The study's runs of one job type, or some of them.

    Trainings are found by name, as an earlier study may have run them, samplings and diagnoses by the study, their group.
    """
    if kind == "train":
        which = expr.Metric("Name").isin(list(only) or [Path(run["folder"]).name for run in study["runs"]])
    else:
        which = expr.Metric("Group") == study["name"]
    return wr.Runset(name=name, filters=expr.And(which, expr.Metric("JobType") == kind), groupby=list(by))


def line(metric: str, *, several: bool = False, log: bool = False) -> wr.LinePlot:
    """A metric against images, or several metrics whose names match one expression."""
    title = metric.replace("/.*", "") if several else metric
    return wr.LinePlot(title=title, x="images", y=[] if several else [metric], metric_regex=metric if several else None,
                       log_y=log or None, title_x="images")


def media(key: str) -> wr.MediaBrowser:
    """A picture of each run, by step."""
    return wr.MediaBrowser(title=key, media_keys=[key], num_columns=3)


def grid(runsets: Sequence[wr.Runset], panels: Sequence[Any], *, columns: int = 3) -> wr.PanelGrid:
    """Panels side by side, all of one size."""
    width, height = WIDTH // columns, 8 if columns > 1 else 12
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=index % columns * width, y=index // columns * height, w=width, h=height)
    return wr.PanelGrid(runsets=list(runsets), panels=list(panels))


def key_of(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """The key of W&B's config that an override sets: a value's own, or that of a chosen part."""
    return name if "." in name or any(name in run["config"] for run in runs) else f"{CHOSEN}.{name}"


def count_text(counter: Counter[str]) -> str:
    """Counts as text, most frequent first: `3 done, 1 failed`."""
    return ", ".join(f"{number} {escape(name)}" for name, number in counter.most_common()) or "no runs"


def escape(text: str) -> str:
    """A text in one line, with the special characters of Markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!$&])", r"\\\1", " ".join(text.split()))
