"""The time that a start takes, part by part, from the creation of the process to its first step."""
from __future__ import annotations

import os
import time
from pathlib import Path


def age() -> float:
    """Seconds since this process was created."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime, field 22
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # not Linux
        return time.process_time()


class Start:
    """Times the parts of a start as they end; ``parts`` holds their seconds."""

    def __init__(self) -> None:
        self.last = 0.0
        self.parts: dict[str, float] = {}

    def ended(self, part: str) -> None:
        """Ends the part that began when the previous one ended."""
        now = age()
        self.parts[part], self.last = round(now - self.last, 2), now
