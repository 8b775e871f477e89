"""Arrays from .npz files, which may be damaged."""
from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MissingArrayError(ValueError):
    """A file of arrays hasn't the one that is asked for; it says which it has."""


def array_in(path: Path, key: str = "") -> tuple[str, NDArray[Any]]:
    """The array ``key`` of an .npz file, or its only one, after its name; raises FileNotFoundError, MissingArrayError, or
    ValueError for a file that is damaged or of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as arrays:  # numpy leaves a damaged one open
            name = key or (arrays.files[0] if len(arrays.files) == 1 else "")
            if name not in arrays.files:
                missing = f"has no array {key!r}" if key else "holds not one array"
                raise MissingArrayError(f"{path}: {missing}; it holds {', '.join(arrays.files) or 'none'}")
            array: NDArray[Any] | bytes = arrays[name]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if isinstance(array, bytes):  # a member that isn't numpy's
        raise ValueError(f"{path}: {name} is no array")
    return name, array
