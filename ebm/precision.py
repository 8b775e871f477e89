"""Mixed precision: autocast in the network, parameters and the energy's sum in float32."""
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """``name`` is fp32, bf16 or fp16 (with loss scaling); raises ValueError for any other."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in DTYPES:
            raise ValueError(f"precision: {self.name!r} is not accepted; choose {', '.join(DTYPES)}")

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Context in which a model is called."""
        dtype = DTYPES[self.name]
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Loss scaling for fp16; for the others a scale of 1, for the scaler's second use: it skips updates from non-finite
        gradients on the device, without waiting for the host."""
        if self.name == "fp16":
            return torch.amp.GradScaler(device.type)
        return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1)

    @property
    def scales(self) -> bool:
        """True where overflowing gradients are part of normal operation."""
        return self.name == "fp16"
