"""Arrays from .npz files, which may be damaged."""
from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MissingArrayError(ValueError):
    """A file lacks the array asked for; the message lists those it holds."""


def array_in(path: Path, key: str = "") -> tuple[str, NDArray[Any]]:
    """The name and the content of the array ``key`` of an .npz file, or of its only one; raises FileNotFoundError,
    MissingArrayError, or ValueError for a file that is damaged or of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as arrays:  # numpy leaves a damaged one open
            name = key or (arrays.files[0] if len(arrays.files) == 1 else "")
            if name not in arrays.files:
                missing = f"has no array {key!r}" if key else "doesn't hold exactly one array"
                raise MissingArrayError(f"{path}: {missing}; it holds {', '.join(arrays.files) or 'none'}")
            try:
                array: NDArray[Any] | bytes = arrays[name]
            except ValueError as error:  # numpy doesn't name the file
                raise ValueError(f"{path}: array {name!r} is damaged, or of Python objects, as images of different sizes are "
                                 f"({error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if isinstance(array, bytes):  # a member that isn't numpy's
        raise ValueError(f"{path}: {name} is not an array")
    return name, array
