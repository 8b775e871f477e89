"""How long training lasts and how its batches are split. Time is counted in images."""
from __future__ import annotations

from dataclasses import dataclass

from ebm.accepted import whole


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes and lengths of training; ``batch`` is the global batch, ``micro_batch`` the most one process holds at once.

    Raises ValueError for lengths below 1.
    """

    images: int
    batch: int
    micro_batch: int
    clip: float

    def __post_init__(self) -> None:
        whole(1, images=self.images, batch=self.batch, micro_batch=self.micro_batch)
        if not self.clip > 0:  # infinity clips nothing
            raise ValueError(f"clip: {self.clip!r} is not accepted; it must be a positive number")

    @property
    def steps(self) -> int:
        """Steps in the whole run."""
        return max(1, self.images // self.batch)

    def pieces(self, world: int) -> int:
        """Number of equal passes over which one process accumulates its share of the batch; raises ValueError where the batch
        doesn't divide among ``world`` processes."""
        local = local_batch(self.batch, world)
        return next(pieces for pieces in range(-(-local // self.micro_batch), local + 1) if local % pieces == 0)


def local_batch(batch: int, world: int) -> int:
    """Images of the global batch on each of ``world`` processes; raises ValueError where it doesn't divide."""
    if batch % world:
        raise ValueError(f"batch: {batch} is not accepted; it must divide among {world} processes")
    return batch // world
