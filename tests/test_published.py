"""The report for W&B: built without a network, what it says and shows, and published to a server of the test's own."""
from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # wandb-workspaces is written for an older pydantic
    pytest.importorskip("wandb_workspaces.reports.v2.interface")

import wandb_workspaces.reports.v2.interface as wr
from conftest import ROOT
from wandb_server import Server, serving
from wandb_workspaces.reports.v2.internal import ReportViewspec

from tools.review.published import escape, report, target


def run(name: str, *, group: str = "", state: str = "done", held_out: float | None = None, **more: Any) -> dict[str, Any]:
    values = {"held_out": held_out, "images": 2000}
    return {"label": name, "folder": f"/runs/shapes-{name}", "state": state, "why": "", "group": group, "config": {"seed": "0"},
            "values": values, "warnings": [], "diagnoses": [], "samplers": [], **more}


def study(*runs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "2026-01-01-sweep", "kind": "study", "parameters": [], "runs": list(runs), **more}


FULL = study(
    run("geometric cnn", group="Geometric", held_out=0.5, samplers=[
        {"label": "heun", "state": "failed", "why": "no *disk*", "diagnoses": []},
        {"label": "langevin", "state": "done", "why": "", "diagnoses": [{"verdicts": ["frozen", "blind"]}]}]),
    run("geometric unet", group="Geometric", held_out=0.25, diagnoses=[{"verdicts": ["healthy"]}]),
    run("karras unet", group="Karras", held_out=0.75, warnings=["the loss falls\nwithout guidance"] * 2),
    run("karras cnn", group="Karras", state="failed", why="rank 1 on n2: loss is <nan> at σ = 0.1"),
    parameters=["schedule", "model/head", "sampler.steps", "seed"])


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may look outside; wandb's own service is one, too."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


def built(content: dict[str, Any]) -> dict[str, Any]:
    """The report as it would be sent, as JSON."""
    made = report(content, entity="me", project="ebm")
    spec: dict[str, Any] = json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return spec


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [panel["config"] for grid in grids(spec) for panel in grid["panelBankSectionConfig"]["panels"]
            if panel["viewType"] == kind]


def words(spec: dict[str, Any]) -> str:
    return "\n\n".join(block["content"] for block in spec["spec"]["blocks"] if block["type"] == "markdown-block")


def filters(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each set of runs, what it asks for by key."""
    return [{one["key"]["name"]: one["value"] for one in runset["filters"]["filters"]} for grid in grids(spec)
            for runset in grid["runSets"]]


@pytest.mark.parametrize("text", ["me", "me/", "/ebm", "me/ebm/x", "me ebm", "https://wandb.ai/me/ebm", ""])
def test_where_to_publish_is_entity_and_project(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--wandb: {text!r} is not accepted; it must be entity/project")):
        target(text)
    assert target("me-too/ebm_2.0") == ("me-too", "ebm_2.0")


def test_sections_come_in_order_of_what_a_reader_asks() -> None:
    headings = [block["children"][0]["text"] for block in built(FULL)["spec"]["blocks"] if block["type"] == "heading"]
    assert headings == ["Outcome", "Failed", "Warnings", "Training", "Parameters", "By schedule", "By model/head",
                        "By sampler.steps", "By seed", "Calibration", "Pictures"]


def test_the_text_names_the_best_of_each_group_what_failed_and_the_verdicts() -> None:
    text = words(built(FULL))
    assert "3 done, 1 failed." in text
    assert "- Lowest held-out loss of 2 runs with Geometric: **geometric unet**, 0.25 at 2,000 images." in text
    assert "- Lowest held-out loss of 1 run with Karras: **karras unet**, 0.75" in text
    assert "are not comparable" in text
    assert "Verdicts of the doctor: 1 healthy, 1 frozen, 1 blind." in text or "1 frozen, 1 blind, 1 healthy" in text
    assert "- **karras cnn**: rank 1 on n2: loss is \\<nan\\> at σ = 0.1" in text
    assert "- **geometric cnn × heun**: no \\*disk\\*" in text
    assert text.count("the loss falls without guidance") == 1


def test_where_nothing_failed_or_varies_nothing_is_said_of_it() -> None:
    spec = built(study(run("a", held_out=0.5), run("b", held_out=0.4)))
    headings = [block["children"][0]["text"] for block in spec["spec"]["blocks"] if block["type"] == "heading"]
    assert headings == ["Outcome", "Training", "Calibration", "Pictures"]
    assert "are not comparable" not in words(spec)
    assert built(study())["displayName"] == "Study 2026-01-01-sweep"  # a study that has not begun


def test_curves_are_drawn_against_images_under_the_names_that_the_mirror_logs() -> None:
    drawn = panels(built(FULL), "Run History Line Plot")
    assert {panel["xAxis"] for panel in drawn} == {"images"}
    named = {name for panel in drawn for name in panel.get("metrics", [])}
    assert {"train/loss", "held_out/loss"} <= named
    from launch.tracking.history import values_of

    records = [{"event": "calibration", "sigma": 0.5, "explained": 0.1, "slope": 1.0, "gain": 0.2, "step": 1, "images": 8},
               {"event": "loss_by_sigma", "sigma": 0.5, "loss": 1.0, "share": 0.1, "step": 1, "images": 8},
               {"event": "energy", "at": "data", "sigma": 0.5, "mean": 1.0, "std": 0.1, "step": 1, "images": 8}]
    logged = [name for record in records for name in values_of(record)]
    patterns = [panel["metricRegex"] for panel in drawn if panel.get("metricRegex")]
    assert len(patterns) == 5
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in logged), pattern
    assert all(panel["yLogScale"] for panel in drawn if panel.get("metrics") in (["train/loss"], ["held_out/loss"]))


def test_sets_of_runs_are_the_studys_and_those_whose_losses_compare() -> None:
    spec = built(FULL)
    trainings = {Path(one["folder"]).name for one in FULL["runs"]}
    assert all({*one["displayName"]} <= trainings for one in filters(spec) if one["jobType"] == "train")
    assert all(one["group"] == "2026-01-01-sweep" for one in filters(spec) if one["jobType"] != "train")
    assert {one["jobType"] for one in filters(spec)} == {"train", "sample", "diagnose"}
    first = grids(spec)[0]["runSets"]
    assert [one["name"] for one in first] == ["Geometric", "Karras"]
    assert filters(spec)[0]["displayName"] == ["shapes-geometric cnn", "shapes-geometric unet"]
    assert all("project" not in runset for grid in grids(spec) for runset in grid["runSets"])  # that would ask the server


def test_what_varies_has_coordinates_importance_and_groups() -> None:
    spec = built(FULL)
    (coordinates,) = panels(spec, "Parallel Coordinates Plot")
    assert [one["accessor"] for one in coordinates["columns"]] == [
        "config:chosen.value.schedule", "config:chosen.value.model/head", "config:sampler.value.steps", "config:seed.value",
        "summary:held_out/loss"]
    assert panels(spec, "Parameter Importance")[0]["targetKey"] == "held_out/loss"
    grouped = [runset["grouping"][0]["name"] for grid in grids(spec) for runset in grid["runSets"] if runset["grouping"]]
    assert grouped == ["chosen.value.schedule", "chosen.value.model/head", "sampler.value.steps", "seed.value"]


def test_pictures_are_those_that_there_can_be() -> None:
    assert [panel["mediaKeys"] for panel in panels(built(FULL), "Media Browser")] == [
        ["preview"], ["samples"], ["trajectory"], ["diagnosis"]]
    assert [panel["mediaKeys"] for panel in panels(built(study(run("a"))), "Media Browser")] == [["preview"]]


def test_evaluations_are_tables_by_protocol_and_bars_of_what_ranks() -> None:
    def evaluated(protocol: int, fid: float) -> dict[str, Any]:
        return {"metric": "quality", "protocol": protocol, "values": {"fid": [fid, 0.5, None]}, "subject": "heun 35 NFE"}

    about = {"metric": "quality", "line": "n 50,000 · reference cifar10", "count": 1}
    numbers = [{"key": "held_out"}, {"key": "quality.fid", "mixed": False}]
    one = study(run("a", evaluations=[evaluated(0, 12.0)]), run("b", evaluations=[evaluated(0, 13.0)]), protocols=[about],
                numbers=numbers)
    spec = built(one)
    text = words(spec)
    assert "**quality** (n 50,000 · reference cifar10)" in text
    assert "| a | 12 ± 0.5 | heun 35 NFE |" in text
    assert [panel["metrics"] for panel in panels(spec, "Bar Chart")] == [["evaluate/quality/fid"]]
    assert "evaluate" in {one["jobType"] for one in filters(spec)}
    numbers[1]["mixed"] = True
    spec = built(study(run("a", evaluations=[evaluated(0, 12.0)]), run("b", evaluations=[evaluated(1, 13.0)]),
                       protocols=[about | {"count": 2}, about | {"line": "n 1000", "count": 2}], numbers=numbers))
    assert not panels(spec, "Bar Chart"), "bars rank what doesn't"
    assert "are not comparable" in words(spec)


def test_a_run_by_itself_goes_by_its_name() -> None:
    spec = built(study(run("a"), name="shapes-a", kind="run"))
    assert all(one == {"displayName": ["shapes-a"], "jobType": "train"} for one in filters(spec))
    assert spec["displayName"] == "Run shapes-a"


def test_panels_lie_beside_each_other_within_the_page() -> None:
    for grid in grids(built(FULL)):
        seen: set[tuple[int, int]] = set()
        for panel in grid["panelBankSectionConfig"]["panels"]:
            box = panel["layout"]
            cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
            assert box["x"] + box["w"] <= 24 and seen.isdisjoint(cells)
            seen |= cells


def test_what_is_sent_is_read_back_as_the_same() -> None:
    model = report(FULL, entity="me", project="ebm")._to_model()
    sent = model.model_dump_json(by_alias=True, exclude_none=True)
    again = wr.Report._from_model(ReportViewspec.model_validate_json(sent))._to_model()
    blocks = [json.loads(one.spec.model_dump_json(by_alias=True, exclude_none=True))["blocks"] for one in (model, again)]

    def bare(value: Any) -> Any:
        """Without the names that W&B makes up, and the empty paragraphs that it puts around."""
        if isinstance(value, dict):
            return {key: bare(one) for key, one in value.items() if key not in ("id", "__id__", "ref")}
        return [bare(one) for one in value] if isinstance(value, list) else value

    first, second = ([bare(one) for one in block if one["type"] != "paragraph"] for block in blocks)
    assert [one["type"] for one in first] == [one["type"] for one in second]
    assert [one for one in first if one["type"] != "panel-grid"] == [one for one in second if one["type"] != "panel-grid"]
    for one, other in zip(first, second, strict=True):
        if one["type"] == "panel-grid":
            assert one["metadata"]["panelBankSectionConfig"]["panels"] == other["metadata"]["panelBankSectionConfig"]["panels"]
            assert [sets["filters"] for sets in one["metadata"]["runSets"]] == [
                sets["filters"] for sets in other["metadata"]["runSets"]]


@pytest.mark.parametrize("name", ["it's", "a=b", 'say "x"', "a < b"])
def test_a_study_whose_name_filters_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"folder: the name .* is not accepted"):
        report(study(run("a"), name=name), entity="me", project="ebm")
    with pytest.raises(ValueError, match=r"folder: the name .* is not accepted"):
        report(study(run(name)), entity="me", project="ebm")


def test_text_of_a_run_formats_nothing() -> None:
    assert escape("a*b_c [x](y) `z` <b>\n# h | t $1$ ~~n~~") == (
        r"a\*b\_c \[x\]\(y\) \`z\` \<b\> \# h \| t \$1\$ \~\~n\~\~")


PUBLISH = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tools.review.published import publish, report
try:
    print(publish(report(json.loads(sys.argv[2]), entity="me", project="ebm")))
except (OSError, ValueError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(2)
"""


class Reports(Server):
    """W&B's server as far as saving a report goes; keeps what it was sent."""

    saved: dict[str, Any] | None = None

    def ask(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "internalId": "cHJvamVjdA==", "name": "ebm", "entityName": "me", "isBenchmark": False,
                   "createdAt": "2026-01-01T00:00:00", "user": None}
        if "GetProjects" in query:
            return {"models": {"edges": [{"node": project, "cursor": ""}], "pageInfo": {"endCursor": "", "hasNextPage": False}}}
        if "spec" in values:
            self.saved = values
            return {"upsertView": {"view": {"id": "VmlldzoxMjM=", "type": values["type"], "name": values["name"],
                    "displayName": values["displayName"], "description": values["description"], "project": project,
                    "spec": values["spec"], "updatedAt": "2026-01-01T00:00:00", "createdAt": "2026-01-01T00:00:00",
                    "user": project["user"]}, "inserted": True}}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}},
                "project": project}


@pytest.fixture
def server() -> Iterator[Reports]:
    with serving(Reports()) as state:
        yield state


def publishing(tmp_path: Any, **env: str) -> subprocess.CompletedProcess[str]:
    around = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    around |= {"HOME": str(tmp_path), "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB__GRAPHQL_RETRY_MAX": "1", **env}
    return subprocess.run([sys.executable, "-c", PUBLISH, str(ROOT), json.dumps(FULL)], capture_output=True, text=True,
                          env=around, check=False, timeout=60, stdin=subprocess.DEVNULL, cwd=tmp_path)


def test_publishing_saves_it_with_its_runs_and_gives_its_address(server: Reports, tmp_path: Any) -> None:
    done = publishing(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="a" * 40)
    assert done.returncode == 0, done.stderr
    assert server.saved is not None and server.saved["displayName"] == "Study 2026-01-01-sweep"
    sets = [runset for grid in grids({"spec": json.loads(server.saved["spec"])}) for runset in grid["runSets"]]
    assert sets and all((one["project"]["entityName"], one["project"]["name"]) == ("me", "ebm") for one in sets)
    assert done.stdout.strip().startswith(f"{server.url}/me/ebm/reports/Study-2026-01-01-sweep--")


def test_publishing_without_a_key_is_one_line_and_asks_nobody(tmp_path: Any) -> None:
    done = publishing(tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "ValueError: --wandb: no API key for W&B; set WANDB_API_KEY or run `wandb login` once")


def test_publishing_without_a_server_is_one_line(tmp_path: Any) -> None:
    done = publishing(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("ConnectionError: --wandb: Failed to authenticate with http://127.0.0.1:9")
