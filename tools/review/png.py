"""Screenshots of the page for slides: a headless Chromium opens it one section at a time."""
from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (1600, 900)  # of the stage, in CSS pixels; page.css has the same numbers
SECONDS = 60


def slides(page: Path, content: dict[str, Any]) -> Iterator[Path]:
    """Writes <page>-<section>.png beside the page; raises OSError if there is no browser or it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"--png: no {', '.join(BROWSERS[:-1])} or {BROWSERS[-1]} on the PATH; install one")
    for section in sections(content):
        out = page.with_name(f"{page.stem}-{section}.png").resolve()
        with tempfile.TemporaryDirectory() as profile:
            shoot(browser, f"{page.resolve().as_uri()}#slide={section}", out, profile=profile)
        yield out


def sections(content: dict[str, Any]) -> list[str]:
    """The sections that have something to show."""
    runs = content["runs"]
    samplers = [one for run in runs for one in run["samplers"]]
    swept = {(name, value) for one in (*runs, *samplers) for name, value in one["parameters"].items()}
    names = [name for name, _ in swept]
    filled = {
        "table": True, "loss": any(run[name]["x"] for run in runs for name in ("train", "held_out")),
        "samples": any(run["previews"] for run in runs) or any(one["picture"] for one in samplers),
        "trajectories": any(one["trajectory"] for one in samplers),
        "calibration": any(run["calibration"] or run["by_sigma"] for run in runs),
        "evaluation": any(run["evaluations"] for run in runs),
        "heatmap": len({name for name in names if names.count(name) > 1}) > 1,
        "doctor": any(one["diagnoses"] for one in (*runs, *samplers))}
    return [name for name, full in filled.items() if full]


def shoot(browser: str, address: str, out: Path, *, profile: str) -> None:
    """Writes one picture; raises OSError with the browser's last output if it leaves none."""
    out.unlink(missing_ok=True)
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
               "--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}",
               "--force-device-scale-factor=1.5", "--virtual-time-budget=8000", f"--screenshot={out}", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"--png: {browser} did not answer within {SECONDS} s") from error
    if not out.exists():
        raise OSError(f"--png: {browser} left no picture: {' '.join(done.stderr.split())[-300:]}")
