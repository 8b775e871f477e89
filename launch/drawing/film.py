"""The picture of a sampler's trajectory."""
from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ebm.data import to_uint8
from ebm.samplers.step import Step

ROWS, FRAMES = 8, 16  # images and steps, at most


@dataclass(kw_only=True)
class Film:
    """The first images of a batch at evenly spaced steps, the first and the last included."""

    sigma_data: float
    frames: list[dict[str, Any]] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)

    def show(self, step: Step) -> None:
        """Keeps the images of a step if it is one of those shown."""
        count = min(FRAMES, step.total)
        if step.index not in {round(k * (step.total - 1) / max(1, count - 1)) for k in range(count)}:
            return
        # Scaled to the data's contrast: at σ = 80 all pixels would be black or white.
        shrink = 1.0 if step.index == step.total - 1 else (1 + (step.sigma / self.sigma_data) ** 2) ** -0.5
        self.columns.append(to_uint8(shrink * step.x[:ROWS].float()).cpu())
        self.frames.append({"step": step.index + 1, "sigma": step.sigma})

    def png(self) -> bytes:
        """A PNG whose rows are images and whose columns are steps, without gaps."""
        pixels = torch.cat([torch.cat([*column], dim=1) for column in self.columns], dim=2)  # (C, rows · H, columns · W)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).squeeze(2).numpy())).save(buffer, "PNG")
        return buffer.getvalue()
