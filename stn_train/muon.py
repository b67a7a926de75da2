"""Muon: an optimiser that turns all directions of a hidden layer's weights at the same speed.

Legend: M rows, the outputs of a layer; N columns, all that one output is computed from.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

MOMENTUM = 0.95
SAFETY = 1.01
"""By how much a singular value may leave its interval, by rounding, before Polar Express fails."""
ITERATIONS = {
    "newton_schulz": ((3.4445, -4.7750, 2.0315),) * 5,
    "polar_express": tuple(
        (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
        for a, b, c in (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        )
    ),
}
"""Name -> steps, each (a, b, c): it turns every singular value x into a x + b x^3 + c x^5.

newton_schulz: five times the step that grows small ones fastest (Jordan et al.). polar_express:
the first three steps of Amsel et al. 2025 (arXiv 2505.16932, algorithm 1).
"""
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

    def __init__(
        self,
        groups: list[dict[str, Any]],
        precision: torch.dtype,
        iteration: str,
        **adam: Any,
    ) -> None:
        """Optimise groups of parameters; matrices are multiplied in this precision.

        iteration: one of ITERATIONS.
        """
        super().__init__([{"hidden": False, **group} for group in groups], **adam)
        self.precision, self.iteration = precision, iteration

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
        turned = orthogonal(ahead.flatten(1).to(self.precision), self.iteration)
        weight.mul_(1 - rate * group["weight_decay"])
        weight.sub_(turned.reshape(weight.shape) * (rate * ADAM_RMS * max(turned.shape) ** 0.5))


def orthogonal(matrix: Tensor, iteration: str) -> Tensor:
    """A matrix (M, N) with its singular vectors, and singular values near one.

    iteration: one of ITERATIONS. By ``newton_schulz`` most values come to lie between 0.7 and 1.2,
        by ``polar_express`` between 0.2 and 1.9; those far below the largest stay smaller.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.mT, iteration).mT
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    for a, b, c in ITERATIONS[iteration]:
        square = matrix @ matrix.mT
        turn = torch.addmm(square, square, square, beta=b, alpha=c)  # b S + c S S
        matrix = torch.addmm(matrix, turn, matrix, beta=a)  # a X + (b S + c S S) X
    return matrix
