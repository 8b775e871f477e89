"""Work on a GPU, recorded once as a CUDA graph and replayed: a training step's, or a score. Launching it from Python, kernel by
kernel, takes longer than the work itself where images are few or small."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM = 3  # calls that run as they are, in which kernels are compiled and libraries allocate their workspaces


class NotRecordableError(RuntimeError):
    """The work can't be recorded, as when it reads a number back from the device; the process must not continue with it."""


class Recorded:
    """Calls ``work(*inputs)`` as it is three times, then records it as a CUDA graph and replays that.

    ``work`` takes tensors of unchanging shapes, returns a tensor and leaves gradients in ``parameters``.

    Gradients must be None before each call; afterwards they, and the tensor returned, are valid until the next call. The graph
    holds on to its memory, so work between steps needs memory of its own. Raises NotRecordableError in the fourth call.
    """

    def __init__(self, work: Callable[..., Tensor], parameters: Sequence[Tensor]) -> None:
        self.work, self.parameters = work, parameters
        self.calls = 0
        self.stream: torch.cuda.Stream | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.calls < WARM:
            self.calls += 1
            return self.directly(*inputs)
        if self.graph is None:
            self.record(*inputs)
        assert self.graph is not None
        for recorded, given in zip(self.inputs, inputs, strict=True):
            recorded.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.output

    def directly(self, *inputs: Tensor) -> Tensor:
        """Does the work without a graph, on the stream on which it will be recorded."""
        current = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            output = self.work(*inputs)
        current.wait_stream(self.stream)
        for tensor in (output, *(parameter.grad for parameter in self.parameters)):
            if tensor is not None:
                tensor.record_stream(current)
        return output

    def record(self, *inputs: Tensor) -> None:
        """Records the graph, without executing it, with inputs of the given shapes."""
        self.inputs, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        try:
            # Meanwhile the data's thread may be copying images, which must not be recorded.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.output = self.work(*self.inputs)
        except RuntimeError as error:
            cause = str(error.__context__ or error)  # ending a failed recording raises an error of its own
            why = next(iter(cause.splitlines()), "")
            message = f"cuda_graph: this model can't be recorded ({why}); start again with cuda_graph=false"
            raise NotRecordableError(message) from error
        self.graph, self.gradients = graph, [parameter.grad for parameter in self.parameters]
