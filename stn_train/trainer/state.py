"""The state of a run that changes, and one step of it.

Legend: B batch.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn_train.config import Config
from stn_train.config_changes import changed_settings, refuse_other_config
from stn_train.data.draws import stream_seed
from stn_train.data.sources import Splits
from stn_train.errors import CheckpointError, ConfigError, DivergenceError
from stn_train.models.network import Network
from stn_train.runs.checkpoint import (
    Checkpoint,
    check_optimizer_state,
    check_weights,
    config_of,
    images_entry,
)
from stn_train.runs.machine import autocast, choose_precision, seed_generator
from stn_train.tasks.examples import Examples, Pass, draw_pass
from stn_train.trainer.cuda_graph import RecordedStep
from stn_train.trainer.meter import Meter
from stn_train.trainer.optimisers import (
    AveragedWeights,
    build_optimizer,
    build_schedule,
    steps_per_pass,
    total_steps,
)


class State:
    """The state of a run that changes: weights, optimiser, schedule, average and step."""

    def __init__(
        self, config: Config, splits: Splits, device: torch.device, resumes: bool = False
    ) -> None:
        """Build everything at step 0; the images are on the device already.

        resumes: `restore` follows, so weights that others trained are not loaded. Without it
        raises DataError where a backbone asks for such weights and they cannot be had.
        """
        settings = config.train
        self.config, self.splits, self.device = config, splits, device
        self.task = config.task
        self.precision = choose_precision(settings.precision, device)
        torch.manual_seed(config.seed)
        # Weights are drawn on the CPU: the same on every device.
        self.model = config.build_network(splits.training.format)
        if not resumes:
            config.backbone.load_pretrained(self.model)
        self.model.to(device)
        self.pass_steps = steps_per_pass(settings, len(splits.training))
        self.steps = total_steps(settings, len(splits.training))
        self.optimizer: Optimizer = build_optimizer(self.model, settings, self.precision)
        self.schedule: LRScheduler = build_schedule(self.optimizer, settings, self.steps)
        self.average: AveragedWeights[Network] | None = None
        if settings.ema_decay:
            self.average = AveragedWeights(self.model, settings.ema_decay)
        self.update: Callable[..., Tensor] = self.update_weights
        if device.type == "cuda" and settings.cuda_graph:
            batch_size = min(settings.batch_size, len(splits.training))
            self.update = RecordedStep(self.update_weights, batch_size)
        self.validation: Examples | None = None
        if len(splits.validation):
            self.validation = Examples.for_validation(self.task, splits.validation)
        self.step = 0
        self.learning_rate: float | Tensor = 0.0  # of the last step
        self.validation_percent: float | None = None
        self.best_validation_percent = self.task.measure.worst
        self.meter = Meter()
        self.resumed_at_steps: list[int] = []
        self.changes: list[str] = []
        self.verdicts: dict[str, str] = {}  # of each transformer, so that a warning comes once
        self.started, self.earlier_seconds = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Time spent on the run, also before it was resumed."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @property
    def evaluated(self) -> Network:
        """The model that is evaluated: the average of the weights, where the run averages."""
        return self.model if self.average is None else self.average.model

    def draw_pass(self, passed: int) -> Pass:
        """The order of the images in a pass and their draws, on the device."""
        config = self.config
        draw = passed if config.train.fresh_distortions else 0
        return draw_pass(self.task, self.splits.training, config.seed, passed, draw)

    def take_step(self, batch: Pass) -> Tensor:
        """One step on a batch; returns the loss, still on the device."""
        # Dropout and jitter, the users of this generator, then depend on seed and step alone.
        seed_generator(stream_seed(self.config.seed, "step", self.step), batch.order.device)
        loss = self.update(batch.order, *batch.draws)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1
        return loss

    def update_weights(self, index: Tensor, *draws: Tensor) -> Tensor:
        """Loss, gradient and update for the images of an index (B,) and their draws (B, ...).

        On a GPU this may be recorded and replayed: nothing here waits for the device.
        """
        settings = self.config.train
        batch = self.task.batch(self.splits.training, index, draws)
        self.model.train()
        with autocast(self.precision, batch.inputs.device):
            loss = self.task.loss(self.model, batch, settings.label_smoothing)
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
        """Raise DivergenceError if a weight or a buffer is not finite: it must not be saved."""
        if not all(each.isfinite().all() for each in self.evaluated.state_dict().values()):
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
        key = f"validation_{self.task.measure.key}"
        training = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaged": int(self.average.count) if self.average else 0,
            "losses": [float(loss) for loss in self.meter.losses],
            key: self.validation_percent,
            f"best_{key}": self.best_validation_percent,
            "seconds": self.seconds,
            "resumed_at_steps": self.resumed_at_steps,
            "changes": self.changes,
        }
        return self.checkpoint_with(training)

    def snapshot(self) -> Checkpoint:
        """What evaluation needs, alone."""
        return self.checkpoint_with({})

    def checkpoint_with(self, training: dict[str, Any]) -> Checkpoint:
        """A checkpoint of the model as it is evaluated, and a state of the trainer."""
        return Checkpoint(
            self.config.as_dict(),
            self.step,
            self.evaluated.state_dict(),
            training,
            images_entry(self.splits.training.format),
        )

    def restore(self, path: Path, checkpoint: Checkpoint, accept_changes: bool = False) -> None:
        """Go on from what `checkpoint` returned, read from a path.

        accept_changes: if it is of another config, go on with ours: its weights, the state of the
            optimiser if that is the same one, our settings, and our schedule from this step on.
        Raises ConfigError if it is of another config or has taken more steps than ours asks for,
        CheckpointError if it does not fit.
        """
        if not accept_changes:
            advice = "--accept-changes resumes it with the new ones"
            refuse_other_config(path.parent, checkpoint.config, self.config, advice)
            self.refuse_other_images(path, checkpoint)
        state, former = checkpoint.training, config_of(path, checkpoint)
        if checkpoint.step > self.steps:
            taken = f"{path} has taken {checkpoint.step:,} steps already"
            raise ConfigError([f"{taken}, more than the {self.steps:,} asked for"])
        changed = changed_settings(former.as_dict(), self.config.as_dict())
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
                for group, own_group in zip(self.optimizer.param_groups, own_groups, strict=True):
                    group.update({key: own_group[key] for key in own_group if key != "params"})
                self.skip_steps(checkpoint.step)
            else:
                self.schedule.load_state_dict(state["schedule"])
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # a recorded step reads it on the GPU
                    group["lr"] = group["lr"].to(self.device)
            if self.average is not None:
                self.average.model.load_state_dict(checkpoint.weights)
                self.average.count.fill_(state["averaged"])
            self.meter.losses = [torch.tensor(loss, device=self.device) for loss in state["losses"]]
            if not any(key.startswith(("data", "distortion", "task")) for key in keys):
                # Else these were measured on other images.
                key = f"validation_{self.task.measure.key}"
                self.validation_percent = state[key]
                self.best_validation_percent = state[f"best_{key}"]
            self.earlier_seconds = state["seconds"]
            self.resumed_at_steps = [*state["resumed_at_steps"], checkpoint.step]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} cannot be resumed: {reason}") from None
        self.step = checkpoint.step

    def refuse_other_images(self, path: Path, checkpoint: Checkpoint) -> None:
        """Raise ConfigError if a checkpoint's images have another shape or other classes."""
        old, new = checkpoint.image_format, self.splits.training.format
        if old != new:
            shape, classes = [*old.shape], ", ".join(old.classes)
            told = f"{path} was trained on images of shape {shape} and the classes {classes:.200}"
            raise ConfigError([f"{told}; these are {[*new.shape]}, {', '.join(new.classes):.200}"])

    def skip_steps(self, steps: int) -> None:
        """Bring a fresh schedule to where it is after so many steps."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _ in range(min(steps, self.steps - 1)):
                self.schedule.step()
