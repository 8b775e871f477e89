#!/usr/bin/env python3
"""Uploads what W&B wrote offline: `python tools/sync.py <folder of a study or of a run>`, each run's starts in order.

Repeat it as often as you like: what is there already stays, and what has failed is sent again. A start that is still being
written waits until it has ended, since wandb sends a file whole or not at all, and a server takes no row back. With --watch
it does so by itself, from a login node, while the jobs run.
Exit code 1: something could not be sent; 2: nothing could be tried.
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

REST = "there already, empty or being written"
# wandb's own patience, 20 tries of up to a minute (which 0 means, too), is too much for each of many files.
PATIENCE = {"WANDB__GRAPHQL_RETRY_MAX": "3", "WANDB__FILE_STREAM_RETRY_MAX": "5", "WANDB__FILE_TRANSFER_RETRY_MAX": "5"}
HIDING = ("WANDB_MODE", "WANDB_SILENT", "WANDB_QUIET")  # with these set wandb would not send, or not say why it can't


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a study's folder, or a run's")
    parser.add_argument("--watch", nargs="?", type=float, const=600.0, metavar="seconds",
                        help="again and again, until the study is over or Ctrl-C (600)")
    parser.add_argument("--dry-run", action="store_true", help="list, in order, what would be sent")
    parser.add_argument("--online", action="store_true", help="also what was written online, where its upload was cut short")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="seconds", help="for each file (900)")
    options = parser.parse_args()
    if options.watch is not None and not 1 <= options.watch < float("inf"):
        parser.error(f"--watch: {options.watch:g} is not accepted; give seconds, 1 or more")
    return options


def main() -> None:
    """Lists or uploads; exits with 1 where something failed, with 2 and one line on bad input."""
    options = arguments()
    try:
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(how_to_install("wandb", "wandb", "uploads"))
        if options.dry_run:
            print_listing(segments(folders(options.folder), online=options.online))
            return
        while True:
            last = not options.watch or is_over(options.folder)  # asked before, so that what is written at the end is sent, too
            failed = send(segments(folders(options.folder), online=options.online), seconds=options.timeout)
            if last:
                sys.exit(1 if failed else 0)
            time.sleep(options.watch)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


def print_listing(found: Sequence[Segment]) -> None:
    """Prints every file in order, with what would become of it."""
    chosen = pending(found)
    for one in found:
        state = "nothing in it" if one.empty else "to send" if one in chosen else "sent" if one.sent else "being written"
        print(f"{state:13}  {one.file.stat().st_size / 1000:9,.1f} kB  {one.file.parent}")
    print(f"{len(chosen)} of {len(found)} to send")


def send(found: Sequence[Segment], *, seconds: float) -> list[str]:
    """Uploads what is missing, names what can't be sent, and goes on with other runs; the ids of those that failed."""
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
          + (f", {waiting} later starts of theirs wait" if waiting else ""), flush=True)
    return failed


def upload(one: Segment, *, seconds: float) -> str:
    """Has wandb send one file; why it couldn't, "" if it could. Raises ValueError where there is no key."""
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
            return f"not done after {seconds:g} s (--timeout)"
        said = complaints(done.stdout + done.stderr, "".join(path.read_text() for path in logs.glob("debug-sync*")))
    if "No API key" in said:
        raise ValueError(f"no key for {os.environ.get('WANDB_BASE_URL', 'W&B')}: set WANDB_API_KEY or call `wandb login` once")
    if "ends with an incomplete record" in said:  # a run that is being written, or was killed: all before that has been sent
        one.marker.touch()
        said = ""
    if said or not one.marker.exists():  # wandb marks a file, and exits with 0, also when the server took nothing of it
        one.marker.unlink(missing_ok=True)
        return said or f"wandb sync ended with {done.returncode} and says no more"
    os.utime(one.marker, ns=(before, before))
    return ""


def complaints(text: str, log: str) -> str:
    """What went wrong, in one line: wandb's words, else those of its log on pictures not taken, of which it says nothing."""
    lines = re.findall(r"^(?:wandb: ERROR|Error:) (.*)$", text, re.MULTILINE)
    lines = [line for line in lines if "detailed error logs" not in line]
    records = [json.loads(line) for line in log.splitlines() if '"ERROR"' in line and '"task"' in line] if not lines else []
    lines += [str(records[0]["msg"])] if records else []
    return " ".join(" ".join(lines).split()) + (f" (and {len(records) - 1} more)" if len(records) > 1 else "")


if __name__ == "__main__":
    main()
