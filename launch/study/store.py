"""The store, the folder that all studies share: frozen code, runs, the studies, and which job has queued each point."""
from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from launch.run.version import CHANGES, COMMIT, ROOT, changes, commit
from launch.study.point import Point

CODE = ("ebm", "launch", "configs", "setup.cfg", "setup.py")  # what decides a run's result, besides config and data


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Context in which no other study is submitted to the store."""
    store.mkdir(parents=True, exist_ok=True)
    with open(store / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            print(f"note: {store} can't be locked ({error}); submit one study at a time", file=sys.stderr)
        yield


def make_folder(folder: Path) -> Path:
    """A new folder for this study, named by the time."""
    folder.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y-%m-%d-%H%M%S")
    for number in range(1000):
        path = folder / (name if number == 0 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise OSError(f"{folder}: no free name")


def queued_by(point: Point, live: set[str]) -> str:
    """The job that another study has queued for the point, "" unless it is still waiting or running."""
    note = point.folder / "queued"
    number = note.read_text() if note.exists() else ""
    return number if number in live else ""


def frozen_code(store: Path, version: str | None) -> Path:
    """The frozen code of a version, None for the present code; raises ValueError if the store doesn't have it."""
    folder = store / "code" / (version or freeze(store))
    if not folder.exists():
        there = ", ".join(sorted(path.name for path in (store / "code").glob("[!.]*"))) or "none"
        raise ValueError(f"code: {version!r} is not in {store}/code; there are {there}")
    if not (folder / "launch" / "job" / "epilogue.py").exists():  # which a job's script calls at its end
        raise ValueError(f"code: {version!r} is older than this sweep.py; use its own: python {folder}/launch/sweep.py")
    return folder


def freeze(store: Path) -> str:
    """Copies the present code (the files that git tracks, as they are now) to ``store``/code/<version>; its version.

    Raises ValueError if there are files that git neither tracks nor ignores: what is checked here could not run there.
    """
    content = {file: (ROOT / file).read_bytes() for file in sorted(code_files())}
    hashes = [[file, hashlib.sha256(bytes_).hexdigest()] for file, bytes_ in content.items()]
    version = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]
    folder = store / "code" / version
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder.parent))
        for file, bytes_ in content.items():
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            (aside / file).write_bytes(bytes_)
        (aside / COMMIT).write_text(commit())
        (aside / CHANGES).write_text(changes())
        try:
            os.rename(aside, folder)  # another study may have been quicker
        except OSError:
            shutil.rmtree(aside)
    return version


def code_files() -> list[str]:
    """The project's files that git tracks; all of its code if this is not a checkout. Raises ValueError as `freeze` does."""
    names = [name for name in listed_files() if (ROOT / name).is_file()]
    if not names:
        return [str(path.relative_to(ROOT)) for name in CODE for path in [ROOT / name, *(ROOT / name).rglob("*")]
                if path.is_file() and "__pycache__" not in path.parts]
    if untracked := listed_files("--others", "--exclude-standard"):
        raise ValueError(f"code: git doesn't track {', '.join(untracked)}, so no job would have them; git add them first")
    return names


def modules_outside(text: str) -> set[str]:
    """The modules of the targets in a config in YAML that are neither in the frozen code nor installed."""
    modules = {target.rpartition(".")[0] for target in re.findall(r"_target_: (\S+)", text)}
    return {module for module in modules if (package := module.partition(".")[0]) not in CODE and not is_installed(package)}


@functools.cache  # every point of a study asks for the same few
def is_installed(package: str) -> bool:
    """Whether a package lies where distributions or Python itself are installed; it is not imported."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # of what is being run, say
        spec = None
    if spec is None or spec.origin in ("built-in", "frozen"):  # one that isn't there has been refused
        return True
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    folders = [site.getusersitepackages(), *site.getsitepackages(), *map(sysconfig.get_path, names)]
    places = [Path(place).resolve() for place in (spec.origin, *(spec.submodule_search_locations or ())) if place]
    return any(place.is_relative_to(Path(folder).resolve()) for place in places for folder in folders)


def listed_files(*options: str) -> list[str]:
    """The files of the code that `git ls-files` lists; none if this is not a checkout."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", *options, *CODE], capture_output=True, text=True,
                            check=False)
    return [name for name in listed.stdout.split("\0") if name]
