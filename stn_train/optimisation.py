"""Settings to an optimiser, a learning rate schedule and an average of the weights."""

import copy
import math
from typing import Any

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

from stn_train.config import TrainSettings
from stn_train.models import DigitClassifier
from stn_train.muon import Muon


def build_optimizer(
    model: DigitClassifier, settings: TrainSettings, precision: torch.dtype = torch.float32
) -> Optimizer:
    """The optimiser; the localisation network has its own learning rate, biases do not decay.

    Decay of the last bias of a localisation network would pull the identity it stands for
    towards the map that is zero everywhere.
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


def parameter_groups(model: DigitClassifier, settings: TrainSettings) -> list[dict[str, Any]]:
    """Hidden weights, those of the output layers, and biases, of either network."""
    localisation_rate = settings.learning_rate * settings.localisation_learning_rate_scale
    rates: dict[nn.Module | None, float] = {
        model.classifier: settings.learning_rate,
        model.transformer: localisation_rate,
    }
    groups: list[dict[str, Any]] = []
    for module, rate in rates.items():
        if module is None:
            continue
        *hidden, output = [weight for weight in module.parameters() if weight.ndim > 1]
        biases = [bias for bias in module.parameters() if bias.ndim == 1]
        common = {"lr": rate, "hidden": False}
        decaying = common | {"weight_decay": settings.weight_decay}
        groups += [
            decaying | {"params": hidden, "hidden": True},
            decaying | {"params": [output]},
            common | {"params": biases, "weight_decay": 0.0},
        ]
    return groups


class AveragedWeights:
    """A moving average of a model's weights over its steps.

    The decay rises to its value over the first steps: else a short run's average would still be
    mostly its first weights. torch's `AveragedModel` asks the device for its count at every
    step, which waits for a GPU and cannot be captured.
    """

    def __init__(self, model: DigitClassifier, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = torch.zeros((), device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: DigitClassifier) -> None:
        """Take the model's present weights into the average; the first become the average."""
        averages: list[Tensor] = [*self.model.parameters()]
        weights: list[Tensor] = [*model.parameters()]
        keep = (self.count / (9 + self.count)).clamp(max=self.decay)
        change = [*torch._foreach_sub(weights, averages)]
        torch._foreach_mul_(change, 1 - keep)
        torch._foreach_add_(averages, change)
        self.count += 1


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


def total_steps(settings: TrainSettings, digits: int) -> int:
    """Steps of a whole run over this many training digits: durations become steps here alone."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None  # the config's check: one of the two is given
    return settings.epochs * steps_per_pass(settings, digits)


def steps_per_pass(settings: TrainSettings, digits: int) -> int:
    """Steps that see each training digit once; the last may be smaller."""
    return math.ceil(digits / settings.batch_size)
