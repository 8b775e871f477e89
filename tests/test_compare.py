"""`tools/compare.py`: ranks what one protocol has measured, refuses all else by naming what differs, draws curves of cost."""
from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from evaluation_records import quality, record, sweep
from PIL import Image

from tools import compare as tool
from tools.bench.made import sampled, studied, trained, usual
from tools.review.comparison import cost, gather, rows_of
from tools.review.direction import direction, neutral
from tools.review.evaluations import find_evaluations, name_of, protocol_line, read_evaluation, subject_line


def compare(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """What the command says, in this process: a new one takes a second to start."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["compare.py", *map(str, words)])
        try:
            tool.main()
        except SystemExit as error:
            code = int(error.code or 0)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def order(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The runs in the order of the table printed."""
    assert done.returncode == 0, done.stderr
    return re.findall(r"^ +\d+ +[\d.]+(?: ± [\d.]+)? +(\w+)", done.stdout, re.MULTILINE)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three runs whose FID are 12, 12.5 and 20 by one protocol."""
    runs = [tmp_path / name for name in ("second", "first", "third")]
    for run, fid in zip(runs, (12.5, 12.0, 20.0), strict=True):
        record(run, "heun", {"fid": fid, "fid_stderr": 0.4, "precision": 1 / fid, "kid": fid / 1000})
    return runs


def test_runs_are_ranked_by_what_is_better(three: list[Path]) -> None:
    done = subprocess.run([sys.executable, "tools/compare.py", *map(str, three), "--metric", "fid"], capture_output=True,
                          text=True, timeout=60, check=False, cwd=ROOT)
    assert order(done) == ["first", "second", "third"]
    assert "12 ± 0.4" in done.stdout
    assert "protocol: n 50,000 · reference cifar10 a1b2c3d4 · extractor inception 6726825d\n" in done.stdout
    assert order(compare(*three, "--metric", "precision")) == ["first", "second", "third"], "more precision is better"
    (three[1] / "evaluations" / "quality-heun.json").unlink()
    without = compare(*three, "--metric", "quality.kid")
    assert order(without) == ["second", "third"]
    assert without.stderr == f"note: {three[1]}: no record of quality.kid\n"


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [tmp_path / place / "run" for place in ("a", "b")]
    for run, fid in zip(runs, (12.5, 12.0), strict=True):
        record(run, "heun", {"fid": fid})
    record(tmp_path / "other", "heun", {"fid": 11.0})
    assert re.findall(r"(b/run|a/run|other)", compare(*runs, tmp_path / "other", "--metric", "fid").stdout)[:3] == [
        "other", "b/run", "a/run"]
    assert {row.label for row in rows_of(gather(runs)[0], "fid")} == {"a/run", "b/run"}


def test_what_is_within_the_errors_is_not_told_apart(three: list[Path]) -> None:
    said = compare(*three, "--metric", "fid").stdout
    assert said.count("not distinguishable") == 1
    assert "1 and 2 are not distinguishable: they differ by 0.5, less than the sum of their standard errors, 0.8" in said
    assert "no standard errors" not in said
    assert "no standard errors were measured" in compare(*three, "--metric", "kid").stdout


@pytest.mark.parametrize(("other", "words"), [
    (quality(n=1000), "in n: 50000 vs. 1000"),
    (quality(extractor_sha256="ff" * 32), "in extractor_sha256: 6726825d0af5 vs. ffffffffffff"),
    (quality(reference="held out", seed=None), "in reference: cifar10 vs. held out; seed: none vs. null"),
    (quality(kid={"subsets": 10}), "in kid.subsets: none vs. 10"),
])
def test_other_protocols_are_refused_naming_just_what_differs(other: dict[str, object], words: str, three: list[Path],
                                                              tmp_path: Path) -> None:
    record(tmp_path / "other", "heun", {"fid": 1.0}, measure=other)
    done = compare(*three, tmp_path / "other", "--metric", "fid")
    assert (done.returncode, done.stdout) == (2, ""), "it ranked what doesn't compare"
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0] == ("error: --metric: fid was measured by 2 protocols, which are not comparable; --apart lists each "
                        "by itself")
    assert lines[2].strip() == f"protocol 2 (1 record of other × heun) differs from protocol 1 {words}"
    apart = compare(*three, tmp_path / "other", "--metric", "fid", "--apart")
    assert order(apart) == ["first", "second", "third", "other"]
    assert apart.stdout.count("protocol: ") == 2
    assert words in apart.stdout


def test_figures_of_one_name_by_two_metrics_do_not_rank(tmp_path: Path) -> None:
    for metric in ("likelihood", "density"):
        record(tmp_path, "step", {"bits_per_dim": 3.5}, metric=metric, measure={"images": 500})
    done = compare(tmp_path, "--metric", "bits_per_dim")
    assert done.returncode == 2
    assert "in metric: likelihood vs. density" in done.stderr or "in metric: density vs. likelihood" in done.stderr
    assert compare(tmp_path, "--metric", "density.bits_per_dim").returncode == 0


def test_other_code_and_precision_are_told(three: list[Path], tmp_path: Path) -> None:
    record(tmp_path / "other", "heun", {"fid": 13.0}, version="777777777777", precision="fp32")
    said = compare(*three, tmp_path / "other", "--metric", "fid").stdout
    assert "note: the code differs: 12ab34cd56ef (1, 2, 4), 777777777777 (3)" in said
    assert "note: the precision differs: bf16 (1, 2, 4), fp32 (3)" in said
    assert "differs" not in compare(*three, "--metric", "fid").stdout
    record(three[0], "heun", {"fid": 14.0}, version="12ab34cd56ef+changes")
    assert "note: the code had uncommitted changes: 2\n" in compare(*three, "--metric", "fid").stdout


def test_a_study_and_the_records_of_its_points_are_found(tmp_path: Path) -> None:
    runs = [trained(tmp_path, name, usual(), steps=100) for name in ("a", "b")]
    samples = sampled(runs[0], "heun-1")
    for run, fid in zip(runs, (3.0, 2.0), strict=True):
        path = record(run, "heun", {"fid": fid})
        path.rename((path.parent / "heun-1").mkdir() or path.parent / "heun-1" / path.name)
        (path.parent / "heun-1" / "evaluation-0123.json").write_text(json.dumps([path.name]))
    study = studied(tmp_path, [(run, [f"seed={place}"]) for place, run in enumerate(runs)], [(runs[0], samples)])
    done = compare(study, "--metric", "fid")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert re.findall("seed=[01]", done.stdout) == ["seed=1", "seed=0"]
    again = compare(study, runs[0], runs[1] / "evaluations" / "heun-1" / "quality-heun.json", "--metric", "fid")
    assert len(re.findall("heun", again.stdout)) == 2, "a record that is named twice counts twice"


def test_figures_are_listed_with_their_protocols(three: list[Path], tmp_path: Path) -> None:
    record(three[0], "small", {"fid": 30.0}, measure=quality(n=100))
    said = compare(*three, "--list").stdout
    assert re.search(r"fid +quality +4 +2 +lower", said)
    assert re.search(r"precision +quality +3 +1 +higher", said)
    assert "fid_stderr" not in said


def test_damaged_records_are_named_and_the_others_ranked(three: list[Path]) -> None:
    folder = three[0] / "evaluations"
    broken = {"cut.json": '{"metric": "quality", "val', "list.json": "[1, 2]",
              "lacking.json": '{"metric": "quality", "values": {}}',
              "strange.json": '{"metric": "quality", "values": [1], "measure": {}, "subject": {}}',
              "nan.json": '{"metric": "quality", "values": {"fid": NaN}, "measure": {}, "subject": {}}',
              "deep.json": '{"metric": "q", "values": {}, "measure": ' + '{"a":' * 900 + "1" + "}" * 900 + ', "subject": {}}',
              "deeper.json": "[" * 100_000, "bytes.json": "\0\xff"}
    for name, text in broken.items():
        (folder / name).write_text(text, encoding="latin-1")
    done = compare(*three, "--metric", "fid")
    assert order(done) == ["first", "second", "third"]
    for name in broken:
        assert done.stderr.count(f"{name}: ") == 1 or name == "deep.json", done.stderr  # which Python may be able to read
    assert "lacking.json: not the record of an evaluation: it has no 'measure', 'subject'" in done.stderr
    assert "strange.json: the record of an evaluation with an invalid 'values'" in done.stderr
    assert "nan.json: fid: not a finite number, left out" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere", "--metric", "fid"], "folder: nowhere: no such folder"),
    (["{empty}", "--metric", "fid"], "folder: no records of evaluations in {empty}; python launch/evaluate.py"),
    (["{runs}", "--metric", "fud"], "--metric: 'fud' is not accepted; these records have fid, precision, kid"),
    (["{runs}", "--metric", "fid_stderr"], "--metric: 'fid_stderr' is not accepted"),
    (["{runs}", "--metric", "fid", "--by", "joules"], "no record of fid has its cost in joules per image; metrics=[cost]"),
    (["{runs}", "--metric", "fid", "--out", "a.png"], "--out: it needs --by"),
    (["{runs}", "--metric", "fid", "--by", "nfe", "--out", "a.pdf"], "it must end in .png"),
    (["{runs}", "--metric", "fid", "--by", "nfe", "--out", "/no/a.png"], "'/no/a.png' is not accepted; there is no folder /no"),
    (["{runs}"], "--metric"),
])
def test_bad_input_is_told_and_writes_nothing(words: list[str], said: str, three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    names = {"empty": str(tmp_path / "empty"), "runs": str(three[0])}
    before = sorted(tmp_path.rglob("*"))
    done = compare(*(word.format(**names) for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert said.format(**names) in " ".join(done.stderr.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_all_samplers_of_a_sweep_are_one_picture(tmp_path: Path) -> None:
    sweep(tmp_path / "run")
    out = tmp_path / "curves.png"
    done = compare(tmp_path / "run", "--metric", "fid", "--by", "nfe", "--out", out)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.with_suffix(".json").read_text())
    (panel,) = content["panels"]
    told = {curve["label"]: [(one["nfe"], one["fid"], one["steps"]) for one in curve["points"]] for curve in panel["curves"]}
    assert told["heun"] == [(nfe, pytest.approx(4 + 300 / nfe), (nfe + 1) // 2) for nfe in (9, 17, 35, 69)]
    assert [nfe for nfe, *_ in told["annealed"]] == [20, 50, 100, 500]
    assert {one["real"] for curve in panel["curves"] for one in curve["points"]} == {2.5}
    assert panel["protocol"]["n"] == "50000"
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0, 114, 178), (213, 94, 0), (119, 119, 119)):  # two curves, and the dashed line of real images
        assert (np.abs(pixels - np.array(colour)).max(1) < 8).sum() > 100, f"{colour} is not drawn"


def test_settings_that_are_no_cost_make_curves_of_their_own(tmp_path: Path) -> None:
    for steps in (9, 18):
        for churn in (0.0, 30.0):
            record(tmp_path, f"{steps}-{churn}", {"fid": steps + churn}, settings={"steps": steps, "churn": churn},
                   nfe=2 * steps - 1)
    record(tmp_path, "other", {"fid": 1.0}, measure=quality(n=10))
    done = compare(tmp_path, "--metric", "fid", "--by", "nfe", "--out", tmp_path / "a.png")
    assert done.returncode == 2, "curves of two protocols in one panel"
    assert not (tmp_path / "a.png").exists()
    done = compare(tmp_path, "--metric", "fid", "--by", "nfe", "--out", tmp_path / "a.png", "--apart")
    first, second = json.loads((tmp_path / "a.json").read_text())["panels"]
    assert sorted(curve["label"] for curve in first["curves"]) == ["heun churn=0.0", "heun churn=30.0"]
    assert len(second["curves"]) == 1


def test_what_an_image_costs_is_its_record_of_costs_or_its_drawing(tmp_path: Path) -> None:
    sweep(tmp_path / "a")
    records, problems = gather([tmp_path / "a"])
    assert not problems
    row = next(one for one in rows_of(records, "fid") if one.told("nfe") == 35)
    assert cost(row, "nfe", records) == 35
    assert cost(row, "seconds", records) == pytest.approx(0.07), "the cost that was measured on the same sampler"
    assert cost(row, "seconds", []) == pytest.approx(100 / 50_000), "the whole drawing over its images"
    assert cost(row, "joules", records) is None


@pytest.mark.parametrize(("name", "way"), [
    ("fid", "lower"), ("kid", "lower"), ("fd_random", "lower"), ("is", "higher"), ("is_random", "higher"),
    ("precision", "higher"), ("recall_random", "higher"), ("auroc_energy_svhn", "higher"), ("fpr95_score_norm_svhn", "lower"),
    ("bits_per_dim", "lower"), ("nfe", "lower"), ("seconds_per_image", "lower"), ("joules_per_image", "lower"),
    ("images_per_s", "higher"),
    ("fid_gain", "higher"), ("copied_share", "lower"), ("negative_log_likelihood", "lower"), ("acceptance_0.1", "no"),
    ("distance_held_out", "no"), ("real", "no"), ("copied_share_held_out", "no"), ("slope_gap", "no")])
def test_which_way_is_better(name: str, way: str) -> None:
    assert ("no" if neutral(name) else direction(name)) == way


def test_no_figure_of_other_features_is_called_fid(tmp_path: Path) -> None:
    values = {"fid": 3.0, "fid_stderr": 0.1, "is": 2.0, "recall": 0.5}
    made, _ = read_evaluation(record(tmp_path, "random", values, measure=quality(extractor="random")))
    assert made is not None
    assert made.figures == ["fd_random", "is_random", "recall"]
    assert made.error("fd_random") == 0.1
    assert name_of("fid", {"extractor": {"name": "efficientnet lite"}}) == "fd_efficientnet_lite"
    assert name_of("fid", quality()) == "fid"


def test_a_protocol_in_few_words(tmp_path: Path) -> None:
    more = {"halves": True, "mirrored": False, "cache": None, "seed": 3, "sets": ["a", "b", "c", "d", "e"], "tolerance": 1e-5}
    path = record(tmp_path, "a", {"fid": 1.0}, measure={**quality(), **more})
    made, _ = read_evaluation(path)
    assert made is not None
    assert protocol_line(made, most=20) == (
        "n 50,000 · reference cifar10 a1b2c3d4 · extractor inception 6726825d · halves · no mirrored · cache none · seed 3 · "
        "sets a, b, c, d, … (5) · tolerance 1e-05")
    assert protocol_line(made, most=2) == "n 50,000 · reference cifar10 a1b2c3d4 · and 7 more"
    assert subject_line(made) == "heun 35 NFE · EMA 0 · step 3125 · bf16 · code 12ab34cd"


def test_pictures_stay_beside_their_record(tmp_path: Path) -> None:
    path = record(tmp_path, "a", {"fid": 1.0})
    path.write_text(path.read_text().replace('"pictures": {}', '"pictures": {"a": "../../secret.png", "b": 3, "c": "c.png"}'))
    (made,), problems = find_evaluations(tmp_path)
    assert made.pictures == {"a": path.parent / "secret.png", "c": path.parent / "c.png"}
    assert not problems
