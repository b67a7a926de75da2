"""A training step recorded once as a CUDA graph.

The networks are so small that launching their kernels one by one would take most of a step.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls that run as they are before the recording: libraries choose their kernels there."""


class RecordedStep:
    """A function of CUDA tensors that is recorded at its fourth call and replayed from then on.

    The function must never wait for the device, and everything it touches besides its inputs
    must stay at its place in memory. If the first input is not ``length`` long, as in the last
    batch of a pass, the function itself is called.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, function: Callable[..., Tensor], length: int) -> None:
        self.function, self.length = function, length
        self.inputs: list[Tensor] = []
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function of these inputs."""
        if len(inputs[0]) != self.length:
            return self.function(*inputs)
        if not self.inputs:
            self.inputs = [each.clone() for each in inputs]
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.on_side_stream()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.function(*self.inputs)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it

    def on_side_stream(self) -> Tensor:
        """Run the function on a stream of its own, as a recording will."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream), warnings.catch_warnings():
            # An optimiser that can be captured warns, once, where it is not.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            output = self.function(*self.inputs)
        current.wait_stream(stream)
        return output
