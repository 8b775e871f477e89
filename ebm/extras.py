"""Packages that only some uses need: each belongs to an extra in setup.cfg, and one line says how to get it."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, uses: str) -> Iterator[None]:
    """Context of imports from the extra ``name``; raises ValueError, which names the ``uses`` that need it, if one fails."""
    try:
        yield
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        why = "not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise ValueError(how_to_install(package, name, uses, why=why)) from error


def how_to_install(package: str, name: str, uses: str, *, why: str = "not installed") -> str:
    """The line about a missing package of the extra ``name``, which the ``uses`` need."""
    return f"{package}: {why}; {uses} need pip install -e '.[{name}]'"
