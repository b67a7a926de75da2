"""The rehearsal of a run: a few steps are taken, and the time of the whole is extrapolated."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from stn_train.config import Config
from stn_train.data.sources import Splits
from stn_train.evaluator import predict
from stn_train.models.network import parameter_count
from stn_train.runs.machine import wait_for
from stn_train.tasks.examples import Examples
from stn_train.trainer.state import State

WARM_UP_STEPS = 4
"""Not timed: memory is allocated, kernels are chosen, and on a GPU the step is recorded."""

MIN_TIMED_STEPS, TIMED_SECONDS = 2, 2.0
"""At least so many steps are timed, for at least so many seconds."""

TESTED_IMAGES = 1000


class Rehearsal(NamedTuple):
    """What a whole run would take."""

    parameters: int
    steps: int
    step_seconds: float
    test_seconds: float
    total_seconds: float
    """Steps, validations and the test."""


def rehearse(
    config: Config,
    splits: Splits,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Rehearsal:
    """Take a few steps of a run and test it a little; writes nothing.

    clock: what seconds are measured by; `time.process_time` where other programs share the core.
    """
    state = State(config, splits.to(device), device)
    settings = config.train
    step_seconds: list[float] = []
    warm_up = min(WARM_UP_STEPS, state.steps - 1)
    batches = state.draw_pass(0).batches(settings.batch_size)
    while state.step < state.steps:
        if len(step_seconds) >= MIN_TIMED_STEPS and sum(step_seconds) > TIMED_SECONDS:
            break
        started = clock()
        state.take_step(batches[state.step % len(batches)])
        wait_for(device)
        if state.step > warm_up:
            step_seconds.append(clock() - started)
    some = Examples.for_test(config.task, state.splits.test[:TESTED_IMAGES], 0)
    predict(state.evaluated, some)
    started = clock()
    predict(state.evaluated, some)
    wait_for(device)
    image_seconds = (clock() - started) / len(some)
    step = sorted(step_seconds)[len(step_seconds) // 2]
    test = image_seconds * len(splits.test) * config.evaluate.draws
    validations = math.ceil(state.steps / (state.pass_steps * settings.validate_every))
    validation = image_seconds * len(splits.validation) * validations
    total = state.steps * step + validation + test
    return Rehearsal(parameter_count(state.model), state.steps, step, test, total)
