"""Figures of metrics, drawn with matplotlib without its global state."""
from __future__ import annotations

import io
from typing import Any


def charting() -> Any:
    """Matplotlib's Figure; raises ValueError with the command that installs it where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"{error.name}: not installed; pictures of metrics need pip install -e '.[evaluate]'") from error
    return Figure


def png(figure: Any) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
