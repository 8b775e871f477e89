#!/usr/bin/env python3
"""Uploads what W&B wrote offline: `python tools/sync.py <folder of a study or of a run>`, each run's starts in order.

It can be repeated: what has been sent stays, and what failed is sent again. A start that is still being written waits until
it has ended, since wandb sends a file whole or not at all, and a server takes no row back. With --watch it repeats itself,
from a login node, while the jobs run.
Exit code 1: something could not be sent; 2: nothing was tried.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # works from a checkout that is not installed

from tqdm import tqdm

from ebm.extras import how_to_install
from tools.review.offline import Segment, folders, is_over, pending, segments

REST = "sent before, empty or still being written"
# wandb itself tries 20 times for up to a minute (0 means the same), which is too long for each of many files.
PATIENCE = {"WANDB__GRAPHQL_RETRY_MAX": "3", "WANDB__FILE_STREAM_RETRY_MAX": "5", "WANDB__FILE_TRANSFER_RETRY_MAX": "5"}
HIDING = ("WANDB_MODE", "WANDB_SILENT", "WANDB_QUIET")  # with these set, wandb would not send, or not report why it can't


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a study's folder, or a run's")
    parser.add_argument("--watch", nargs="?", type=float, const=600.0, metavar="seconds",
                        help="repeat at this interval until the study is over, or Ctrl-C (600)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, in order")
    parser.add_argument("--online", action="store_true", help="also send online runs whose upload was cut short")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="seconds", help="limit for each file (900)")
    options = parser.parse_args()
    if options.watch is not None and not 1 <= options.watch < float("inf"):
        parser.error(f"--watch: {options.watch:g} is not accepted; it must be at least 1 second")
    return options


def main() -> None:
    """Lists or uploads; exits with 1 if something failed, with 2 and one line on bad input."""
    options = arguments()
    try:
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(how_to_install("wandb", "wandb", "uploads"))
        if options.dry_run:
            print_listing(segments(folders(options.folder), online=options.online))
            return
        while True:
            last = not options.watch or is_over(options.folder)  # asked first, so that what is written at the end is sent too
            failed = send(segments(folders(options.folder), online=options.online), seconds=options.timeout)
            if last:
                sys.exit(1 if failed else 0)
            time.sleep(options.watch)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr)
        sys.exit(130)


def print_listing(found: Sequence[Segment]) -> None:
    """Prints every file in order, with its state."""
    chosen = pending(found)
    for one in found:
        state = "empty" if one.empty else "to send" if one in chosen else "sent" if one.sent else "being written"
        print(f"{state:13}  {one.file.stat().st_size / 1000:9,.1f} kB  {one.file.parent}")
    print(f"{len(chosen)} of {len(found)} to send")


def send(found: Sequence[Segment], *, seconds: float) -> list[str]:
    """Uploads what is missing and reports what can't be sent, run by run; the ids of the runs that failed."""
    chosen, failed, waiting = pending(found), list[str](), 0
    if not chosen:
        print(f"nothing to send: {f'{len(found)} files, {REST}' if found else 'no run was written offline'}")
        return failed
    with tqdm(chosen, desc="W&B", unit="file") as bar:
        for one in bar:
            bar.set_postfix_str(one.run)
            if one.run in failed:  # a later start must not arrive before an earlier one
                waiting += 1
            elif reason := upload(one, seconds=seconds):
                failed.append(one.run)
                bar.write(f"failed: {one.file.parent}: {reason}", file=sys.stderr)
    sent = len(chosen) - len(failed) - waiting
    print(f"{sent} sent, {len(found) - len(chosen)} {REST}, {len(failed)} failed"
          + (f", {waiting} later starts of theirs held back" if waiting else ""), flush=True)
    return failed


def upload(one: Segment, *, seconds: float) -> str:
    """Has wandb send one file; why it could not, "" if it could. Raises ValueError without an API key."""
    before = one.file.stat().st_mtime_ns
    one.marker.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="wandb-sync-") as aside:
        env = {**PATIENCE, **{name: value for name, value in os.environ.items() if name not in HIDING}, "WANDB_DIR": aside}
        logs = Path(aside, "wandb", "logs")
        logs.mkdir(parents=True)
        try:
            done = subprocess.run([sys.executable, "-m", "wandb", "sync", "--include-online", str(one.file)], env=env,
                                  text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return f"not finished after {seconds:g} s (--timeout)"
        said = complaints(done.stdout + done.stderr, "".join(path.read_text() for path in logs.glob("debug-sync*")))
    if "No API key" in said:
        server = os.environ.get('WANDB_BASE_URL', 'W&B')
        raise ValueError(f"no API key for {server}: set WANDB_API_KEY or run `wandb login` once")
    if "ends with an incomplete record" in said:  # a run that is being written, or was killed: all before that has been sent
        one.marker.touch()
        said = ""
    if said or not one.marker.exists():  # wandb marks a file, and exits with 0, also when the server took nothing of it
        one.marker.unlink(missing_ok=True)
        return said or f"wandb sync exited with {done.returncode} and no message"
    os.utime(one.marker, ns=(before, before))
    return ""


def complaints(text: str, log: str) -> str:
    """What went wrong, in one line: wandb's output, else its log, which alone mentions pictures that were not accepted."""
    lines = re.findall(r"^(?:wandb: ERROR|Error:) (.*)$", text, re.MULTILINE)
    lines = [line for line in lines if "detailed error logs" not in line]
    records = [json.loads(line) for line in log.splitlines() if '"ERROR"' in line and '"task"' in line] if not lines else []
    lines += [str(records[0]["msg"])] if records else []
    return " ".join(" ".join(lines).split()) + (f" (and {len(records) - 1} more)" if len(records) > 1 else "")


if __name__ == "__main__":
    main()
