"""A training step recorded once as a CUDA graph: the networks are small, launching them is not."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls that run as they are before the recording: libraries choose their kernels there."""


class Captured:
    """A function of CUDA tensors that is recorded at its fourth call and replayed from then on.

    The function must never wait for the device, and everything it touches besides its inputs
    must stay where it is in memory. Inputs of another shape than the first are not recorded.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.inputs: list[Tensor] = []
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function of these inputs."""
        if not self.inputs:
            self.inputs = [each.clone() for each in inputs]
        if any(own.shape != given.shape for own, given in zip(self.inputs, inputs, strict=True)):
            return self.function(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.aside()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.function(*self.inputs)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it

    def aside(self) -> Tensor:
        """Run the function on a stream of its own, as a recording will."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream), warnings.catch_warnings():
            # An optimiser that can be captured warns, once, where it is not.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            output = self.function(*self.inputs)
        current.wait_stream(stream)
        return output
