"""A run of an earlier version, from before there were tasks: read, evaluated and resumed.

In format_1 lies what that version left of a run that was stopped at step 13 of 20 (last.pt and
the files beside it), and what the same run came to where it was not stopped (whole.pt, without
the trainer's state, and whole.json).
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CPU

from stn_train.data.sources import load_splits
from stn_train.evaluator import evaluate
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.runs.result import Result
from stn_train.trainer.loop import train

FORMER = Path(__file__).parent / "format_1"

REFERENCE_RUN = os.environ.get("STN_REFERENCE_RUN")
"""A run directory that an earlier version finished on the whole of MNIST."""


@pytest.fixture(scope="module")
def whole() -> Result:
    return Result.read(FORMER / "whole.json")


def test_its_result_is_read_as_it_was_written(whole):
    content = whole.as_dict()
    assert content.pop("task") == "classification"
    assert content.pop("numerics") == 1
    assert content == json.loads((FORMER / "whole.json").read_text())


def test_its_images_and_hashes_are_ours(whole, splits):
    run = load_run(FORMER / "whole.pt")
    evaluation = evaluate(run.model, run.config.task, splits.test, run.config.evaluate.draws)
    assert evaluation.draws_sha256 == whole.draws_sha256
    assert splits.training.sha256() == whole.training_sha256
    # On other processors a digit at the border may be answered in another way.
    assert evaluation.draws_percent == pytest.approx(whole.draws_percent, abs=1.0)


def test_it_is_resumed_to_the_same_end(whole, splits, tmp_path):
    shutil.copytree(FORMER, tmp_path / "run")
    with RunDirectory.reopen(tmp_path / "run") as run:
        config = run.trained_config()
        assert config.title == "ST-FCN Aff on R"
        trained = train(config, splits, run, CPU)
    ours, theirs = load_checkpoint(run.last), load_checkpoint(FORMER / "whole.pt")
    assert ours.step == theirs.step == 20
    assert [*ours.weights] == [*theirs.weights]
    for name, weight in ours.weights.items():
        torch.testing.assert_close(weight, theirs.weights[name], atol=1e-4, rtol=1e-3)
    result = trained.result
    assert result.resumed_at_steps == [13]
    for name in ("cell", "seed", "draws_sha256", "training_sha256", "passes", "steps", "precision"):
        assert getattr(result, name) == getattr(whole, name)
    assert (result.parameters, result.localisation_parameters) == (
        whole.parameters,
        whole.localisation_parameters,
    )
    assert result.validation_percent == pytest.approx(whole.validation_percent, abs=2.0)


def test_its_config_is_not_mistaken_for_another(tmp_path):
    run = RunDirectory(FORMER)
    config = run.trained_config()
    again = config.from_run(config.as_dict())
    assert again.as_dict() == config.as_dict()


@pytest.mark.skipif(REFERENCE_RUN is None, reason="STN_REFERENCE_RUN names no run")
def test_a_reference_run_has_its_errors():
    run = load_run(REFERENCE_RUN)
    result = Result.read(run.directory.result)
    test = load_splits(run.config.data).test
    evaluation = evaluate(run.model, run.config.task, test, run.config.evaluate.draws)
    assert evaluation.draws_percent == result.draws_percent
    assert evaluation.draws_sha256 == result.draws_sha256
