"""Pictures small enough for a page: a few tiles of each grid, encoded anew, each run with its share of the bytes."""
from __future__ import annotations

import base64
import io
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tools.review.curves import pick
from tools.review.records import Problem

LARGEST = 64  # pixels of a tile's side
QUALITY, QUALITY_OF_FRAMES = 84, 68  # a trajectory is mostly noise, which costs most and tells least
# By the bytes that a sampling has: images of a grid, frames and rows of a trajectory, pixels of a figure's width.
FORMS = ((200_000, (36, 32, 8, 1040)), (50_000, (16, 16, 4, 800)), (0, (9, 8, 3, 640)))


@dataclass(frozen=True)
class Grid:
    """How a PNG is cut: columns and rows of tiles, and how many of them are images."""

    columns: int
    rows: int
    count: int


@dataclass
class Share:
    """What one run may put into the album, and how its grids are cut down for that."""

    bytes: int
    samplings: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        each = self.bytes / (1 + self.samplings)
        self.tiles, self.frames, self.rows, self.widest = next(form for least, form in FORMS if each >= least)


@dataclass
class Album:
    """The page's pictures, as base64 by their number; keeps what it has encoded, for a page that is written again."""

    limit: int = 10_000_000
    pictures: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    known: dict[tuple[Any, ...], tuple[bytes, dict[str, Any]]] = field(default_factory=dict)

    def clear(self) -> None:
        """Begins anew; what was encoded stays known."""
        self.pictures, self.problems = [], []

    def tiles(self, path: Path, grid: Grid, share: Share) -> dict[str, Any] | None:
        """Puts the first images of a grid into the album; what the page must know of it, None where it has no room."""
        count = min(grid.count, share.tiles)
        places = [(index % grid.columns, index // grid.columns) for index in range(count)]
        return self.put(path, grid, places, math.ceil(math.sqrt(count)), share)

    def frames(self, path: Path, grid: Grid, frames: list[dict[str, Any]], share: Share) -> dict[str, Any] | None:
        """Puts a trajectory into the album, a row for each image and a column for each of the frames kept."""
        columns = pick(list(range(len(frames))), share.frames)
        rows = range(min(grid.rows, share.rows))
        sheet = self.put(path, grid, [(column, row) for row in rows for column in columns], len(columns), share,
                         quality=QUALITY_OF_FRAMES)
        return sheet and {**sheet, "frames": [frames[column] for column in columns], "of": len(frames)}

    def figure(self, path: Path, share: Share) -> dict[str, Any] | None:
        """Puts a whole picture into the album."""
        return self.put(path, Grid(1, 1, 1), [(0, 0)], 1, share, largest=share.widest)

    def put(self, path: Path, grid: Grid, places: list[tuple[int, int]], columns: int, share: Share, *,
            largest: int = LARGEST, quality: int = QUALITY) -> dict[str, Any] | None:
        """Encodes the tiles at ``places`` (column, row) as one sheet without gaps, if the run's share has room for it."""
        try:
            status = path.stat()
            key = (path, status.st_mtime_ns, status.st_size, grid, tuple(places), columns, largest, quality)
            if key not in self.known:
                with Image.open(path) as picture:
                    self.known[key] = encode(picture.convert("RGB"), grid, places, columns, largest=largest,
                                              quality=quality)
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            what = "missing" if isinstance(error, FileNotFoundError) else f"not a picture that can be read ({error})"
            self.problems.append(Problem(str(path), what.replace(str(path), "it")))
            return None
        content, sheet = self.known[key]
        if len(content) > share.bytes:
            share.left_out += 1
            return None
        share.bytes -= len(content)
        self.pictures.append(base64.b64encode(content).decode())
        return {"picture": len(self.pictures) - 1, **sheet}


def encode(picture: Image.Image, grid: Grid, places: list[tuple[int, int]], columns: int, *,
            largest: int, quality: int) -> tuple[bytes, dict[str, Any]]:
    """A sheet's bytes, and its form: ``columns``, ``rows``, ``width`` and ``height`` of a tile, ``count``."""
    # The grids of `ebm/pictures.py` have a pixel between their tiles and around them; a single image has none.
    gap = 1 if grid.columns * grid.rows > 1 and fits(picture.size, grid) else 0
    across, down = (picture.width - gap) / grid.columns, (picture.height - gap) / grid.rows
    width, height = max(1, round(across) - gap), max(1, round(down) - gap)
    scale = min(1.0, largest / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    rows = math.ceil(len(places) / columns)
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]), (128, 128, 128))
    for index, (column, row) in enumerate(places):
        left, top = round(column * across) + gap, round(row * down) + gap
        tile = picture.crop((left, top, left + width, top + height))
        tile = tile if tile.size == size else tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (index % columns * size[0], index // columns * size[1]))
    buffer = io.BytesIO()
    # Colour at full resolution: small images that are shown enlarged would bleed.
    sheet.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue(), {"columns": columns, "rows": rows, "width": size[0], "height": size[1], "count": len(places)}


def fits(size: tuple[int, int], grid: Grid) -> bool:
    """Whether a picture divides into a grid with a pixel between its tiles."""
    return (size[0] - 1) % grid.columns == 0 and (size[1] - 1) % grid.rows == 0


def square_grid(count: int) -> Grid:
    """The grid in which ``count`` images are saved: nearly square."""
    columns = math.ceil(math.sqrt(max(1, count)))
    return Grid(min(columns, max(1, count)), math.ceil(max(1, count) / columns), max(1, count))


def measure_grid(path: Path, shape: Any, most: int) -> Grid | None:
    """The grid of a picture whose count nobody wrote down, from its size and the images' (C, H, W); None if it can't be."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
        tall, wide = int(shape[-2]), int(shape[-1])
    except (OSError, TypeError, ValueError, IndexError):
        return None
    if (width, height) == (wide, tall):
        return Grid(1, 1, 1)
    if (width - 1) % (wide + 1) or (height - 1) % (tall + 1):
        return None
    columns, rows = (width - 1) // (wide + 1), (height - 1) // (tall + 1)
    return Grid(columns, rows, min(most, columns * rows))
