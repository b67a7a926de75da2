"""Settings to an optimiser and a learning rate schedule, both torch's own."""

import math

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
from torch.optim.swa_utils import AveragedModel

from stn_train.config import TrainSettings
from stn_train.models import DigitClassifier

Tensors = list[Tensor] | tuple[Tensor, ...]


def build_optimizer(model: DigitClassifier, settings: TrainSettings) -> Optimizer:
    """The optimiser; the localisation network has its own learning rate, biases do not decay.

    Decay of the last bias of a localisation network would pull the identity it stands for
    towards the map that is zero everywhere.
    """
    localisation_rate = settings.learning_rate * settings.localisation_learning_rate_scale
    rates: dict[nn.Module | None, float] = {
        model.classifier: settings.learning_rate,
        model.transformer: localisation_rate,
    }
    groups = [
        {
            "params": [each for each in module.parameters() if (each.ndim > 1) == decays],
            "lr": rate,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for module, rate in rates.items()
        if module is not None
        for decays in (True, False)
    ]
    if settings.optimizer == "sgd":
        return SGD(groups, settings.learning_rate, settings.momentum)
    # `fused` updates all weights in one pass over memory.
    return AdamW(groups, settings.learning_rate, fused=True)


def build_average(model: DigitClassifier, decay: float) -> AveragedModel:
    """The moving average of a model's weights; call its ``update_parameters`` after each step."""

    def average(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        # Without a warm-up a short run's average would still be mostly its first weights.
        warm = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, weights, 1 - warm)

    return AveragedModel(model, multi_avg_fn=average)


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
