#!/usr/bin/env python3
"""Writes one self-contained page about a study or a run: `python tools/report.py <folder of a study or a run>`."""
from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # works from a checkout that is not installed

from ebm.extras import extra
from ebm.files import write_atomically
from launch.study.point import counted
from tools.review.album import Album
from tools.review.collect import collect, is_over
from tools.review.page import render
from tools.review.png import slides


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a study (it holds study.json) or of a run (config.yaml)")
    parser.add_argument("--out", type=Path, help="the page to write (report.html in the folder)")
    parser.add_argument("--watch", nargs="?", type=float, const=30.0, metavar="seconds",
                        help="rewrite the page at this interval until all jobs have ended, or Ctrl-C (30)")
    parser.add_argument("--png", action="store_true", help="also write pictures for slides, with a headless Chromium")
    parser.add_argument("--wandb", metavar="entity/project", help="also publish it as a W&B report in the project of the runs")
    options = parser.parse_args()
    if options.watch is not None and not 1 <= options.watch < float("inf"):
        parser.error(f"--watch: {options.watch:g} is not accepted; it must be at least 1 second")
    return options


def main() -> None:
    """Writes the page, repeatedly if asked to; exits with 2 and one line on bad input."""
    options = arguments()
    out = options.out or options.folder / "report.html"
    album = Album()
    try:
        place = published().target(options.wandb) if options.wandb else None
        content = write(options.folder, out, album=album, watch=options.watch)
        while options.watch is not None and not is_over(content):
            time.sleep(options.watch)
            try:
                content = write(options.folder, out, album=album, watch=options.watch)
            except OSError as error:  # a full or unreachable disk: perhaps it works the next time
                print(f"note: {error}", file=sys.stderr)
        if options.png:
            for path in slides(out, content):
                print(path)
        if place is not None:
            entity, project = place
            print(published().publish(published().report(content, entity=entity, project=project)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass


def published() -> ModuleType:
    """The module that makes reports at W&B; raises ValueError, naming the extra, if it can't be imported."""
    with extra("wandb", "reports at W&B"):
        return importlib.import_module("tools.review.published")


def write(folder: Path, out: Path, *, album: Album, watch: float | None) -> dict[str, Any]:
    """Writes the page once, reports it and what could not be read; the page's content."""
    content = collect(folder, album=album)
    content["watch"] = None if is_over(content) else watch
    page = render(content, album.pictures).encode(errors="replace")  # a folder's name may hold any character
    write_atomically(out, page)
    print(f"{out}: {count_text(content)}, {len(page) / 1e6:.1f} MB", flush=True)
    if problems := content["problems"]:
        more = f", and {len(problems) - 1} more, listed in the page" if len(problems) > 1 else ""
        print(f"note: {problems[0]['where']}: {problems[0]['what']}{more}", file=sys.stderr)
    return content


def count_text(content: dict[str, Any]) -> str:
    """The numbers of runs and samplings as text."""
    samplings = sum(len(run["samplers"]) for run in content["runs"])
    return counted(len(content["runs"]), "run") + (f", {counted(samplings, 'sampling')}" if samplings else "")


if __name__ == "__main__":
    main()
