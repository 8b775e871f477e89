"""Weights are fetched once, whole or not at all, go on where they were broken off, and bad luck is told in one line."""
from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from launch.config.manual import CONFIGS

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends CONTENT; ``ranges`` says whether from a given byte on, ``breaks`` after how many bytes it hangs up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.breaks, self.sent, self.content = True, len(CONTENT), 0, CONTENT
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers["Range"]
        server.asked.append(asked)
        if "weights" not in self.path:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:][:server.breaks]
        server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    without = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return subprocess.run([sys.executable, f"{ROOT}/tools/fetch_weights.py", *words], capture_output=True, text=True,
                          timeout=60, check=False, env=without)


def fetch(server: Server, out: Path, sha256: str = SHA256) -> subprocess.CompletedProcess[str]:
    return run("--url", server.url, "--sha256", sha256, "--out", str(out), "--timeout", "10")


def refused(done: subprocess.CompletedProcess[str], told: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("fetch_weights: ") and told in last, done.stderr
    assert "Traceback" not in done.stderr


def test_weights_are_fetched_whole_and_once(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "new" / "weights.pth"
    done = fetch(server, out)
    assert (done.returncode, out.read_bytes()) == (0, CONTENT), done.stderr
    assert f"{out}: written, 1.0 MB" in done.stdout
    assert "weights.pth: 100%" in done.stderr, "no progress was shown"
    again = fetch(server, out)
    assert (again.returncode, len(server.asked)) == (0, 1), "it was fetched twice"
    assert "there already" in again.stdout
    out.write_bytes(b"damaged")
    assert fetch(server, out).returncode == 0
    assert out.read_bytes() == CONTENT
    assert [path.name for path in out.parent.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("ranges", [True, False], ids=["resumed", "sent again"])
def test_what_was_broken_off_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    out, server.breaks = tmp_path / "weights.pth", 300_000
    refused(fetch(server, out), "broken off after 0.3 of 1.0 MB; run this again to go on")
    assert not out.exists()
    server.breaks, server.ranges, server.sent = len(CONTENT), ranges, 0
    assert fetch(server, out).returncode == 0
    assert out.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=300000-"
    assert server.sent == len(CONTENT) - (300_000 if ranges else 0)


def test_what_was_broken_off_from_another_file_is_begun_again(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "weights.pth"
    for stale in (b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)):
        (tmp_path / "weights.pth.part").write_bytes(stale)
        assert fetch(server, out).returncode == 0
        assert out.read_bytes() == CONTENT
        out.unlink()


def test_another_file_than_asked_for_is_not_kept(server: Server, tmp_path: Path) -> None:
    refused(fetch(server, tmp_path / "weights.pth", sha256="0" * 64), "and not 000000000000…; nothing was kept")
    assert [*tmp_path.iterdir()] == []


def test_no_network_and_no_file_are_told_in_one_line(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/weights.pth"
        refused(run("--url", url, "--out", str(tmp_path / "x")), "can't be fetched (")
    refused(run("--url", server.url.replace("weights", "none"), "--out", str(tmp_path / "x")), "the server answers 404")
    refused(run("--url", server.url, "--out", str(tmp_path / "x"), "--sha256", "6726"), "--sha256: '6726' is not accepted")
    refused(run("--url", "weights.pth", "--out", str(tmp_path / "x")), "unknown url type")
    refused(run("--timeout", "0"), "--timeout: 0.0 is not accepted")
    (tmp_path / "file").touch()
    refused(run("--url", server.url, "--out", str(tmp_path / "file" / "x")), str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_file_goes_where_the_config_looks_and_comes_from_where_the_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBM_WEIGHTS", "/some/place")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=["+extractor=inception"])
    shown = "".join(run("--help").stdout.split())  # a long path is broken over lines
    assert cfg.extractor.file.startswith("/some/place/") and cfg.extractor.file in shown
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert URL_INCEPTION_V3 in (ROOT / "tools" / "fetch_weights.py").read_text()
    assert cfg.extractor.sha256.startswith(URL_INCEPTION_V3.removesuffix(".pth").rpartition("-")[2])
