"""The grids of samples that a run drew during training."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.review.album import Album, Share, square_grid
from tools.review.curves import pick
from tools.review.records import Record, of_event


def read_previews(folder: Path, records: Sequence[Record], *, most: int) -> list[dict[str, Any]]:
    """The grids of samples drawn during training, evenly chosen: ``images`` seen, ``path`` and ``grid``."""
    told = {one["images"]: one for one in of_event(records, "preview")}
    return [{"images": images, "path": folder / one["path"], "grid": square_grid(int(one["count"]))}
            for images, one in pick(sorted(told.items()), most)]


def put_preview(preview: dict[str, Any], album: Album, share: Share) -> dict[str, Any] | None:
    """Puts a preview into the album; None if it does not fit or can't be read."""
    sheet = album.tiles(preview["path"], preview["grid"], share)
    return sheet and {"images": preview["images"], **sheet}


def spread_evenly(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items reordered such that any first few of them are spread evenly: the first, the middle, the quarters, …"""
    order: list[int] = []
    parts = 1
    while len(order) < len(items):
        order += [place for part in range(parts) if (place := part * len(items) // parts) not in order]
        parts *= 2
    return [items[place] for place in order]
