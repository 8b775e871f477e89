"""Renders the plain object as one self-contained HTML file: style, scripts, Plotly, data and pictures."""
from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ebm.extras import how_to_install

WEB = Path(__file__).with_name("web")
# In the order in which they depend on each other.
SCRIPTS = ("view", "query", "table", "charts", "levels", "heatmap", "pictures", "words", "evaluation", "start")


def render(content: dict[str, Any], pictures: Sequence[str]) -> str:
    """The page; raises ValueError if Plotly isn't installed."""
    code = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    scripts = {"page": f'"use strict";\n(() => {{\n{code}\n}})();', "plotly": plotly(), "start": "report.charts();"}
    scripts = {name: keep_open(text) for name, text in scripts.items()}
    hashes = " ".join(f"'sha256-{script_hash(text)}'" for text in scripts.values())
    fields = {
        # Nothing is fetched and nothing runs but these scripts. Plotly writes rules into a style sheet of its own.
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
                  "form-action 'none'",
        "title": html.escape(f"{content['name']}: report"), "style": (WEB / "page.css").read_text(encoding="utf-8"),
        "content": as_json(content), "pictures": as_json(list(pictures)), **scripts}
    # In one pass: nothing inserted is scanned again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], (WEB / "page.html").read_text(encoding="utf-8"))


def plotly() -> str:
    """Plotly's own JavaScript, from the Python package; raises ValueError, naming the extra, if it isn't installed."""
    found = find_spec("plotly")
    path = Path(found.origin).parent / "package_data" / "plotly.min.js" if found is not None and found.origin else None
    if path is None or not path.exists():
        raise ValueError(how_to_install("plotly", "report", "reports"))
    return path.read_text(encoding="utf-8")


def keep_open(script: str) -> str:
    """The script with closing tags in its text escaped, so that none ends it."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def script_hash(script: str) -> str:
    """The hash by which the page's policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def as_json(content: Any) -> str:
    """JSON that can stand inside a script element: no character of it ends the element, or means anything in HTML."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII: no U+2028 either
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
