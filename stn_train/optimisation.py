"""Settings to an optimiser and a learning rate schedule, both torch's own."""

import math

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


def build_optimizer(model: DigitClassifier, settings: TrainSettings) -> Optimizer:
    """The optimiser; the localisation network is a parameter group with its own learning rate."""
    rate = settings.learning_rate
    groups = [{"params": list(model.classifier.parameters()), "lr": rate}]
    if model.transformer is not None:
        localisation = list(model.transformer.parameters())
        groups.append(
            {"params": localisation, "lr": rate * settings.localisation_learning_rate_scale}
        )
    if settings.optimizer == "sgd":
        return SGD(groups, rate, settings.momentum, weight_decay=settings.weight_decay)
    # `fused` updates all weights in one pass over memory.
    return AdamW(groups, rate, weight_decay=settings.weight_decay, fused=True)


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
