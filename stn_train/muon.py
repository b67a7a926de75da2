"""Muon: an optimiser that turns all directions of a hidden layer's weights at the same speed.

Legend: M rows, the outputs of a layer; N columns, all that one output is computed from.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic step of Newton-Schulz that grows small singular values fastest (Jordan et al.)."""
NEWTON_SCHULZ_STEPS = 5
ADAM_RMS = 0.2
"""Root mean square of a step of AdamW, in learning rates (Liu et al.)."""


class Muon(AdamW):
    """AdamW, but for groups of parameters that say ``"hidden": True``.

    Their weights, matrices (M, N) or kernels that are read as such, move by their momentum with
    all its singular values brought near one (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/), scaled so that the learning rate and weight decay
    of AdamW serve here too (Liu et al. 2025, arXiv 2502.16982).

    `torch.optim.Muon` does the same for matrices; it takes no kernels, leaves biases and output
    layers to a second optimiser, and cannot be captured in a CUDA graph.
    """

    def __init__(self, groups: list[dict[str, Any]], precision: torch.dtype, **adam: Any) -> None:
        """Optimise groups of parameters; matrices are multiplied in this precision."""
        super().__init__([{"hidden": False, **group} for group in groups], **adam)
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the gradients of hidden weights are used up by it."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            if group["hidden"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self.turn(weight, weight.grad, group)
                        weight.grad = None  # AdamW passes over what has no gradient
        super().step()
        return loss

    def turn(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Decay one hidden weight and move it."""
        state, rate = self.state[weight], group["lr"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # AdamW loads no state without it
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        turned = orthogonal(ahead.flatten(1).to(self.precision))
        weight.mul_(1 - rate * group["weight_decay"])
        weight.sub_(turned.reshape(weight.shape) * (rate * ADAM_RMS * max(turned.shape) ** 0.5))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (M, N) with its singular vectors, and singular values near one.

    Most come to lie between 0.7 and 1.2; those far below the largest stay smaller.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.mT).mT
    a, b, c = COEFFICIENTS
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = matrix @ matrix.mT
        turn = torch.addmm(square, square, square, beta=b, alpha=c)  # b S + c S S
        matrix = torch.addmm(matrix, turn, matrix, beta=a)  # a X + (b S + c S S) X
    return matrix
