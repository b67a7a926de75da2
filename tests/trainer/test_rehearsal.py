"""A run tried out: what it says, and that it leaves nothing."""

import json

import pytest
import yaml
from conftest import CPU

from stn_train.trainer import rehearsal
from stn_train.trainer.rehearsal import rehearse


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(rehearsal, "TIMED_SECONDS", 0.0)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_short_runs_are_tried_out_whole(steps, tiny, splits):
    config = tiny(train={"epochs": None, "steps": steps})
    done = rehearse(config, splits, CPU)
    assert done.steps == steps
    assert done.step_seconds > 0


def test_dry_run_is_of_a_whole_run(command, finished):
    result = command("stn-train", "--resume", finished.run.path, "--dry-run")
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr


@pytest.mark.usefixtures("_short")
def test_total_is_steps_validations_and_test(tiny, splits):
    done = rehearse(tiny(), splits, CPU)
    digit = done.test_seconds / (len(splits.test) * 2)  # two draws
    validations = 2 * len(splits.validation) * digit
    expected = 20 * done.step_seconds + validations + done.test_seconds
    assert done.steps == 20
    assert done.total_seconds == pytest.approx(expected)
    assert done.step_seconds > 0


@pytest.mark.usefixtures("_short")
def test_command_tells_and_leaves_nothing(tiny, command, nowhere):
    (nowhere / "tiny.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    before = sorted(nowhere.iterdir())
    result = command("stn-train", "--config", "tiny.yaml", "--dry-run", "--device", "cpu")
    assert result.exit_code == 0
    assert "ST-FCN Aff on R: " in result.stdout
    assert " 20 steps on cpu" in result.stdout
    assert "the run     0." in result.stdout
    result = command("stn-train", "--config", "tiny.yaml", "--dry-run", "--json", "--quiet")
    assert json.loads(result.stdout)["steps"] == 20
    assert result.stderr == ""
    assert sorted(nowhere.iterdir()) == before
