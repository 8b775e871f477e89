"""W&B is told of an evaluation what its record says: figures by name, protocol and pictures, by W&B's own reader."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ONE_THREAD, ROOT
from evaluation_records import quality, record
from test_track import inspected, segments, summary_of

from launch.tracking.history import config_of, summary_and_pictures

PUBLISH = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
sys.path.insert(0, sys.argv[1])
from launch.tracking.track import publish, tracking_of
track = {"mode": "offline", "project": "tests", "entity": None, "checkpoints": False, "start_seconds": 30, "finish_seconds": 60}
cfg = OmegaConf.create({"n": 50_000, "track": track})
publish(tracking_of(cfg), Path(sys.argv[2]), name="a run quality-heun", kind="evaluate", config=cfg)
"""


def test_a_record_arrives_with_its_protocol_and_its_pictures(tmp_path: Path) -> None:
    path = record(tmp_path, "heun", {"fid": 12.5, "fid_stderr": 0.5, "kid": 0.01, "recall": None}, pictures=("neighbours",))
    done = subprocess.run([sys.executable, "-c", PUBLISH, str(ROOT), str(path)], env=ONE_THREAD, capture_output=True, text=True,
                          check=False, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    (segment,) = segments(path.parent)
    said = summary_of(segment)
    summary, about = said["summary"], said["config"]["evaluation"]
    assert said["exit_code"] == 0
    assert next(one["run"] for one in inspected(segment) if one["type"] == "run")["job_type"] == "evaluate"
    figures = {name: value for name, value in summary.items() if name.startswith("evaluate/quality/")}
    picture = figures.pop("evaluate/quality/neighbours")
    assert (segment / "files" / picture["path"]).exists(), "the picture is lost"
    assert figures == {"evaluate/quality/fid": 12.5, "evaluate/quality/fid_stderr": 0.5, "evaluate/quality/kid": 0.01}
    assert (summary["sampler"], summary["nfe"], summary["n"], summary["ema"]) == ("heun", 35, 50_000, 0)
    assert about["measure"] == quality()
    assert (about["metric"], about["subject"]["version"]) == ("quality", "12ab34cd56ef")
    rows = [one["history"]["item"] for one in inspected(segment) if one["type"] == "history"]
    assert [row["images"] for row in rows if row.get("evaluate/quality/fid") == 12.5] == [100_000], "it is not logged"


def test_of_other_records_no_protocol_is_told(tmp_path: Path) -> None:
    assert config_of({"sampler": "heun", "n": 4}) == {}
    values, pictures = summary_and_pictures({"sampler": "heun", "n": 4, "nfe": 35}, tmp_path / "a.json")
    assert values == {"sampler": "heun", "n": 4, "nfe": 35}
    assert pictures == {"samples": tmp_path / "a.png"}
