"""The pictures of metrics: matplotlib without its global state, and the bytes of a picture."""
from __future__ import annotations

import io
from typing import Any


def charting() -> Any:
    """Matplotlib's Figure; raises ValueError that names the cure where it isn't installed."""
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
