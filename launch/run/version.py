"""The version of this code: of a study's frozen copy its name in the store, of a checkout its commit."""
from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMIT, CHANGES = "commit.txt", "changes.diff"  # beside frozen code: what it was frozen from


def version() -> str:
    """The version of a frozen copy, or the commit, with "+changes" if files differ from it; "unknown" outside git."""
    if (ROOT / COMMIT).exists():
        return ROOT.name
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    return (commit + ("+changes" if changes() else "")) if commit else "unknown"


def commit() -> str:
    """The commit that the code comes from, "" if unknown."""
    return (ROOT / COMMIT).read_text() if (ROOT / COMMIT).exists() else git("rev-parse", "HEAD").strip()


def changes() -> str:
    """The changes of the code since its commit, as a diff."""
    return (ROOT / CHANGES).read_text() if (ROOT / CHANGES).exists() else git("diff", "HEAD")


def git(*arguments: str) -> str:
    """The output of git for this code, "" if it fails."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, errors="replace",
                              check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
