"""Settings to an optimiser, a learning rate schedule and an average of the weights.

Legend: M rows, the outputs of a layer; N columns, the inputs of one output.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)
from typing_extensions import override

from stn_train.config import TrainSettings
from stn_train.models.spatial_transformer import OutputLayer, SpatialTransformer

M = TypeVar("M", bound=nn.Module)

# The optimiser.


def build_optimizer(
    model: nn.Module, settings: TrainSettings, precision: torch.dtype = torch.float32
) -> Optimizer:
    """The optimiser of a model that is on its device already.

    precision: Muon multiplies matrices in it.
    """
    device = next(model.parameters()).device
    captured = device.type == "cuda" and settings.cuda_graph
    groups = parameter_groups(model, settings)
    if captured:  # a number would become part of the recording, a tensor can be written to
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
    # `fused` updates all weights in one pass over memory.
    match settings.optimizer:
        case "sgd":
            fused = device.type != "mps"
            return SGD(groups, settings.learning_rate, settings.momentum, fused=fused)
        case "adamw":
            return AdamW(groups, settings.learning_rate, fused=True, capturable=captured)
        case "muon":
            adam = {"lr": settings.learning_rate, "fused": True, "capturable": captured}
            return Muon(groups, precision, settings.muon_iteration, **adam)


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Groups of parameters by their role, apart for those inside spatial transformers.

    hidden: matrices and kernels of hidden layers, which Muon turns. output: those of an
    `OutputLayer`. bias: anything with at most one dimension; it does not decay, because decay of
    a transformer's last bias would pull the identity towards the map that is zero everywhere.
    The order is part of the checkpoint format: an optimiser's saved state is loaded by position.
    """
    localisation_rate = settings.learning_rate * settings.localisation_learning_rate_scale
    outputs = [each.weight for each in model.modules() if isinstance(each, OutputLayer)]
    transformers = [each for each in model.modules() if isinstance(each, SpatialTransformer)]
    output_ids = {id(weight) for weight in outputs}
    inside_ids = {id(weight) for each in transformers for weight in each.parameters()}
    groups: list[dict[str, Any]] = []
    for inside, rate in ((False, settings.learning_rate), (True, localisation_rate)):
        roles: dict[str, list[nn.Parameter]] = {"hidden": [], "output": [], "bias": []}
        for parameter in model.parameters():
            if (id(parameter) in inside_ids) is inside and parameter.requires_grad:
                roles[role_of(parameter, id(parameter) in output_ids)].append(parameter)
        groups += [
            {
                "params": parameters,
                "lr": rate,
                "hidden": role == "hidden",
                "weight_decay": 0.0 if role == "bias" else settings.weight_decay,
            }
            for role, parameters in roles.items()
            if parameters
        ]
    return groups


def role_of(parameter: nn.Parameter, of_output_layer: bool) -> str:
    """hidden, output or bias."""
    if parameter.ndim <= 1:
        return "bias"
    return "output" if of_output_layer else "hidden"


MOMENTUM = 0.95
SAFETY = 1.01
"""By how much rounding may push a singular value out of its interval before Polar Express fails."""
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
"""Name -> steps, each (a, b, c): it maps every singular value x to a x + b x^3 + c x^5.

newton_schulz: five times the step that grows small ones fastest (Jordan et al.). polar_express:
the first three steps of Amsel et al. 2025 (arXiv 2505.16932, algorithm 1).
"""
LEAST_SIDE = 64
"""A matrix with a smaller side is not worth the conversion to bfloat16."""
ADAM_RMS = 0.2
"""Root mean square of a step of AdamW, in learning rates (Liu et al.)."""


class Muon(AdamW):
    """AdamW, except for groups of parameters that say ``"hidden": True``.

    Their weights, matrices (M, N) or kernels flattened to such, move by their momentum with
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
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        gradients: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group["hidden"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self.turn(weight, weight.grad, group)
                        gradients.append((weight, weight.grad))
                        weight.grad = None  # AdamW skips what has no gradient
        super().step()
        for weight, gradient in gradients:
            weight.grad = gradient
        return loss

    def turn(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Decay one hidden weight and move it."""
        state, rate = self.state[weight], group["lr"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # AdamW loads no state without it
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        ahead = ahead.flatten(1)  # (M, N)
        precision = self.precision if min(ahead.shape) >= LEAST_SIDE else torch.float32
        turned = orthogonal(ahead.to(precision), self.iteration)
        weight.mul_(1 - rate * group["weight_decay"])
        weight.sub_(turned.reshape(weight.shape) * (rate * ADAM_RMS * max(turned.shape) ** 0.5))


def orthogonal(matrix: Tensor, iteration: str) -> Tensor:
    """A matrix (M, N) with its singular vectors, and singular values near one.

    iteration: one of ITERATIONS. With ``newton_schulz`` most values end between 0.7 and 1.2,
        with ``polar_express`` between 0.2 and 1.9; those far below the largest stay smaller.
    """
    rows, columns = matrix.shape
    if rows > columns:
        return orthogonal(matrix.mT, iteration).mT
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    steps = ITERATIONS[iteration]
    if columns > GRAM_FROM * rows:
        precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        return gram_factor(precise, steps).to(matrix.dtype) @ matrix
    for a, b, c in steps:
        square = matrix @ matrix.mT
        turn = torch.addmm(square, square, square, beta=b, alpha=c)  # b S + c S S
        matrix = torch.addmm(matrix, turn, matrix, beta=a)  # a X + (b S + c S S) X
    return matrix


GRAM_FROM = 4
"""With more columns than this for each row, the way over the Gram matrix takes less time."""


def gram_factor(matrix: Tensor, steps: Sequence[tuple[float, float, float]]) -> Tensor:
    """The Q (M, M) for which Q X is what the steps make of a wide matrix X (M, N).

    A step multiplies X by Z = a I + b S + c S S, a polynomial of its Gram matrix S = X X^T, and so
    S by Z Z. Only the first S and the last product touch the N columns. In bfloat16 the small
    eigenvalues of S could turn negative, and would then grow without bound.
    """
    square = matrix @ matrix.mT  # S
    factor = torch.eye(len(square), dtype=square.dtype, device=square.device)  # Q
    for a, b, c in steps:
        turn = torch.addmm(square, square, square, beta=b, alpha=c)  # b S + c S S
        factor = torch.addmm(factor, turn, factor, beta=a)  # Z Q
        square = torch.addmm(square, turn, square, beta=a)  # Z S
        square = torch.addmm(square, turn, square, beta=a)  # Z Z S
    return factor


# The average.


class AveragedWeights(Generic[M]):
    """A moving average of a model's parameters over its steps.

    Buffers that are saved, such as BatchNorm's statistics, are averages already: the newest count.

    The decay rises to its value over the first steps: otherwise a short run's average would
    still be mostly its first weights. torch's `AveragedModel` asks the device for its count at
    every step, which waits for a GPU and cannot be captured.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = torch.zeros((), device=next(model.parameters()).device)
        saved = model.state_dict()
        self.buffers = [name for name, _ in model.named_buffers() if name in saved]

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Take the model's present weights into the average; the first become the average."""
        averages: list[Tensor] = [*self.model.parameters()]
        weights: list[Tensor] = [*model.parameters()]
        keep = (self.count / (9 + self.count)).clamp(max=self.decay)
        change = [*torch._foreach_sub(weights, averages)]
        torch._foreach_mul_(change, 1 - keep)
        torch._foreach_add_(averages, change)
        self.count += 1
        for name in self.buffers:
            self.model.get_buffer(name).copy_(model.get_buffer(name))


# Durations and the schedule.


def build_schedule(optimizer: Optimizer, settings: TrainSettings, steps: int) -> LRScheduler:
    """The learning rate over a run of ``steps`` steps; call its ``step`` after each."""
    match settings.schedule:
        case "one_cycle":
            total = max(steps, 3)  # with fewer OneCycleLR divides by zero, as with a short warmup
            return OneCycleLR(
                optimizer,
                [group["lr"] for group in optimizer.param_groups],
                total_steps=total,
                pct_start=max(settings.warmup, 2 / total),
                cycle_momentum=False,
            )
        case "cosine":
            return CosineAnnealingLR(optimizer, steps)
        case "step":
            at = [round(share * steps) for share in settings.step_at]
            return MultiStepLR(optimizer, at, settings.step_factor)
        case "constant":
            return ConstantLR(optimizer, factor=1.0)


def total_steps(settings: TrainSettings, images: int) -> int:
    """Steps of a whole run over this many training images: durations become steps here alone."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None  # the config's check: one of the two is given
    return settings.epochs * steps_per_pass(settings, images)


def steps_per_pass(settings: TrainSettings, images: int) -> int:
    """Steps that see each training image once; the last may be smaller."""
    return math.ceil(images / settings.batch_size)
