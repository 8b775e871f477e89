"""`metrics.jsonl`: one record per line for every event of a run, written by one process and cut back on resuming."""
from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebm.files import write_atomically


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, without a line that a kill left half-written."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


class Metrics:
    """Appends records to one file; ``cut`` drops what a resumed run will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **values: float | int | str) -> None:
        """Appends one record with the time in seconds since 1970, and null for a number that is not finite (JSON has none);
        raises OSError where it can't be written."""
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": round(time.time(), 2), **finite}) + "\n")

    def ended(self) -> bool:
        """Whether the last record is the end of training."""
        records = [*read(self.path)]
        return bool(records) and records[-1]["event"] == "end"

    def cut(self, step: int) -> None:
        """Drops the records of steps after ``step``."""
        records = [record for record in read(self.path) if record.get("step", 0) <= step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in records).encode())
