"""A model whose score and energy are replayed as CUDA graphs: for few images, launching them from Python takes up to eleven
times as long as the work (docs/bench.md)."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebm.energy import Preconditioned
from ebm.evaluate.power import Passes
from ebm.graph import Recorded
from ebm.model import has_energy, levels_of


class RecordedScore:
    """The score of a model on a GPU, bit for bit; where gradients are enabled, it is not replayed.

    ``replayed`` counts a batch's passes through the network that its hooks don't see. The graphs, of one shape of images at a
    time, hold memory until `release`. Raises NotRecordableError where the model reads numbers back from the device.
    """

    def __init__(self, model: Preconditioned) -> None:
        self.model = model
        self.replayed = Passes()
        self.graphs: dict[tuple[str, object], tuple[Recorded, Passes]] = {}

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The model's score, (B, C, H, W), (B,) -> (B, C, H, W)."""
        return self.call(self.model.score, x, sigma)

    def call(self, method: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """``method(x, sigma)`` of the model."""
        if torch.is_grad_enabled():
            return method(x, sigma)
        sigma = levels_of(x, sigma)
        key = method.__name__, (x.shape, x.dtype, x.stride())
        if key not in self.graphs:
            self.graphs = {other: graph for other, graph in self.graphs.items() if other[1] == key[1]}  # frees their memory
            self.graphs[key] = Recorded(uncached(method), []), Passes()
        recorded, passes = self.graphs[key]
        if recorded.graph is None:
            with Passes.counted(self.model.network) as passes:
                output = recorded(x, sigma)
            self.graphs[key] = recorded, passes
        else:
            output = recorded(x, sigma)
            self.replayed.forward += passes.forward
            self.replayed.backward += passes.backward
        return output.clone()  # the next call writes to the same memory

    def release(self) -> None:
        """Gives the graphs' memory back."""
        self.graphs.clear()


class RecordedEnergy(RecordedScore):
    """An energy and its score, as `RecordedScore`."""

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The model's energy, (B, C, H, W), (B,) -> (B,)."""
        assert has_energy(self.model)
        return self.call(self.model.energy, x, sigma)


def recorded(model: Preconditioned) -> RecordedScore:
    """The model recorded, with an energy if it has one."""
    return (RecordedEnergy if has_energy(model) else RecordedScore)(model)


def uncached(method: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The method under the caller's autocast, but without its cache, which a graph would outlive."""
    def work(x: Tensor, sigma: Tensor) -> Tensor:
        kind = x.device.type
        with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind),
                            cache_enabled=False):
            return method(x, sigma)

    return work
