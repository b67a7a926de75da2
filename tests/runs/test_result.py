"""Results of finished runs: typed, and in the file as ever."""

import dataclasses
import json
from importlib import resources

import pytest

from stn_train.cell import Cell
from stn_train.errors import CheckpointError
from stn_train.runs.result import Result, finished_runs, reference_results, results_in
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure
from stn_train.tasks.classification import Classification

KEYS = [
    "task",
    "distortion",
    "backbone",
    "transform",
    "recipe",
    "seed",
    "precision",
    "numerics",
    "test_error_percent",
    "interval_95_percent",
    "draws_mean_percent",
    "draws_mean_interval_95_percent",
    "draws_percent",
    "test_digits",
    "test_sha256",
    "draws_sha256",
    "confusion",
    "mistaken_digits",
    "mistaken_on_draws",
    "validation_error_percent",
    "data",
    "training_digits",
    "training_sha256",
    "passes",
    "steps",
    "parameters",
    "localisation_parameters",
    "resumed_at_steps",
    "changes",
    "config",
    "environment",
    "train_seconds",
    "total_seconds",
]
"""Of result.json, in order. All but the first stood there before there were tasks."""

REQUIRED = [
    "distortion",
    "backbone",
    "transform",
    "recipe",
    "data",
    "seed",
    "parameters",
    "training_digits",
    "test_digits",
    "test_error_percent",
    "draws_mean_percent",
    "passes",
    "train_seconds",
    "total_seconds",
    "config",
    "environment",
    "draws_sha256",
    "draws_percent",
    "mistaken_digits",
    "mistaken_on_draws",
    "test_sha256",
]
"""What every version has written."""


@pytest.fixture
def content(finished) -> dict:
    """The content of a result.json."""
    return dict(json.loads(finished.run.result.read_text()))


def test_file_has_these_keys_in_this_order(content):
    assert [*content] == KEYS


def test_what_is_read_is_what_was_written(content, finished):
    result = Result.read(finished.run.result)
    assert result == finished.result.result
    assert result.as_dict() == content


def test_attributes_are_typed(finished):
    result, evaluation = Result.read(finished.run.result), finished.result.evaluation
    assert result.cell == Cell("R", "FCN", "Aff") == finished.config.cell
    assert (result.task, result.data, result.seed) == ("classification", "mnist", 1)
    assert result.measure == Measure()
    assert result.test_percent == evaluation.test_percent
    assert result.interval_95_percent == evaluation.interval_95_percent
    assert result.confusion == evaluation.confusion
    mistakes = dict(zip(result.mistaken_digits, result.mistaken_on_draws, strict=True))
    assert mistakes == evaluation.mistakes
    assert isinstance(result.validation_percent, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 2


CELL = ("distortion", "backbone", "transform")


def lines() -> list[str]:
    text = resources.files("stn_train").joinpath("results/default.jsonl").read_text("utf-8")
    return text.splitlines()


def test_every_published_result_is_as_it_was():
    published = [json.loads(line) for line in lines()]
    # ST-FCN Aff and ST-CNN TPS on RTS; ST-CNN Aff on R, Proj on P, TPS on E, Proj on RTS.
    more = 7 + 7 + 3 + 2 + 2 + 1
    assert len(published) == 36 * 3 + more
    runs = {(*(before[key] for key in CELL), before["seed"]) for before in published}
    assert len(runs) == len(published)
    for cell in {run[:-1] for run in runs}:
        assert {(*cell, seed) for seed in (1, 2, 3)} <= runs
    assert len({run[:-1] for run in runs}) == 36
    assert sum("numerics" not in before for before in published) == 96  # of the first version
    unsaid = {"task": "classification", "numerics": 1}
    for before, result in zip(published, reference_results(), strict=True):
        assert result.task == "classification"
        assert result.as_dict() == unsaid | before


def test_results_are_those_of_finished_runs(tmp_path, finished):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "result.json").write_text(finished.run.result.read_text())
    assert [each.seed for each in results_in(tmp_path)] == [1]
    assert results_in(tmp_path / "a") == results_in(tmp_path)
    assert [run.path for run in finished_runs(tmp_path)] == [tmp_path / "a"]
    for folder in (tmp_path / "b", tmp_path / "c"):
        with pytest.raises(CheckpointError, match=folder.name):
            results_in(folder)


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", ["missing", None, True, [{}], {"1": 2}])
def test_a_result_without_all_that_is_read_is_named(key, value, content, tmp_path):
    if isinstance(value, dict) and key in ("config", "environment"):
        return
    content[key] = value
    if value == "missing":
        del content[key]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"result.json cannot be read: {key} is missing or"):
        Result.read(path)


@pytest.mark.parametrize("key", sorted({*KEYS} - {*REQUIRED}))
def test_what_later_versions_added_may_be_missing(key, content):
    del content[key]
    result = Result.from_dict(content)
    content |= {"task": "classification", "numerics": content.get("numerics", 1)}
    shown = result.as_dict()
    for may_be_null in ("confusion", "validation_error_percent"):
        assert shown[may_be_null] == content.get(may_be_null)
        content.setdefault(may_be_null, None)
    assert shown == content


def test_unknown_keys_of_later_versions_are_passed_over(content):
    assert Result.from_dict(content | {"cell": 1, "surprise": 2}) == Result.from_dict(content)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", json.dumps({"seed": 1}), "null", '{"task": []}', '{"task": "sing"}']
)
def test_damaged_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"result.json cannot be read"):
        Result.read(tmp_path / "result.json")


class Overlap(Classification):
    """A task with a measure of its own."""

    measure = Measure("overlap_percent", "overlap", "%", lower_is_better=False)


def test_the_measure_names_the_keys(content, monkeypatch):
    monkeypatch.setitem(TASKS, "overlap", Overlap)
    renamed = {key.replace("error_percent", "overlap_percent"): content[key] for key in content}
    renamed["task"] = "overlap"
    result = Result.from_dict(renamed)
    assert result.test_percent == content["test_error_percent"]
    assert result.measure.name == "overlap"
    assert result.as_dict() == renamed
    with pytest.raises(CheckpointError, match="test_overlap_percent"):
        Result.from_dict(content | {"task": "overlap"})
