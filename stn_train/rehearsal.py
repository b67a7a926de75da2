"""A run tried out: some steps are taken, and the time of the whole run is extrapolated."""

import math
import time
from typing import NamedTuple

import torch

from stn_train.config import Config
from stn_train.data import Splits, test_set
from stn_train.evaluator import predict
from stn_train.models import parameter_count
from stn_train.training import Training

WARM_UP_STEPS = 4
"""Not timed: memory is fetched, kernels are chosen, and on a GPU the step is recorded."""
LEAST_STEPS, SECONDS = 2, 2.0
TESTED_DIGITS = 1000


class Rehearsal(NamedTuple):
    """What a whole run would take."""

    parameters: int
    steps: int
    step_seconds: float
    test_seconds: float
    total_seconds: float
    """Steps, validations and the test."""


def rehearse(config: Config, splits: Splits, device: torch.device) -> Rehearsal:
    """Take a few steps of a run and test it a little; writes nothing."""
    training = Training(config, splits.to(device), device)
    settings = config.train
    step_seconds: list[float] = []
    warm_up = min(WARM_UP_STEPS, training.steps - 1)
    batches = training.draw_pass(0).batches(settings.batch_size)
    while training.step < training.steps:
        if len(step_seconds) >= LEAST_STEPS and sum(step_seconds) > SECONDS:
            break
        started = time.perf_counter()
        training.take_step(batches[training.step % len(batches)])
        wait_for(device)
        if training.step > warm_up:
            step_seconds.append(time.perf_counter() - started)
    some = test_set(training.splits.test[:TESTED_DIGITS], config.distort, 0)
    predict(training.evaluated, some)
    started = time.perf_counter()
    predict(training.evaluated, some)
    wait_for(device)
    digit_seconds = (time.perf_counter() - started) / len(some)
    step = sorted(step_seconds)[len(step_seconds) // 2]
    test = digit_seconds * len(splits.test) * config.evaluate.draws
    validations = math.ceil(training.steps / (training.pass_steps * settings.validate_every))
    validation = digit_seconds * len(splits.validation) * validations
    total = training.steps * step + validation + test
    return Rehearsal(parameter_count(training.model), training.steps, step, test, total)


def wait_for(device: torch.device) -> None:
    """Until a device has done what it was asked to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
