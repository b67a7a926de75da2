"""The state of a run that moves, and one step of it.

Legend: B batch, K parameters of a distortion, C canvas side in pixels.
"""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn_train.captured import Captured
from stn_train.checkpoint import (
    MOST_WEIGHTS,
    Checkpoint,
    check_optimizer_state,
    check_weights,
)
from stn_train.config import Config, changed_settings, completed, refuse_other_config
from stn_train.data import DistortedDigits, Plan, Splits, draw_plan, stream_seed, validation_set
from stn_train.device import autocast, choose_precision, seed_generator
from stn_train.distortions import distort
from stn_train.errors import CheckpointError, ConfigError, DivergenceError
from stn_train.meter import Meter
from stn_train.models import DigitClassifier, build_model, parameter_count
from stn_train.optimisation import (
    AveragedWeights,
    build_optimizer,
    build_schedule,
    steps_per_pass,
    total_steps,
)


class Training:
    """The state of a run that moves: weights, optimiser, schedule, average and step."""

    def __init__(self, config: Config, splits: Splits, device: torch.device) -> None:
        """Build everything at step 0; the digits are on the device already."""
        settings = config.train
        self.config, self.splits, self.device = config, splits, device
        self.precision = choose_precision(settings.precision, device)
        torch.manual_seed(config.seed)
        # Weights are drawn on the CPU: the same on every device.
        self.model = build_model(config).to(device)
        if parameter_count(self.model) > MOST_WEIGHTS:
            weights = f"the model has {parameter_count(self.model):,} weights"
            raise ConfigError([f"{weights}; a checkpoint holds {MOST_WEIGHTS:,}: lower its widths"])
        self.pass_steps = steps_per_pass(settings, len(splits.training))
        self.steps = total_steps(settings, len(splits.training))
        self.optimizer: Optimizer = build_optimizer(self.model, settings, self.precision)
        self.schedule: LRScheduler = build_schedule(self.optimizer, settings, self.steps)
        self.average: AveragedWeights | None = None
        if settings.ema_decay:
            self.average = AveragedWeights(self.model, settings.ema_decay)
        self.update: Callable[..., Tensor] = self.update_weights
        if device.type == "cuda" and settings.cuda_graph:
            digits = min(settings.batch_size, len(splits.training))
            self.update = Captured(self.update_weights, digits)
        self.validation: DistortedDigits | None = None
        if len(splits.validation):
            self.validation = validation_set(splits.validation, config.distort)
        self.step = 0
        self.learning_rate: float | Tensor = 0.0  # of the step taken last
        self.validation_error_percent: float | None = None
        self.best_validation_error_percent = math.inf
        self.meter = Meter()
        self.resumed_at_steps: list[int] = []
        self.changes: list[str] = []
        self.started, self.earlier_seconds = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Time spent on the run, before it was resumed too."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @property
    def evaluated(self) -> DigitClassifier:
        """The model whose error counts: the average of the weights, where the run averages."""
        return self.model if self.average is None else self.average.model

    def draw_pass(self, passed: int) -> Plan:
        """The order of the digits in a pass, and their distortions, on the device."""
        config = self.config
        draw = passed if config.train.fresh_distortions else 0
        return draw_plan(self.splits.training, config.distort, config.seed, passed, draw)

    def take_step(self, batch: Plan) -> Tensor:
        """One step on a batch; returns the loss, still on the device."""
        # Dropout, the only user of this generator, then depends on seed and step alone.
        seed_generator(stream_seed(self.config.seed, "step", self.step), batch.order.device)
        loss = self.update(*batch)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1
        return loss

    def update_weights(self, index: Tensor, parameters: Tensor) -> Tensor:
        """Loss, gradient and update for digits (B,) under distortions (B, K).

        On a GPU this may be recorded and replayed: nothing here waits for the device.
        """
        settings, digits = self.config.train, self.splits.training
        images = distort(digits.images[index], self.config.distort, parameters)  # (B, 1, C, C)
        self.model.train()
        with autocast(self.precision, images.device):
            logits = self.model(images)  # (B, 10)
        loss = F.cross_entropy(
            logits.float(), digits.labels[index], label_smoothing=settings.label_smoothing
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        weights = [*self.model.parameters()]
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        # Asking a GPU would wait for it; there the meter asks at the next logging point.
        if self.device.type == "cpu" and not norm.isfinite():
            what = "a gradient" if loss.isfinite() else "the loss"
            raise DivergenceError(self.diverged(self.step + 1, what))
        if settings.max_gradient_norm is not None:
            clip_grads_with_norm_(weights, settings.max_gradient_norm, norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        return loss.detach()

    def refuse_diverged(self) -> None:
        """Raise DivergenceError if a weight is no longer finite: such a model is not saved."""
        if not all(weight.isfinite().all() for weight in self.evaluated.parameters()):
            raise DivergenceError(self.diverged(self.step))

    def diverged(self, step: int, what: str = "the loss") -> str:
        """The message for something that is no longer finite."""
        passed, batch = divmod(step - 1, self.pass_steps)
        return (
            f"{what} is not finite at step {step} of {self.steps} (learning rate "
            f"{self.schedule.get_last_lr()[0]:.3g}; batch {batch} of pass {passed}, seed "
            f"{self.config.seed}): try a lower train.learning_rate, or set "
            "train.max_gradient_norm"
        )

    def checkpoint(self) -> Checkpoint:
        """What evaluation needs, and the rest of the state beside it."""
        training = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaged": int(self.average.count) if self.average else 0,
            "losses": [float(loss) for loss in self.meter.losses],
            "validation_error_percent": self.validation_error_percent,
            "best_validation_error_percent": self.best_validation_error_percent,
            "seconds": self.seconds,
            "resumed_at_steps": self.resumed_at_steps,
            "changes": self.changes,
        }
        return Checkpoint(self.config.as_dict(), self.step, self.evaluated.state_dict(), training)

    def restore(self, path: Path, checkpoint: Checkpoint, changes_wanted: bool = False) -> None:
        """Go on from what `checkpoint` returned, read from a path.

        changes_wanted: if it is of another config, go on with ours: its weights, the state of the
            optimiser if that is the same one, our settings, and our schedule from this step on.
        Raises ConfigError if it is of another config or has taken more steps than ours asks for,
        CheckpointError if it does not fit.
        """
        ours, state = self.config.as_dict(), checkpoint.training
        if not changes_wanted:
            advice = "--accept-changes resumes it with the new ones"
            refuse_other_config(path.parent, checkpoint.config, ours, advice)
        if checkpoint.step > self.steps:
            taken = f"{path} has taken {checkpoint.step:,} steps already"
            raise ConfigError([f"{taken}, more than the {self.steps:,} asked for"])
        changed = changed_settings(completed(checkpoint.config), ours)
        keys = {change.key for change in changed}
        try:
            check_weights(path, state["weights"], self.model)
            self.model.load_state_dict(state["weights"])
            own_groups = [dict(group) for group in self.optimizer.param_groups]
            if "train.optimizer" not in keys:
                self.optimizer.load_state_dict(state["optimizer"])
                check_optimizer_state(path, self.optimizer)
            self.changes = [*state["changes"]]
            if changed:
                self.changes += [f"before step {checkpoint.step}: {line}" for line in changed]
                for group, own in zip(self.optimizer.param_groups, own_groups, strict=True):
                    group.update({key: own[key] for key in own if key != "params"})
                self.skip_steps(checkpoint.step)
            else:
                self.schedule.load_state_dict(state["schedule"])
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # a captured step reads it on the GPU
                    group["lr"] = group["lr"].to(self.device)
            if self.average is not None:
                self.average.model.load_state_dict(checkpoint.weights)
                self.average.count.fill_(state["averaged"])
            self.meter.losses = [torch.tensor(loss, device=self.device) for loss in state["losses"]]
            if not any(key.startswith(("data", "distort")) for key in keys):
                # Else these are errors on other digits.
                self.validation_error_percent = state["validation_error_percent"]
                self.best_validation_error_percent = state["best_validation_error_percent"]
            self.earlier_seconds = state["seconds"]
            self.resumed_at_steps = [*state["resumed_at_steps"], checkpoint.step]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} cannot be resumed: {reason}") from None
        self.step = checkpoint.step

    def skip_steps(self, steps: int) -> None:
        """Bring a fresh schedule to where it is after so many steps."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _ in range(min(steps, self.steps - 1)):
                self.schedule.step()
