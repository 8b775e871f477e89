#!/usr/bin/env python3
"""Fetches the Inception weights that FID is measured with, once, to where configs/extractor/inception.yaml looks for them.

Run it where there is a network, such as a login node; evaluation reads the file and never downloads. What was broken off is
resumed, and the file gets its name only when its SHA-256 is right. Exit code 2 means bad input or no network.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "extractor" / "inception.yaml"
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
BLOCK = 1 << 18


class RefusedError(Exception):
    """What is wrong, in one line for the user."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    config = OmegaConf.load(CONFIG)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(config.file), help="the file (default: %(default)s)")
    parser.add_argument("--url", default=URL, help="another place to fetch it from, such as a mirror")
    parser.add_argument("--sha256", default=config.sha256, help="of another file than the published one")
    parser.add_argument("--timeout", type=float, default=30, help="seconds without a byte before it gives up (default: 30)")
    return parser


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def fetch(url: str, out: Path, *, sha256: str, timeout: float) -> str:
    """Makes sure that the file is there and whole; one line that says how. Raises RefusedError."""
    if out.is_file() and digest(out) == sha256:
        return f"{out}: there already, SHA-256 {sha256[:12]} is right"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    for again in (True, False):
        resumed = download(url, part, name=out.name, timeout=timeout)
        found = digest(part)
        if found == sha256:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, out)  # an old file of another hash goes only now
            return f"{out}: written, {out.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256[:12]} is right"
        part.unlink()
        if not (resumed and again):
            break  # what was resumed may have begun as another file: once more, from the start
    raise RefusedError(f"{url}: what came has SHA-256 {found[:12]}…, and not {sha256[:12]}…; nothing was kept")


def download(url: str, part: Path, *, name: str, timeout: float) -> bool:
    """Adds to ``part`` what it lacks; whether anything was there before. Raises RefusedError where it doesn't all come."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with contextlib.closing(urllib.request.urlopen(request, timeout=timeout)) as answer:
            if have and getattr(answer, "status", None) != 206:  # the server sends all of it
                have = 0
            left = answer.headers.get("Content-Length")
            total = have + int(left) if left else None
            with open(part, "ab" if have else "wb") as file, tqdm(
                    total=total, initial=have, desc=name, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return True
        raise RefusedError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise RefusedError(f"{url}: can't be fetched ({getattr(error, 'reason', None) or error}); run this where there is a "
                           "network, or copy the file from such a machine to the same place") from error
    if total is not None and part.stat().st_size < total:
        raise RefusedError(f"{url}: broken off after {part.stat().st_size / 1e6:.1f} of {total / 1e6:.1f} MB; run this again "
                           "to go on")
    return have > 0


def main() -> None:
    """Entry."""
    options = arguments().parse_args()
    try:
        if not re.fullmatch("[0-9a-f]{64}", options.sha256):
            raise RefusedError(f"--sha256: {options.sha256!r} is not accepted; it must be 64 hexadecimal digits")
        if not options.timeout > 0:
            raise RefusedError(f"--timeout: {options.timeout!r} is not accepted; it must be above 0")
        print(fetch(options.url, options.out.expanduser(), sha256=options.sha256, timeout=options.timeout))
    except (RefusedError, OSError, ValueError) as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("fetch_weights: stopped; run this again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
