"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU, Finished

from stn_train.data.images import Images
from stn_train.data.sources import Splits
from stn_train.errors import CheckpointError, ConfigError
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory
from stn_train.runs.signals import StoppedError, Terminated
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer
from stn_train.trainer.state import State

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
        {key: value for key, value in record.items() if key not in ("images_per_second", "seconds")}
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
        {key: value for key, value in each.result.result.as_dict().items() if key not in own}
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
    assert resumed.result.result.resumed_at_steps == [10, 20]  # those that came to a save


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_stopped_while_it_was_tested(raised, code, tiny, splits, trained, tmp_path, monkeypatch):
    run, config = RunDirectory.claim(tmp_path / "stopped"), tiny()

    def interrupted(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr("stn_train.trainer.loop.evaluate", interrupted)
        with pytest.raises(StoppedError, match=r"--resume .*stopped tests it") as told:
            train(config, splits, run, CPU)
    assert told.value.exit_code == code
    resumed = Finished(config, run, train(config, splits, run, CPU))
    assert_same(trained(config, "whole"), resumed)


def test_signal_at_the_last_step_stops_before_the_test(tiny, splits, trained, tmp_path):
    run, config = RunDirectory.claim(tmp_path / "stopped"), tiny()

    class Signals(Observer):
        def stepped(self, step: int) -> None:
            if step == 20:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match="stopped before the test") as told:
        train(config, splits, run, CPU, Signals())
    assert told.value.exit_code == 143
    resumed = Finished(config, run, train(config, splits, run, CPU))
    assert_same(trained(config, "whole"), resumed)


@pytest.mark.parametrize("step", [9, 10, 11, 20])
def test_signal_at_any_step_changes_no_metrics(step, tiny, splits, trained, tmp_path):
    run, config = RunDirectory.claim(tmp_path / "stopped"), tiny()

    class Signals(Observer):
        def stepped(self, now: int) -> None:
            if now == step:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError):
        train(config, splits, run, CPU, Signals())
    assert load_checkpoint(run.last).step == step
    assert_same(trained(config, "whole"), Finished(config, run, train(config, splits, run, CPU)))


def test_seconds_add_up(tiny, splits, tmp_path):
    run, config = RunDirectory.claim(tmp_path / "stopped"), tiny()
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, run, CPU, Stops(15))
    saved = torch.load(run.last, weights_only=True)
    saved["training"]["seconds"] += 1000
    torch.save(saved, run.last)
    result = train(config, splits, run, CPU)
    assert 1000 < result.result.train_seconds < 1100
    assert result.result.train_seconds < result.result.total_seconds < 1200


def test_another_config_is_refused_with_what_differs(tiny, splits, finished, tmp_path):
    other = tiny(seed=2, train={"learning_rate": 0.5})
    state = State(other, splits, CPU)
    with pytest.raises(ConfigError) as caught:
        state.restore(finished.run.last, load_checkpoint(finished.run.last))
    assert caught.value.problems[1:] == [
        "seed is 1 in the run, 2 was asked for",
        "train.learning_rate is 0.01 in the run, 0.5 was asked for",
    ]


@pytest.mark.parametrize("key", ["weights", "optimizer", "schedule", "losses", "seconds"])
def test_checkpoint_without_a_part_is_told(tiny, splits, finished, tmp_path, key):
    content = torch.load(finished.run.last, weights_only=True)
    del content["training"][key]
    torch.save(content, tmp_path / "last.pt")
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match=f"last.pt cannot be resumed: '{key}'"):
        State(tiny(), splits, CPU).restore(path, load_checkpoint(path))


# By the command.


@pytest.fixture
def left(tiny, splits, nowhere) -> RunDirectory:
    """A run that was stopped after step 15, in the folder `run`."""
    with RunDirectory.claim(nowhere / "run") as run, pytest.raises(KeyboardInterrupt):
        train(tiny(), splits, run, CPU, Stops(15))
    return run


def test_command_goes_on_with_a_run(command, left):
    result = command("stn-train", "--resume", "run")
    assert result.exit_code == 0
    assert "test error" in result.output
    assert json.loads(left.result.read_text())["resumed_at_steps"] == [10]
    again = command("stn-train", "--resume", "run")
    assert again.exit_code == 0
    assert "run is complete" in again.output


def test_a_run_can_be_named_by_its_checkpoint(command, left):
    assert command("stn-train", "--resume", "run/last.pt").exit_code == 0
    assert left.result.exists()
    assert "run is complete" in command("stn-train", "--resume", "run/last.pt").output


def test_auto_starts_goes_on_and_ends(command, left, tiny):
    Path("mine.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    arguments = ["stn-train", "--config", "mine.yaml", "--resume", "auto"]
    fresh = command(*arguments)  # under its own name there is nothing yet
    assert fresh.exit_code == 0
    assert "run         runs/mine-seed1" in fresh.output
    assert "mine-seed1 is complete" in command(*arguments).output
    assert not Path("runs/mine-seed1-2").exists()
    resumed = command(*arguments, "--out", "run")
    assert resumed.exit_code == 0
    assert json.loads(left.result.read_text())["resumed_at_steps"] == [10]


@pytest.mark.parametrize("by_config", [False, True])
def test_other_settings_are_refused_unless_they_are_accepted(command, left, tiny, by_config):
    Path("mine.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    others = ["--config", "mine.yaml"] * by_config
    arguments = ["stn-train", "--resume", "run", *others, "--set", "train.epochs=4"]
    refused = command(*arguments)
    assert refused.exit_code == 2
    assert "train.epochs is 2 in the run, 4 was asked for" in refused.output
    assert not left.result.exists()
    accepted = command(*arguments, "--accept-changes")
    assert accepted.exit_code == 0, accepted.output
    result = json.loads(left.result.read_text())
    assert (result["steps"], result["config"]["train"]["epochs"]) == (40, 4)
    assert result["changes"] == ["before step 10: train.epochs is 2 in the run, 4 was asked for"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_another_optimizer_starts_afresh(tiny, splits, left, optimizer):
    config = tiny(train={"optimizer": optimizer})
    result = train(config, splits, left, CPU, accept_changes=True)
    assert any("train.optimizer is muon" in change for change in result.result.changes)


def test_fewer_steps_than_were_taken_are_refused(tiny, splits, left):
    config = tiny(train={"epochs": None, "steps": 9})
    with pytest.raises(ConfigError, match="has taken 10 steps already, more than the 9 asked for"):
        train(config, splits, left, CPU, accept_changes=True)


def test_errors_on_other_digits_are_forgotten(tiny, splits, left):
    state = State(tiny(data={"validation": 0}), splits, CPU)
    state.restore(left.last, load_checkpoint(left.last), accept_changes=True)
    assert state.validation_percent is None
    assert state.best_validation_percent == math.inf


@pytest.mark.parametrize(
    "changes", [{"distortion": "P"}, {"distortion": {"R": {"max_angle_deg": 5.0}}}]
)
def test_errors_on_other_distortions_are_forgotten_too(tiny, splits, left, changes):
    state = State(tiny(**changes), splits, CPU)
    state.restore(left.last, load_checkpoint(left.last), accept_changes=True)
    assert state.validation_percent is None
    assert state.best_validation_percent == math.inf


def test_errors_on_the_same_digits_are_remembered(tiny, splits, left):
    state = State(tiny(train={"epochs": 4}), splits, CPU)
    saved = load_checkpoint(left.last)
    state.restore(left.last, saved, accept_changes=True)
    assert state.validation_percent == saved.training["validation_error_percent"]
    assert state.best_validation_percent == saved.training["best_validation_error_percent"]


def test_other_images_are_refused_unless_they_are_accepted(tiny, splits, left):
    def renamed(images: Images) -> Images:
        return Images(images.pixels, images.labels, tuple("abcdefghij"))

    others = Splits(*map(renamed, splits[:3]), "elsewhere")
    state, saved = State(tiny(), others, CPU), load_checkpoint(left.last)
    with pytest.raises(ConfigError, match=r"a, b, c"):
        state.restore(left.last, saved)
    state.restore(left.last, saved, accept_changes=True)
    assert state.step == 10


def test_accepted_changes_go_on_from_the_weights_by_the_new_schedule(tiny, splits, left):
    config = tiny(train={"epochs": 4, "learning_rate": 0.02, "schedule": "cosine"})
    state = State(config, splits, CPU)
    state.restore(left.last, load_checkpoint(left.last), accept_changes=True)
    reference = State(config, splits, CPU)
    reference.skip_steps(10)
    assert state.step == 10
    rates = [each.schedule.get_last_lr() for each in (state, reference)]
    assert rates[0] == rates[1]
    assert rates[0][0] == pytest.approx(0.02 * (1 + math.cos(math.pi / 4)) / 2)
    saved = load_checkpoint(left.last).training["weights"]
    assert all(value.equal(saved[key]) for key, value in state.model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--resume", "run", "--out", "x"], "--out does not go with --resume RUN"),
        (["--resume", "auto"], "name a config with --config"),
        (["--resume", "run", "--accept-changes"], "--accept-changes goes with --resume and"),
        (["--config", "r_affine", "--accept-changes"], "--accept-changes goes with --resume and"),
    ],
)
def test_flags_that_do_not_go_together_are_told(command, left, arguments, told):
    result = command("stn-train", *arguments)
    assert result.exit_code == 2
    assert told in result.output


@pytest.mark.parametrize("damaged", ["cut", "missing"])
def test_damaged_checkpoint_falls_back_to_the_one_before(command, left, trained, tiny, damaged):
    with RunDirectory.reopen(left.path) as run:
        shutil.copy(run.last, run.previous)
    if damaged == "cut":
        left.last.write_bytes(left.last.read_bytes()[:1000])
    else:
        left.last.unlink()
    told = command("stn-eval", "run")
    assert told.exit_code == 4  # measuring the weights before would be another measurement
    result = command("stn-train", "--resume", "run")
    assert result.exit_code == 0
    assert "warning: run/last.pt" in result.stderr
    assert "going on from previous.pt, step 10" in result.stderr
    assert_same_weights(trained(tiny(), "whole").run.last, left.last)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_checkpoint(one).weights, load_checkpoint(other).weights
    assert all(value.equal(second[key]) for key, value in first.items())


def test_both_checkpoints_damaged_is_told(command, left):
    left.previous.write_bytes(b"no")
    left.last.write_bytes(b"no")
    result = command("stn-train", "--resume", "run")
    assert result.exit_code == 4
    assert "error: run/previous.pt" in result.stderr


def test_nothing_to_go_on_with_is_told(command, nowhere):
    (nowhere / "run").mkdir()
    result = command("stn-train", "--resume", "run")
    assert result.exit_code == CheckpointError.exit_code
    assert "run has no checkpoint to resume, no last.pt" in result.output
