"""As much of W&B's server as a run and `wandb sync` speak to, on this machine, remembering what came."""
from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

T = TypeVar("T", bound="Server")


@dataclass
class Server:
    """As much of W&B's server as `wandb sync` speaks to; ``broken`` names what it refuses."""

    rows: dict[str, list[int]] = field(default_factory=dict)  # steps by run, in order of arrival
    order: list[str] = field(default_factory=list)  # runs in order of their first word
    files: list[str] = field(default_factory=list)
    broken: str = ""
    url: str = ""

    def put(self, path: str) -> int:
        """A file; the status to answer with."""
        if self.broken == "files":
            return 403
        self.files.append(path)
        return 200

    def stream(self, path: str, content: dict[str, Any]) -> int:
        """Rows of a run."""
        if self.broken == "rows":
            return 404
        run = path.split("/")[4]
        history = content.get("files", {}).get("wandb-history.jsonl", {"content": [], "offset": len(self.rows.get(run, []))})
        assert history["offset"] == len(self.rows.setdefault(run, []))
        self.rows[run] += [json.loads(row)["_step"] for row in history["content"]]
        return 200

    def ask(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL answers."""
        project = {"id": "p", "name": "ebm", "entity": {"id": "e", "name": "me"}}
        if "Viewer" in query:
            return {"viewer": {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        rows = self.rows.get(values.get("name", ""), [])
        if "RunResumeStatus" in query:
            tail = json.dumps([json.dumps({"_step": step}) for step in rows[-1:]])
            run = {"name": values["name"], "summaryMetrics": "{}", "displayName": "", "logLineCount": 0, "eventsLineCount": 0,
                   "historyLineCount": len(rows), "historyTail": tail, "eventsTail": "[]", "config": "{}", "tags": [],
                   "wandbConfig": '{"t": 1}'}
            return {"model": {**project, "bucket": run if rows else None}}
        if "UpsertBucket" in query:
            if values["name"] not in self.order:
                self.order.append(values["name"])
            run = {"id": "b", "name": values["name"], "displayName": "", "config": "{}", "project": project,
                   "historyLineCount": len(rows)}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "CreateRunFiles" in query:
            places = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": places}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Passes each request on to the server's state."""

    protocol_version = "HTTP/1.1"
    state: Server

    def do_PUT(self) -> None:
        self.body()
        self.answer({}, self.state.put(self.path))

    def do_POST(self) -> None:
        content = json.loads(self.body() or b"{}") if not self.path.startswith("/sdk/") else {}
        if self.path.endswith("/file_stream"):
            self.answer({}, self.state.stream(self.path, content))
        elif self.state.broken == "key":
            self.answer({"errors": [{"message": "invalid key"}]}, 401)
        else:
            self.answer({"data": self.state.ask(content.get("query", "").split("{")[0], content.get("variables") or {})})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        self.state.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    """A server that a client may leave without a word."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(state: T) -> Iterator[T]:
    """The server, on a free port of this machine."""
    web = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{web.server_address[1]}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield state
    web.shutdown()
    web.server_close()
    thread.join()
