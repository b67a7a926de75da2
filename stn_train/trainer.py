"""Training: config to a trained, tested model in a run directory."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from stn_train.atomic import write_json
from stn_train.checkpoint import Checkpoint, save_checkpoint
from stn_train.config import Config
from stn_train.data import DistortedDigits, Splits, watched_set
from stn_train.environment import describe_environment
from stn_train.errors import DivergenceError, StnError
from stn_train.evaluator import Evaluation, error_percent, evaluate
from stn_train.models import DigitClassifier, parameter_count
from stn_train.observer import Observer, Observers, Start
from stn_train.run_directory import RunDirectory
from stn_train.signals import StoppedError, StopSignals, stopped_as
from stn_train.spatial_transformer import SpatialTransformer
from stn_train.tensorboard import TensorBoard
from stn_train.training import Training

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
            take_steps(training, run, observer, signals)
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
    training: Training, evaluation: Evaluation, environment: dict[str, Any]
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


def take_steps(
    training: Training, run: RunDirectory, observer: Observer, signals: StopSignals
) -> None:
    """Take all steps that are left; log, validate and save on the way."""
    settings, meter = training.config.train, training.meter
    snapshots = snapshot_steps(training.steps, training.config.log.snapshots)
    meter.begin()

    def log(kind: str, **measured: float) -> None:
        record = {"kind": kind, "step": training.step, "pass": training.step / training.pass_steps}
        run.log(record | measured)
        observer.logged(record | measured)

    def log_meter() -> None:
        measured = meter.read()
        if not math.isfinite(measured["loss"]):
            raise DivergenceError(training.diverged(training.step))
        log("train", **measured, learning_rate=float(training.learning_rate))

    if training.step in snapshots:
        keep_snapshot(training, run)
    while training.step < training.steps:
        passed, done = divmod(training.step, training.pass_steps)
        batches = training.draw_pass(passed).batches(settings.batch_size)[done:]
        for batch in batches[: training.steps - training.step]:
            meter.add(training.take_step(batch), len(batch.order))
            observer.stepped(training.step)
            if training.step in snapshots:
                keep_snapshot(training, run)
            if training.step % settings.log_every == 0 or training.step == training.steps:
                log_meter()
            if signals.received:
                break
        stopping = signals.received  # a later signal waits for the next step
        passes, rest = divmod(training.step, training.pass_steps)
        finished = training.step == training.steps
        if finished or (rest == 0 and passes % settings.validate_every == 0):
            meter.pause()
            training.refuse_diverged()
            if training.validation:
                error = validate(training, training.validation, run)
                log("validation", validation_error_percent=error)
            if training.evaluated.transformer is not None:
                log("transformer", **watch(training, training.evaluated.transformer, observer))
            save(training, run)
            meter.resume()
        elif stopping:
            training.refuse_diverged()
            save(training, run)
        if stopping and not finished:
            raise StoppedError(
                f"stopped at step {training.step:,} of {training.steps:,}; "
                f"stn-train --resume {run.path} resumes it",
                stopping,
            )


def validate(training: Training, digits: DistortedDigits, run: RunDirectory) -> float:
    """The error in % on the validation digits; the best model so far is kept."""
    error = error_percent(training.evaluated, digits)
    training.validation_error_percent = error
    if error < training.best_validation_error_percent:
        training.best_validation_error_percent = error
        save_checkpoint(run.best, training.checkpoint())
    return error


def save(training: Training, run: RunDirectory) -> None:
    """Save where the run is; the checkpoint before stays beside the new one."""
    save_checkpoint(run.last, training.checkpoint(), run.previous)


def keep_snapshot(training: Training, run: RunDirectory) -> None:
    """Keep the model as it is now."""
    training.refuse_diverged()
    run.snapshots.mkdir(exist_ok=True)
    weights = training.evaluated.state_dict()
    model = Checkpoint(training.config.as_dict(), training.step, weights, training={})
    save_checkpoint(run.snapshot(training.step), model)


def watch(
    training: Training, transformer: SpatialTransformer, observer: Observer
) -> dict[str, float]:
    """What the spatial transformer does to a few digits; warns where it has collapsed."""
    images, _ = watched_set(training.splits.training, training.config.distort).batch(slice(None))
    with torch.no_grad():
        warp = transformer.warp(images)
    outside = float((warp.grid.abs() > 1).any(dim=-1).float().mean())
    spread = float(warp.theta.std(dim=0, correction=0).mean())
    if outside > MOST_OUTSIDE:
        observer.warned(
            f"step {training.step}: {100 * outside:.0f} % of the spatial transformer's points lie "
            "outside the image: it may have collapsed; try a lower train.learning_rate or "
            "train.localisation_learning_rate_scale"
        )
    return {"outside_share": outside, "theta_spread": spread}


def snapshot_steps(steps: int, count: int) -> set[int]:
    """When to keep a model: before the first step, after the last, and most often early on."""
    if count < 2:
        return {steps} if count else set()
    return {round(steps * (number / (count - 1)) ** 3) for number in range(count)}
