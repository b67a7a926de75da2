"""A run that was stopped and gone on with is the run that was never stopped, bit for bit."""

import json

import pytest
import torch
from conftest import CPU, Finished

from stn_train.checkpoint import load_checkpoint
from stn_train.errors import CheckpointError, ConfigError
from stn_train.run_directory import RunDirectory
from stn_train.trainer import Observer, Training, train

TUTORIAL = {"backbone": "tutorial", "train": {"epochs": 3, "log_every": 3}}
CHOICES = {
    "adamw": {"train": {"epochs": 3, "log_every": 3}},
    "muon": {"train": {"epochs": 3, "log_every": 3, "optimizer": "muon", "precision": "bfloat16"}},
    "sgd, averaged": {
        "train": {"epochs": 3, "optimizer": "sgd", "ema_decay": 0.9, "schedule": "cosine"}
    },
    "steps that end within a pass": {"train": {"steps": 25, "epochs": None, "schedule": "step"}},
    "dropout": TUTORIAL,
    "validated now and then": {"train": {"epochs": 3, "validate_every": 2}},
}


class Stops(Observer):
    """Ends the process, as it were, after a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int) -> None:
        if step == self.at:
            raise KeyboardInterrupt


def stopped(config, splits, path, *steps):
    """A run that was stopped at each of these steps and then finished."""
    run = RunDirectory.claim(path)
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train(config, splits, run, CPU, Stops(step))
    return Finished(config, run, train(config, splits, run, CPU))


def metrics(run: RunDirectory) -> list:
    """What was logged, save the speed."""
    return [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in run.read_metrics()
    ]


def assert_same(one: Finished, other: Finished) -> None:
    first, second = (load_checkpoint(run.last) for run in (one.run, other.run))
    for part in (lambda each: each.weights, lambda each: each.training["weights"]):
        for key, value in part(first).items():
            assert value.equal(part(second)[key]), key
    assert metrics(one.run) == metrics(other.run)
    own = {"train_seconds", "total_seconds", "resumed_at_steps", "environment"}
    summaries = [
        {key: value for key, value in each.result.summary.items() if key not in own}
        for each in (one, other)
    ]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("step", [3, 10, 17, 24])
def test_resumed_equals_uninterrupted(tiny, splits, trained, tmp_path, choice, step):
    config = tiny(**choice)
    resumed = stopped(config, splits, tmp_path / "stopped", step)
    assert_same(trained(config, "whole"), resumed)


def test_may_be_stopped_again_and_again(tiny, splits, trained, tmp_path):
    config = tiny(train={"epochs": 3})
    resumed = stopped(config, splits, tmp_path / "stopped", 4, 12, 12, 27)
    assert_same(trained(config, "whole"), resumed)
    assert resumed.result.summary["resumed_at_steps"] == [10, 20]  # those that came to a save


def test_stopped_while_it_was_tested(tiny, splits, trained, tmp_path, monkeypatch):
    run, config = RunDirectory.claim(tmp_path / "stopped"), tiny()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stn_train.trainer.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, splits, run, CPU)
    resumed = Finished(config, run, train(config, splits, run, CPU))
    assert_same(trained(config, "whole"), resumed)


def test_seconds_add_up(tiny, splits, tmp_path):
    run, config = RunDirectory.claim(tmp_path / "stopped"), tiny()
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, run, CPU, Stops(15))
    saved = torch.load(run.last, weights_only=True)
    saved["training"]["seconds"] += 1000
    torch.save(saved, run.last)
    result = train(config, splits, run, CPU)
    assert 1000 < result.summary["train_seconds"] < 1100
    assert result.summary["train_seconds"] < result.summary["total_seconds"] < 1200


def test_another_config_is_refused_with_what_differs(tiny, splits, finished, tmp_path):
    other = tiny(seed=2, train={"learning_rate": 0.5})
    training = Training(other, splits, CPU)
    with pytest.raises(ConfigError) as caught:
        training.restore(finished.run.last)
    assert caught.value.problems[1:] == [
        "seed is 1 there, 2 was asked for",
        "train.learning_rate is 0.01 there, 0.5 was asked for",
    ]


@pytest.mark.parametrize("key", ["weights", "optimizer", "schedule", "losses", "seconds"])
def test_checkpoint_without_a_part_is_told(tiny, splits, finished, tmp_path, key):
    content = torch.load(finished.run.last, weights_only=True)
    del content["training"][key]
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=f"last.pt cannot be gone on with: '{key}'"):
        Training(tiny(), splits, CPU).restore(tmp_path / "last.pt")


# By the command.


def test_command_goes_on_with_a_run(command, tiny, splits, nowhere, monkeypatch):
    run = RunDirectory.claim(nowhere / "run")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), splits, run, CPU, Stops(15))
    result = command("stn-train", "--resume", "run")
    assert result.exit_code == 0
    assert "test error" in result.output
    assert json.loads(run.result.read_text())["resumed_at_steps"] == [10]
    again = command("stn-train", "--resume", "run")
    assert again.exit_code == 0
    assert "run is complete" in again.output


@pytest.mark.parametrize("flag", [("--config", "r_affine"), ("--seed", "3"), ("--out", "x")])
def test_resume_takes_no_other_config(command, nowhere, flag):
    result = command("stn-train", "--resume", "run", *flag)
    assert result.exit_code == 2
    assert f"{flag[0]} does not go with --resume" in result.output


def test_nothing_to_go_on_with_is_told(command, nowhere):
    (nowhere / "run").mkdir()
    result = command("stn-train", "--resume", "run")
    assert result.exit_code == CheckpointError.exit_code
    assert "run has no checkpoint last.pt to go on from" in result.output
