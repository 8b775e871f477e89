"""Pictures of images in [-1, 1]."""
from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor


def save_grid(images: Tensor, path: Path) -> None:
    """Writes images (B, C, H, W) as one PNG grid, nearly square, pixels outside [-1, 1] clamped."""
    from torchvision.utils import make_grid, save_image  # here: it takes a second and 160 MB, which a login node need not spend

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = math.ceil(math.sqrt(len(images)))
    save_image(make_grid((images.float().clamp(-1, 1) + 1) / 2, nrow=columns, padding=1), path)
