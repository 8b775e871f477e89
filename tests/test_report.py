"""The report's page and command: names stay text, nothing is fetched, a page is written whole, bad input is one line."""
from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from tools import report
from tools.bench.made import calibration, sampled, studied, trained, usual
from tools.review import page, png
from tools.review.album import Album
from tools.review.collect import collect

EVIL = '<script>alert(1)</script>'


def tool(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "tools/report.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, **env})


class Page(HTMLParser):
    """A page's scripts, and everything in it that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.fetched: list[str] = []
        self.policy = ""
        self.within: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.within = own if tag == "script" else None
        if tag == "script":
            self.scripts.append((own, ""))
        self.fetched += [str(own[name]) for name in ("src", "srcset", "data", "poster") if name in own]
        self.fetched += [str(own["href"])] if "href" in own and not str(own["href"]).startswith("#") else []
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(own["content"])

    def handle_data(self, data: str) -> None:
        if self.within is not None and self.scripts:
            self.scripts[-1] = (self.within, self.scripts[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self.within = None

    def data(self, name: str) -> Any:
        return json.loads(next(text for own, text in self.scripts if own.get("id") == name))


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A study whose names would like to be code."""
    run = trained(tmp_path, "a", [*usual(), {"event": "warning", "images": 1, "words": f"{EVIL}</script><!--"}], steps=100)
    odd = ["data.name='it''s \"quoted\"'", f"run={EVIL}", "x=\u2028&amp;\ud800"]
    return studied(tmp_path, [(run, odd)], [(run, sampled(run, EVIL.replace("/", "|")))])


def test_names_and_overrides_stay_text(evil: Path) -> None:
    content = collect(evil, album=Album())
    text = page.render(content, [])
    found = Page(text)
    assert len(found.scripts) == 5, "a name has ended a script, or begun one"
    assert EVIL not in text
    assert "<!--" not in text.split("</style>")[1]
    assert "\u2028" not in text
    shown = found.data("content")["runs"][0]
    assert shown["label"] == content["runs"][0]["label"]
    assert shown["overrides"]["run"] == EVIL
    assert shlex.split(shown["command"])[2:] == shown["arguments"]


def test_the_page_fetches_nothing_and_runs_only_its_own_scripts(evil: Path) -> None:
    content = collect(evil, album=Album())
    found = Page(page.render(content, ["AAAA"]))
    assert found.fetched == []
    style = (page.WEB / "page.css").read_text()
    assert not re.search(r"url\(|@import|https?:", style)
    assert "default-src 'none'" in found.policy
    assert "'unsafe-inline'" not in found.policy.split("script-src")[1].split(";")[0]
    assert "http" not in found.policy
    code = [text for own, text in found.scripts if own.get("type") != "application/json"]
    assert len(code) == 3
    for text in code:
        assert f"'sha256-{page.script_hash(text)}'" in found.policy
    assert found.data("pictures") == ["AAAA"]
    own = "".join((page.WEB / f"{name}.js").read_text() for name in page.SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|fetch\(|XMLHttpRequest|https?:", own)


def test_without_plotly_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["report.py", str(trained(tmp_path, "a", usual()))])
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: plotly: not installed; reports need pip install -e '.[report]'\n"


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, "a", usual())
    out = run / "report.html"
    out.write_text("the old page")
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            report.write(run, out, album=Album(), watch=None)
    assert out.read_text() == "the old page"
    assert not list(run.glob(".*.tmp"))
    report.write(run, out, album=Album(), watch=None)
    assert out.read_text().startswith("<!doctype html>")


def test_the_command_writes_a_page_and_says_what_it_could_not_read(tmp_path: Path) -> None:
    run = trained(tmp_path, "a", [*usual(), "{broken\n", "[]\n"])
    done = tool(run)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").stat().st_size > 4_000_000, "Plotly is not inside"
    assert "1 run, " in done.stdout
    assert done.stderr == "note: metrics.jsonl: line 14: not JSON, and 1 more, listed in the page\n"
    other = tmp_path / "elsewhere.html"
    assert tool(run, "--out", other).returncode == 0
    assert other.exists()


@pytest.mark.parametrize(("name", "content", "words"), [
    ("nothing", None, "holds neither study.json nor config.yaml; give"), ("study.json", "{", "is not the record of a study"),
    ("study.json", '{"points": [{}]}', "is not the record of a study"),
    ("study.json", '{"points": [{"kind": "", "label": "", "folder": "", "of": "", "job": "", "steps": "x", "batch": 1, '
     '"overrides": []}]}',
     "is not the record of a study"), ("study.json", "[]", "is not the record of a study")])
def test_a_folder_of_neither_is_refused_in_one_line(name: str, content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = tool(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: folder: {tmp_path}")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_browser_slides_are_refused_in_one_line(tmp_path: Path) -> None:
    done = tool(trained(tmp_path, "a", usual()), "--png", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == ("error: --png: no chromium, chromium-browser, google-chrome or google-chrome-stable on the PATH; "
                           "install one\n")


def test_only_sections_with_something_in_them_become_slides(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", "a", usual(), steps=100)
    assert png.sections(collect(plain, album=Album())) == ["table", "loss"]
    runs = [trained(tmp_path, f"{n}", [*usual(), calibration(1000, 1.0, 0.5)], steps=100) for n in range(4)]
    swept = [(run, [f"seed={n % 2}", f"rate.peak={n // 2}"]) for n, run in enumerate(runs)]
    content = collect(studied(tmp_path, swept, [(runs[0], sampled(runs[0], "heun"))]), album=Album())
    assert png.sections(content) == ["table", "loss", "samples", "trajectories", "calibration", "heatmap"]


def test_watching_writes_again_until_all_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, "a", usual()[:-1])
    os.utime(run / "config.yaml")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("images: 1000", "images: 2000"))
    out, seen = tmp_path / "page.html", []

    def wait(seconds: float) -> None:
        seen.append((seconds, Page(out.read_text()).data("content")["watch"]))
        if len(seen) == 2:
            with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": "end", "images": 2000, "how": "trained"}) + "\n")

    monkeypatch.setattr(report.time, "sleep", wait)
    monkeypatch.setattr(sys, "argv", ["report.py", str(run), "--out", str(out), "--watch", "7"])
    report.main()
    assert seen == [(7.0, 7.0), (7.0, 7.0)]
    assert Page(out.read_text()).data("content")["watch"] is None, "a page of what has ended reloads for nothing"


@pytest.mark.parametrize(("place", "said"), [
    ("nonsense", "--wandb: 'nonsense' is not accepted; it must be entity/project"),
    ("us/study", "--wandb: no API key for W&B; set WANDB_API_KEY or run `wandb login` once"),
])
def test_publishing_is_refused_in_one_line(place: str, said: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "a", usual())
    env = {**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, f"{ROOT}/tools/report.py", str(run), "--wandb", place], env=env, timeout=120,
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
