"""A training step's work on a GPU, recorded once as a CUDA graph and replayed: launching it from Python, kernel by kernel,
takes longer than the work itself where images are few or small."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM = 3  # calls that run as they are: in them kernels are compiled, and libraries make their workspaces


class NotRecordableError(RuntimeError):
    """The work can't be recorded, as when it reads a number back from the device; the process must not go on with it."""


class Recorded:
    """Calls ``work(*inputs)`` as it is three times, then records it as a CUDA graph and replays that.

    ``work`` takes tensors of unchanging shapes, returns a tensor and leaves gradients in ``parameters``.

    Gradients are None before each call; after it they, and what it returns, hold until the next one. The graph keeps the memory
    of its work, so that what is done between steps needs its own. Raises NotRecordableError in the fourth call.
    """

    def __init__(self, work: Callable[..., Tensor], parameters: Sequence[Tensor]) -> None:
        self.work, self.parameters = work, parameters
        self.calls = 0
        self.stream: torch.cuda.Stream | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.calls < WARM:
            self.calls += 1
            return self.aside(*inputs)
        if self.graph is None:
            self.record(*inputs)
        assert self.graph is not None
        for place, one in zip(self.inputs, inputs, strict=True):
            place.copy_(one)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.output

    def aside(self, *inputs: Tensor) -> Tensor:
        """The work on the stream on which it will be recorded."""
        here = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            output = self.work(*inputs)
        here.wait_stream(self.stream)
        for one in (output, *(parameter.grad for parameter in self.parameters)):
            if one is not None:
                one.record_stream(here)
        return output

    def record(self, *inputs: Tensor) -> None:
        """Makes the graph, which does nothing yet, from inputs of the same shapes."""
        self.inputs, graph = [one.clone() for one in inputs], torch.cuda.CUDAGraph()
        try:
            # The data's thread may be copying images meanwhile, which is not to be recorded.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.output = self.work(*self.inputs)
        except RuntimeError as error:
            cause = str(error.__context__ or error)  # the end of a recording that has failed raises an error of its own
            why = next(iter(cause.splitlines()), "")
            told = f"cuda_graph: the step can't be recorded ({why}); start again with cuda_graph=false"
            raise NotRecordableError(told) from error
        self.graph, self.gradients = graph, [parameter.grad for parameter in self.parameters]
