"""What must hold on every device of the machine, a GPU included where there is one."""

import json
import math

import pytest
import torch
from conftest import CPU

from stn_train.data.distortions import DISTORTIONS
from stn_train.evaluator import evaluate
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.tasks.examples import Examples
from stn_train.trainer.loop import train
from stn_train.trainer.state import State


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_is_the_same_as_on_the_cpu(name, device, splits):
    distortion, images = DISTORTIONS[name](), splits.test[:20]
    draws = distortion.draws(images, torch.Generator().manual_seed(0))
    here = distortion.apply(images, slice(None), draws)
    moved = tuple(draw.to(device) for draw in draws)
    there = distortion.apply(images.to(device), slice(None), moved).cpu()
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3)


def test_examples_have_the_same_hash_as_on_the_cpu(device, tiny, splits):
    task = tiny().task
    there = Examples.for_test(task, splits.test.to(device), 0)
    assert there.sha256() == Examples.for_test(task, splits.test, 0).sha256()
    assert {draw.device.type for draw in there.draws} == {device.type}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("backbone", ["FCN", "CNN"])
def test_the_first_steps_are_nearly_those_of_the_cpu(backbone, optimizer, device, tiny, splits):
    """Six of them: on an NVIDIA GPU the step is recorded at the fourth."""
    config = tiny(
        backbone=backbone, train={"optimizer": optimizer, "precision": "float32", "epochs": 1}
    )
    losses = {}
    for where in (CPU, device):
        state = State(config, splits.to(where), where)
        batches = state.draw_pass(0).batches(50)
        losses[where.type] = [float(state.take_step(batch)) for batch in batches[:6]]
    torch.testing.assert_close(losses[device.type], losses["cpu"], rtol=0.05, atol=0.02)


def test_a_run_ends_and_its_model_is_read_back(device, tiny, splits, tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    trained = train(tiny(train={"ema_decay": 0.9}), splits, run, device)
    result = json.loads(run.result.read_text())
    assert result["environment"]["device"] == device.type
    assert math.isfinite(result["test_error_percent"])
    loaded = load_run(run.path)
    again = evaluate(loaded.model, loaded.config.task, splits.test, 2)
    assert again.draws_sha256 == trained.evaluation.draws_sha256
    assert again.draws_percent == pytest.approx(trained.evaluation.draws_percent, abs=1.0)
