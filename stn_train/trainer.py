"""Training: config to a trained, tested model in a run directory.

Legend: B batch, C canvas side in pixels.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn_train.atomic import write_json
from stn_train.captured import Captured
from stn_train.checkpoint import (
    MOST_WEIGHTS,
    Checkpoint,
    check_optimizer_state,
    check_weights,
    save_checkpoint,
)
from stn_train.config import Config, changed_settings, completed, refuse_other_config
from stn_train.data import (
    DistortedDigits,
    Plan,
    Splits,
    draw_plan,
    stream_seed,
    validation_set,
    watched_set,
)
from stn_train.device import autocast, choose_precision, seed_generator
from stn_train.distortions import distort
from stn_train.environment import describe_environment
from stn_train.errors import CheckpointError, ConfigError, DivergenceError, StnError
from stn_train.evaluator import Evaluation, error_percent, evaluate
from stn_train.meter import Meter
from stn_train.models import DigitClassifier, build_model, parameter_count
from stn_train.observer import Observer, Observers, Start
from stn_train.optimisation import (
    AveragedWeights,
    build_optimizer,
    build_schedule,
    steps_per_pass,
    total_steps,
)
from stn_train.run_directory import RunDirectory
from stn_train.signals import StoppedError, StopSignals, stopped_as
from stn_train.spatial_transformer import SpatialTransformer
from stn_train.tensorboard import TensorBoard

MOST_OUTSIDE = 0.6
"""Share of sampling points outside the image from which a spatial transformer looks collapsed."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    model: DigitClassifier
    """With the weights that the run ended with, averaged where the run averages."""
    evaluation: Evaluation
    summary: dict[str, Any]
    """The content of result.json."""


def train(
    config: Config,
    splits: Splits,
    run: RunDirectory,
    device: torch.device,
    observer: Observer | None = None,
    changes_wanted: bool = False,
) -> TrainResult:
    """Train a model, test it once, and write the run directory.

    Resumes from the run directory's newest checkpoint, if there is one; on the same machine, the
    result is then the same, bit for bit, as that of a run that was never stopped. With
    ``changes_wanted`` the checkpoint may be of another config, whose run continues with this one.

    Raises DivergenceError if the loss or a gradient is no longer finite, ConfigError if the
    checkpoint is of another config, the model is too large for one or a package is missing,
    StoppedError if a signal asked for an end, StnError if the device's memory is full.
    """
    observer = observer or Observer()
    if config.log.tensorboard:
        board = TensorBoard(run.tensorboard, splits.training, config.distort)
        observer = Observers([observer, board])
    environment = describe_environment(device)
    training = Training(config, splits.to(device), device)
    if run.has_checkpoint():
        training.restore(*run.newest_checkpoint(observer.warned), changes_wanted)
    run.begin(config, environment, training.step)
    observer.started(Start(config, training.evaluated, training.step, training.steps))
    try:
        with StopSignals() as signals:
            training.take_steps(run, observer, signals)
    except torch.OutOfMemoryError:
        full = f"the memory of {device} is full"
        raise StnError(f"{full}: lower train.batch_size or the widths in model") from None
    finally:
        observer.stopped()
    untested = f"stopped before the test; stn-train --resume {run.path} tests it"
    if signals.received:
        raise StoppedError(untested, signals.received)
    train_seconds = training.seconds
    model = training.evaluated
    tested = time.perf_counter()
    with stopped_as(untested):
        evaluation = evaluate(model, training.splits.test, config.distort, config.evaluate.draws)
    summary = summary_of(training, evaluation, environment) | {
        "train_seconds": train_seconds,
        "total_seconds": train_seconds + time.perf_counter() - tested,
    }
    write_json(run.result, summary)
    return TrainResult(model, evaluation, summary)


def summary_of(
    training: "Training", evaluation: Evaluation, environment: dict[str, Any]
) -> dict[str, Any]:
    """What result.json tells of a finished run, but for the time it took."""
    config, splits, model = training.config, training.splits, training.evaluated
    return {
        "distortion": config.distortion,
        "backbone": config.backbone,
        "transform": config.transform,
        "recipe": config.recipe,
        "seed": config.seed,
        "precision": str(training.precision).removeprefix("torch."),
        **evaluation.as_dict(),
        "validation_error_percent": training.validation_error_percent,
        "data": config.data.source,
        "training_digits": len(splits.training),
        "training_sha256": splits.training.sha256(),
        "passes": training.steps / training.pass_steps,
        "steps": training.steps,
        "parameters": parameter_count(model),
        "localisation_parameters": parameter_count(model.transformer) if model.transformer else 0,
        "resumed_at_steps": training.resumed_at_steps,
        "changes": training.changes,
        "config": config.as_dict(),
        "environment": environment,
    }


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
        self.snapshot_steps = snapshot_steps(self.steps, config.log.snapshots)
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

    def take_steps(self, run: RunDirectory, observer: Observer, signals: StopSignals) -> None:
        """Take all steps that are left; log, validate and save on the way."""
        settings, meter = self.config.train, self.meter
        meter.begin()

        def log(kind: str, **measured: float) -> None:
            record = {"kind": kind, "step": self.step, "pass": self.step / self.pass_steps}
            run.log(record | measured)
            observer.logged(record | measured)

        self.keep_snapshot(run)
        while self.step < self.steps:
            passed, done = divmod(self.step, self.pass_steps)
            batches = self.draw_pass(passed).batches(settings.batch_size)[done:]
            for batch in batches[: self.steps - self.step]:
                meter.add(self.take_step(batch), len(batch.order))
                observer.stepped(self.step)
                self.keep_snapshot(run)
                if self.step % settings.log_every == 0 or self.step == self.steps:
                    rate = float(self.learning_rate)
                    log("train", **self.checked(meter.read()), learning_rate=rate)
                if signals.received:
                    break
            stopping = signals.received  # a later signal waits for the next step
            passes, rest = divmod(self.step, self.pass_steps)
            if self.step == self.steps or (rest == 0 and passes % settings.validate_every == 0):
                meter.pause()
                self.refuse_diverged()
                if self.validation:
                    self.validation_error_percent = error_percent(self.evaluated, self.validation)
                    log("validation", validation_error_percent=self.validation_error_percent)
                error = self.validation_error_percent
                if error is not None and error < self.best_validation_error_percent:
                    self.best_validation_error_percent = error
                    save_checkpoint(run.best, self.checkpoint())
                if self.evaluated.transformer is not None:
                    log("transformer", **self.watch(self.evaluated.transformer, observer))
                self.save(run)
                meter.resume()
            elif stopping:
                self.refuse_diverged()
                self.save(run)
            if stopping and self.step < self.steps:
                raise StoppedError(
                    f"stopped at step {self.step:,} of {self.steps:,}; "
                    f"stn-train --resume {run.path} resumes it",
                    stopping,
                )

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

    def checked(self, measured: dict[str, float]) -> dict[str, float]:
        """A meter's reading, unless it shows that the loss is no longer finite."""
        if not math.isfinite(measured["loss"]):
            raise DivergenceError(self.diverged(self.step))
        return measured

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

    def watch(self, transformer: SpatialTransformer, observer: Observer) -> dict[str, float]:
        """What the spatial transformer does to a few digits; warns where it has collapsed."""
        images, _ = watched_set(self.splits.training, self.config.distort).batch(slice(None))
        with torch.no_grad():
            warp = transformer.warp(images)
        outside = float((warp.grid.abs() > 1).any(dim=-1).float().mean())
        spread = float(warp.theta.std(dim=0, correction=0).mean())
        if outside > MOST_OUTSIDE:
            observer.warned(
                f"step {self.step}: {100 * outside:.0f} % of the spatial transformer's points lie "
                "outside the image: it may have collapsed; try a lower train.learning_rate or "
                "train.localisation_learning_rate_scale"
            )
        return {"outside_share": outside, "theta_spread": spread}

    def save(self, run: RunDirectory) -> None:
        """Save where the run is; the checkpoint before stays beside the new one."""
        save_checkpoint(run.last, self.checkpoint(), run.previous)

    def keep_snapshot(self, run: RunDirectory) -> None:
        """Keep the model as it is, if it is time for it."""
        if self.step in self.snapshot_steps:
            self.refuse_diverged()
            run.snapshots.mkdir(exist_ok=True)
            weights = self.evaluated.state_dict()
            model = Checkpoint(self.config.as_dict(), self.step, weights, training={})
            save_checkpoint(run.snapshot(self.step), model)

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


def snapshot_steps(steps: int, count: int) -> set[int]:
    """When to keep a model: before the first step, after the last, and most often early on."""
    if count < 2:
        return {steps} if count else set()
    return {round(steps * (number / (count - 1)) ** 3) for number in range(count)}
