"""Which code this is: a study's frozen copy by its version in the store, a checkout by its commit."""
from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMIT, CHANGES = "commit.txt", "changes.diff"  # beside frozen code: what it was frozen from


def version() -> str:
    """A frozen copy's version, or the commit with "+changes" where files differ from it; "unknown" outside of git."""
    if (ROOT / COMMIT).exists():
        return ROOT.name
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    return (commit + ("+changes" if changes() else "")) if commit else "unknown"


def commit() -> str:
    """The commit that the code comes from, "" where none is known."""
    return (ROOT / COMMIT).read_text() if (ROOT / COMMIT).exists() else git("rev-parse", "HEAD").strip()


def changes() -> str:
    """What the code differs by from its commit, as a diff."""
    return (ROOT / CHANGES).read_text() if (ROOT / CHANGES).exists() else git("diff", "HEAD")


def git(*arguments: str) -> str:
    """What git says about this code, "" where it says nothing."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, errors="replace",
                              check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
