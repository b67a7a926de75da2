"""The training loop: config to a trained, tested model in a run directory."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stn_train.config import Config
from stn_train.data.sources import Splits
from stn_train.diagnosis import circumstances, judge, of_transformer, watched
from stn_train.errors import DivergenceError, StnError
from stn_train.evaluator import Evaluation, evaluate, score_percent
from stn_train.models.network import Network, parameter_count
from stn_train.runs.checkpoint import save_checkpoint, save_model
from stn_train.runs.directory import RunDirectory
from stn_train.runs.environment import describe_environment
from stn_train.runs.files import write_json
from stn_train.runs.machine import hand_back_freed_memory, name_of_precision
from stn_train.runs.result import NUMERICS, Result
from stn_train.runs.signals import StoppedError, StopSignals, stopped_as
from stn_train.tasks.examples import Examples
from stn_train.trainer.observers import Observer, Start
from stn_train.trainer.state import State
from stn_train.trainer.tensorboard import TensorBoard
from stn_train.trainer.trackers import Tracker


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    model: Network
    """With the weights that the run ended with, averaged where the run averages."""
    evaluation: Evaluation
    result: Result
    """The content of result.json."""
    steps: int
    """Optimiser steps that were taken."""


def train(
    config: Config,
    splits: Splits,
    run: RunDirectory,
    device: torch.device,
    observer: Observer | None = None,
    accept_changes: bool = False,
) -> TrainResult:
    """Train a model, test it once, and write the run directory.

    Resumes from the run directory's newest checkpoint, if there is one; on the same machine, the
    result is then the same, bit for bit, as that of a run that was never stopped. With
    ``accept_changes`` the checkpoint may be of another config, whose run continues with this one.

    Raises DivergenceError if the loss or a gradient is no longer finite, ConfigError if the
    checkpoint is of another config or a package is missing, DataError if pre-trained weights cannot
    be had, StoppedError if a signal asked for an end, StnError if the device's memory is full.
    """
    observers = [] if observer is None else [observer]

    def warn(message: str) -> None:
        for each in observers:
            each.warned(message)

    if config.log.tensorboard:
        observers.append(TensorBoard(run.tensorboard, config.task, splits.training))
    if config.log.tracker:
        observers.append(Tracker(config.log.tracker, run.path, warn))
    environment = describe_environment(device)
    resumes = run.has_checkpoint()
    state = State(config, splits.to(device), device, resumes)
    if resumes:
        state.restore(*run.newest_checkpoint(warn), accept_changes)
    run.begin(config, environment, state.step)
    for each in observers:
        each.started(Start(config, state.evaluated, state.step, state.steps))
    try:
        with StopSignals() as signals:
            take_steps(state, run, observers, signals)
    except torch.OutOfMemoryError:
        full = f"the memory of {device} is full"
        raise StnError(f"{full}: lower train.batch_size or the sizes of the backbone") from None
    finally:
        for each in observers:
            each.stopped()
    untested = f"stopped before the test; stn-train --resume {run.path} tests it"
    if signals.received:
        raise StoppedError(untested, signals.received)
    train_seconds = state.seconds
    model = state.evaluated
    tested = time.perf_counter()
    hand_back_freed_memory()  # a batch of the test is larger than one of the training
    with stopped_as(untested):
        evaluation = evaluate(model, config.task, state.splits.test, config.evaluate.draws)
    total_seconds = train_seconds + time.perf_counter() - tested
    result = result_of(state, evaluation, environment, train_seconds, total_seconds)
    save_model(run.model, state.snapshot(), result.measured())
    write_json(run.result, result.as_dict())
    return TrainResult(model, evaluation, result, state.step)


def result_of(
    state: State,
    evaluation: Evaluation,
    environment: dict[str, Any],
    train_seconds: float,
    total_seconds: float,
) -> Result:
    """The result of a finished run."""
    config, training, model = state.config, state.splits.training, state.evaluated
    return Result(
        task=config.task_name,
        cell=config.cell,
        recipe=config.recipe,
        seed=config.seed,
        precision=name_of_precision(state.precision),
        numerics=NUMERICS,
        test_percent=evaluation.test_percent,
        interval_95_percent=evaluation.interval_95_percent,
        draws_mean_percent=evaluation.draws_mean_percent,
        draws_mean_interval_95_percent=evaluation.draws_mean_interval_95_percent,
        draws_percent=evaluation.draws_percent,
        test_digits=evaluation.count,
        test_sha256=evaluation.test_sha256,
        draws_sha256=evaluation.draws_sha256,
        confusion=evaluation.confusion,
        mistaken_digits=[*evaluation.mistakes.keys()],
        mistaken_on_draws=[*evaluation.mistakes.values()],
        validation_percent=state.validation_percent,
        data=config.source_name,
        training_digits=len(training),
        training_sha256=training.sha256(),
        passes=state.steps / state.pass_steps,
        steps=state.steps,
        parameters=parameter_count(model),
        localisation_parameters=parameter_count(nn.ModuleList(model.transformers.values())),
        resumed_at_steps=state.resumed_at_steps,
        changes=state.changes,
        config=config.as_dict(),
        environment=environment,
        train_seconds=train_seconds,
        total_seconds=total_seconds,
    )


def take_steps(
    state: State, run: RunDirectory, observers: Sequence[Observer], signals: StopSignals
) -> None:
    """Take all steps that are left; log, validate and save on the way."""
    settings, meter, measure = state.config.train, state.meter, state.task.measure
    snapshots = snapshot_steps(state.steps, state.config.log.snapshots)
    meter.begin()

    def log(kind: str, **measured: float) -> None:
        where = {"kind": kind, "step": state.step, "pass": state.step / state.pass_steps}
        record = where | measured | {"seconds": round(state.seconds, 3)}
        run.log(record)
        for each in observers:
            each.logged(record)

    def log_meter() -> None:
        measured = meter.read()
        if not math.isfinite(measured["loss"]):
            raise DivergenceError(state.diverged(state.step))
        log("train", **measured, learning_rate=float(state.learning_rate))

    if state.step in snapshots:
        keep_snapshot(state, run)
    while state.step < state.steps:
        passed, done = divmod(state.step, state.pass_steps)
        batches = state.draw_pass(passed).batches(settings.batch_size)[done:]
        for batch in batches[: state.steps - state.step]:
            meter.add(state.take_step(batch), len(batch.order))
            for each in observers:
                each.stepped(state.step)
            if state.step in snapshots:
                keep_snapshot(state, run)
            if state.step % settings.log_every == 0 or state.step == state.steps:
                log_meter()
            if signals.received:
                break
        stopping = signals.received  # a later signal waits for the next step
        passes, rest = divmod(state.step, state.pass_steps)
        finished = state.step == state.steps
        if finished or (rest == 0 and passes % settings.validate_every == 0):
            meter.pause()
            state.refuse_diverged()
            if state.validation:
                score = validate(state, state.validation, run)
                log("validation", **{f"validation_{measure.key}": score})
            if state.evaluated.transformers:
                log("transformer", **watch(state, observers, run.path))
            save_newest(state, run)
            meter.resume()
        elif stopping:
            state.refuse_diverged()
            save_newest(state, run)
        if stopping and not finished:
            raise StoppedError(
                f"stopped at step {state.step:,} of {state.steps:,}; "
                f"stn-train --resume {run.path} resumes it",
                stopping,
            )


def validate(state: State, examples: Examples, run: RunDirectory) -> float:
    """The measure on the validation images, in %; the best model so far is kept."""
    score = score_percent(state.evaluated, examples)
    state.validation_percent = score
    if state.task.measure.better(score, state.best_validation_percent):
        state.best_validation_percent = score
        save_checkpoint(run.best, state.checkpoint())
    return score


def save_newest(state: State, run: RunDirectory) -> None:
    """Save the state of the run; the checkpoint before stays beside the new one."""
    save_checkpoint(run.last, state.checkpoint(), run.previous)


def keep_snapshot(state: State, run: RunDirectory) -> None:
    """Keep the model as it is now."""
    state.refuse_diverged()
    run.snapshots.mkdir(exist_ok=True)
    save_checkpoint(run.snapshot(state.step), state.snapshot())


def watch(state: State, observers: Sequence[Observer], run: Path) -> dict[str, float]:
    """What the spatial transformers do to a few images (`diagnosis.watched`).

    Warns, with what to change, if one has collapsed; once, unless it collapses in another way. run:
    the directory that the warning names.
    """
    model = state.evaluated.eval()
    examples = Examples.watched(state.task, state.splits.training)
    with torch.no_grad():
        warps = model.trace(examples.batch(slice(None)).inputs).warps
    record = watched(warps, state.model)
    for name, transformer in model.transformers.items():
        own = of_transformer(record, name)
        before, now = state.verdicts.get(name), judge(own)
        state.verdicts[name] = now.name
        if not now.collapsed or now.name == before:
            continue
        rate_scale = state.config.train.localisation_learning_rate_scale
        finding = judge(own, circumstances(examples, transformer, rate_scale))
        which = f" {name}" if len(warps) > 1 else ""
        message = (
            f"step {state.step}: the spatial transformer{which} {finding.told}; {finding.advice} "
            f"(stn-visualize {run} --picture health shows its history)"
        )
        for each in observers:
            each.warned(message)
    return record


def snapshot_steps(steps: int, count: int) -> set[int]:
    """When to keep a model: before the first step, after the last, and most often early on."""
    if count < 2:
        return {steps} if count else set()
    return {round(steps * (number / (count - 1)) ** 3) for number in range(count)}
