"""Checks in a process of their own: the one that submits a study never loads PyTorch."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any


@contextlib.contextmanager
def checking_apart() -> Iterator[Callable[[str, str], Any]]:
    """Context with `checks.check`, run in a process that already loads PyTorch and ends with the context."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pool.submit(_check, "", "")

        def check(kind: str, text: str) -> Any:
            try:
                return pool.submit(_check, kind, text).result()
            except BrokenProcessPool as error:
                raise OSError("the process that checks the study was killed; this machine may be out of memory") from error

        yield check


def _check(kind: str, text: str) -> Any:
    from launch.study.checks import check

    return check(kind, text) if kind else None
