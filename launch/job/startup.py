"""How a process treats its memory: glibc keeps what is freed, and the garbage collector passes over what was imported."""
from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import sys


def keep_memory() -> None:
    """Lets glibc keep freed memory for the next step instead of returning it and taking every page anew."""
    trim_threshold, mmap_threshold, most = -1, -3, 32 << 20  # names and greatest threshold from malloc.h, mallopt(3)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, most)


def spare_imports() -> None:
    """Turns the garbage collector on, but keeps it from what was imported: that stays, and would be scanned again and again."""
    gc.freeze()
    gc.enable()
    atexit.register(spare_exit)


def spare_exit() -> None:
    """Keeps the interpreter from scanning at exit all that is left, which takes a second or two.

    Not where Triton is bound by nanobind, which reports what is then kept as leaks.
    """
    triton = sys.modules.get("triton._C.libtriton.ir")
    if type(getattr(triton, "builder", None)).__module__ != "nanobind":
        gc.freeze()
