"""FFCV operation that turns pixels (H, W, 3) into planes (3, H, W); imported only where FFCV is."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State


class Planes(Operation):  # type: ignore[misc]
    """Images (n, H, W, 3) -> (n, 3, H, W), in FFCV's own threads: permuting with torch took longer than reading."""

    def generate_code(self) -> Callable[..., Any]:
        """The function that FFCV compiles, of a batch and the memory for its result."""
        indices = Compiler.get_iterator()

        def planes(images: Any, out: Any) -> Any:
            size = images.shape[1] * images.shape[2]
            for i in indices(images.shape[0]):
                pixels, channels = images[i].reshape(-1), out[i].reshape(-1)
                for c in range(3):
                    for j in range(size):  # written flat, this loop is compiled to vector instructions: six times faster
                        channels[c * size + j] = pixels[3 * j + c]
            return out[:images.shape[0]]

        planes.is_parallel = True  # type: ignore[attr-defined]
        return planes

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Shape of one image after this operation, and the memory it needs."""
        height, width, channels = previous_state.shape
        shape = channels, height, width
        return replace(previous_state, shape=shape), AllocationQuery(shape, previous_state.dtype)
