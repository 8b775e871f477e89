"""Work in a process of its own: PyTorch is loaded beside the one that submits a study, and gone before anything is queued."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any


@contextlib.contextmanager
def checking_apart() -> Iterator[Callable[[str, str], Any]]:
    """`checks.check` in a process that has begun to load PyTorch and ends with the context; raises what it raises."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pool.submit(_check, "", "")

        def check(kind: str, text: str) -> Any:
            try:
                return pool.submit(_check, kind, text).result()
            except BrokenProcessPool as error:
                raise OSError("the process that checks the study was killed; is there memory left on this machine?") from error

        yield check


def _check(kind: str, text: str) -> Any:
    from launch.study.checks import check

    return check(kind, text) if kind else None
