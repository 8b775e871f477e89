"""Thins curves for a page: few points and digits that keep the shape, the spikes and the ends."""
from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from tools.review.records import Record, number

Item = TypeVar("Item")


def short(value: Any) -> float | None:
    """A number with five digits, or None."""
    known = number(value)
    return None if known is None else known if isinstance(known, int) else float(f"{known:.5g}")


def thin(values: Sequence[float | None], limit: int) -> list[int]:
    """Places of at most ``limit`` (4 or more) of the values, the first and the last among them.

    Bucket by bucket the first value and the one that is farthest from it stay, so a spike is not thinned away. Half of the
    buckets are equally long, half grow geometrically, so that the curve is whole on a linear axis and on a logarithmic one.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))
    half = max(1, (limit - 2) // 4)
    edges = {count * part // half for part in range(half)} | {int(count ** (part / half)) - 1 for part in range(half)}
    kept = {0, count - 1}
    bounds = [*sorted(edges), count]
    for start, end in pairwise(bounds):
        kept |= {start, max(range(start, end), key=lambda place: away(values[place], values[start]))}
    return sorted(kept)


def away(value: float | None, start: float | None) -> float:
    """How far a value lies from the first of its bucket; what is missing is the least remarkable."""
    return -1.0 if value is None or start is None else abs(value - start)


def curve(records: Sequence[Record], name: str, *, limit: int) -> dict[str, list[Any]]:
    """One value of records against images seen, thinned."""
    places = thin([record.get(name) for record in records], limit)
    return {"x": [records[place]["images"] for place in places], "y": [short(records[place].get(name)) for place in places]}


def pick(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` (2 or more) items, evenly chosen, with both ends."""
    if len(items) <= limit:
        return list(items)
    return [items[round(place * (len(items) - 1) / (limit - 1))] for place in range(limit)]


def by_level(records: Sequence[Record], names: Sequence[str], *, limit: int) -> list[dict[str, Any]]:
    """Measurements along σ, one for each time at which there was one: ``images``, ``sigma`` and the values of ``names``."""
    times: dict[Hashable, dict[float, Record]] = {}
    for record in records:
        times.setdefault(record["images"], {})[record["sigma"]] = record  # the last: a resumed run measures its end again
    found = []
    for images, levels in pick(list(times.items()), limit):
        rows = [levels[sigma] for sigma in sorted(levels)]
        found.append({"images": images, **{name: [short(row.get(name)) for row in rows] for name in ("sigma", *names)}})
    return found
