"""Collects everything the page shows about a study or a run into one plain object."""
from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from launch.study import cluster, here
from launch.study.point import Point, locate, read_study
from tools.review import columns, config
from tools.review.album import Album, Share
from tools.review.records import Problem
from tools.review.run import Limits, put_run
from tools.review.state import OVER

Tree = list[tuple[Point, list[Point]]]  # each run with its samplers


def collect(folder: Path, *, album: Album) -> dict[str, Any]:
    """Everything the page shows; raises FileNotFoundError for a folder of neither, ValueError for a damaged study.json."""
    album.clear()
    if (folder / "study.json").exists():
        study = read_study(folder)
        tree, numbers = run_tree(study, folder)
    elif (folder / "config.yaml").exists():
        study = {}
        tree, numbers = [(Point("train", folder.resolve().name, folder, known_overrides(folder.resolve())), [])], {}
    else:
        raise FileNotFoundError(f"folder: {folder} holds neither study.json nor config.yaml; give the folder of a study "
                                "(sweep.py names it) or of a run")
    jobs = ask_jobs(tree, numbers, folder, album)
    limits = Limits(runs=max(1, len(tree)))
    shares = [Share(album.limit // len(tree), samplings=len(samplers)) for _, samplers in tree]
    bar = tqdm(zip(tree, shares, strict=True), total=len(tree), desc="report", unit="run", leave=False,
               disable=len(tree) < 20 or None)
    runs = [put_run(point, samplers, jobs=jobs, album=album, share=mine, limits=limits)
            for (point, samplers), mine in bar]
    name_groups(runs)
    return {
        "name": folder.resolve().name, "folder": str(folder.resolve()), "kind": "study" if study else "run",
        "created": str(study.get("created", "")), "code": str(study.get("code", "")),
        "command": [str(one) for one in study.get("command", [])], "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        **columns.tabulate(runs), "runs": runs, "notes": notes(shares, limits, runs),
        "problems": [{"where": shorten_path(problem.where, folder), "what": problem.what} for problem in album.problems]}


def run_tree(study: dict[str, Any], folder: Path) -> tuple[Tree, dict[Path, str]]:
    """The runs with their samplers, and the job of each by its folder."""
    tree: dict[Path, tuple[Point, list[Point]]] = {}
    by_label: dict[str, Path] = {}
    numbers: dict[Path, str] = {}
    for one in study["points"]:
        place = locate(Path(str(one["folder"])), folder)
        numbers[place] = str(one["job"])
        overrides = tuple(map(str, one["overrides"]))
        if one["kind"] == "train":
            tree[place] = (Point("train", str(one["label"]), place, overrides, int(one["steps"])), [])
            by_label[str(one["label"])] = place
            continue
        run = next((parent for parent in place.parents if parent in tree), by_label.get(str(one["of"])))
        if run in tree:
            tree[run][1].append(Point("sample", str(one["label"]), place, overrides, of=tree[run][0]))
    return list(tree.values()), numbers


def known_overrides(run: Path) -> tuple[str, ...]:
    """The overrides of a run, if a study in the same store records them."""
    for path in sorted(run.parent.parent.glob("studies/*/study.json")):
        try:
            found = [one["overrides"] for one in read_study(path.parent)["points"] if Path(one["folder"]).name == run.name]
        except (OSError, ValueError):
            continue
        if found:
            return tuple(map(str, found[0]))
    return ()


def ask_jobs(tree: Tree, numbers: dict[Path, str], folder: Path, album: Album) -> dict[Path, cluster.Job]:
    """The jobs' states by their points' folders: from SLURM, if it is installed, or from this machine's own processes."""
    every = [point for run, samplers in tree for point in (run, *samplers)]
    jobs = {point.folder: cluster.Job(state=here.state(folder, point, number)) for point in every
            if (number := numbers.get(point.folder, "")).startswith(here.LOCAL)}
    wanted = {place: number for place, number in numbers.items() if number[:1].isdigit()}
    if not wanted or not cluster.available():
        return jobs
    try:
        known = cluster.jobs(wanted.values())
    except (OSError, ValueError) as error:
        album.problems.append(Problem("SLURM", f"does not answer: {error}"))
        return jobs
    return jobs | {place: known[number] for place, number in wanted.items() if number in known}


def name_groups(runs: Sequence[dict[str, Any]]) -> None:
    """Gives each run the name of the group within which its loss is comparable, "" if there is only one group."""
    groups: list[dict[str, str]] = []
    for run in runs:
        if run["comparable"] and run["comparable"] not in groups:  # one that waits has no config yet
            groups.append(run["comparable"])
    names = config.group_names(groups) if len(groups) > 1 else [""] * len(groups)
    for run in runs:
        group = run.pop("comparable")
        run["group"] = names[groups.index(group)] if group else ""


def notes(shares: Sequence[Share], limits: Limits, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences that say what the page shows only in part."""
    said = []
    if any(len(run["train"]["x"]) >= limits.points - 4 for run in runs):
        said.append(f"Curves are thinned to at most {limits.points} points; their ends and spikes are kept.")
    if left_out := sum(share.left_out for share in shares):
        said.append(f"{left_out} pictures are left out to keep the page small; the run folders hold all of them.")
    if shares:
        said.append(f"Grids show the first {shares[0].tiles} images, trajectories up to {shares[0].frames} steps.")
    if any(run["values"]["hours"] is not None for run in runs):
        said.append("Device-hours count each start up to its last record; work that was lost and repeated is not included.")
    return said


def shorten_path(path: str, folder: Path) -> str:
    """A path relative to the folder or its store, if it lies within them."""
    for base in (folder.resolve(), *folder.resolve().parents[1:2]):
        if path.startswith(f"{base}/"):
            return path.removeprefix(f"{base}/")
    return path


def is_over(content: dict[str, Any]) -> bool:
    """Whether no run or sampling is waiting or running any more."""
    return all(one["state"] in OVER for run in content["runs"] for one in (run, *run["samplers"]))
