"""A training step's work on a GPU, recorded once as a CUDA graph and replayed: launching it from Python, kernel by kernel,
takes longer than the work itself where images are few or small. Several processes add their gradients up after it."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM = 3  # calls that run as they are: in them kernels are compiled, and libraries make their workspaces


class Recorded:
    """``work(*inputs)``, tensors of unchanging shapes to a tensor, with gradients of ``parameters``: a graph from its fourth
    call on.

    Gradients are None before each call; after it they, and what it returns, hold until the next one. Where the work can't be
    recorded, as when it reads a number back from the device, a warning says so and it runs as it is.
    """

    def __init__(self, work: Callable[..., Tensor], parameters: Sequence[Tensor]) -> None:
        self.work, self.parameters = work, parameters
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.calls < WARM:
            self.calls += 1
            return self.aside(*inputs)
        if self.calls == WARM:
            self.calls += 1
            self.record(*inputs)
        if self.graph is None:
            return self.work(*inputs)
        for place, one in zip(self.inputs, inputs, strict=True):
            place.copy_(one)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.output

    def aside(self, *inputs: Tensor) -> Tensor:
        """The work on a stream of its own, as it will be recorded."""
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            output = self.work(*inputs)
        here.wait_stream(stream)
        for one in (output, *(parameter.grad for parameter in self.parameters)):
            if one is not None:
                one.record_stream(here)
        return output

    def record(self, *inputs: Tensor) -> None:
        """Makes the graph, which does nothing yet, from inputs of the same shapes."""
        self.inputs, graph = [one.clone() for one in inputs], torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may be copying images
                self.output = self.work(*self.inputs)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            warnings.warn(f"the training step can't be recorded as a CUDA graph ({why}); it runs as it is", stacklevel=2)
            torch.cuda.synchronize()
        else:
            self.graph, self.gradients = graph, [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
