"""The grids of samples that a run has drawn while it trained."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.review.album import Album, Share, measured, square
from tools.review.curves import pick
from tools.review.records import Record, number, of


def previews(folder: Path, records: Sequence[Record], shape: Any, *, most: int) -> list[dict[str, Any]]:
    """The grids of samples drawn during training, evenly chosen: ``images`` seen, ``path`` and ``grid``."""
    told = {one["images"]: (folder / one["path"], number(one.get("count"))) for one in of(records, "preview")}
    if not told:  # older runs write none; their names tell
        for path in sorted((folder / "previews").glob("images-*.png")):
            digits = path.stem.removeprefix("images-")
            if digits.isdigit():
                told[int(digits)] = (path, None)
    found = []
    for images, (path, count) in pick(sorted(told.items()), most):
        grid = square(int(count)) if count else measured(path, shape, 10_000)
        found.append({"images": images, "path": path, "grid": grid})
    return found


def shown(preview: dict[str, Any], album: Album, share: Share) -> dict[str, Any] | None:
    """A preview put into the album; None where it has no room or can't be read."""
    path, grid = preview["path"], preview["grid"]
    sheet = album.tiles(path, grid, share) if grid else album.figure(path, share)
    return sheet and {"images": preview["images"], **sheet}


def spread(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same items in an order whose every beginning is spread evenly: the first, the middle, the quarters, …"""
    order: list[int] = []
    parts = 1
    while len(order) < len(items):
        order += [place for part in range(parts) if (place := part * len(items) // parts) not in order]
        parts *= 2
    return [items[place] for place in order]
