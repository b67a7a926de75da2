"""Results of finished runs, read."""

import json

import pytest

from stn_train.errors import CheckpointError
from stn_train.result import read_result, results_in


def test_results_are_those_of_finished_runs(tmp_path, finished):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "result.json").write_text(finished.run.result.read_text())
    assert [each["seed"] for each in results_in(tmp_path)] == [1]
    assert results_in(tmp_path / "a") == results_in(tmp_path)
    with pytest.raises(CheckpointError, match="holds no finished run"):
        results_in(tmp_path / "b")


def test_a_result_without_all_that_is_read_is_named(tmp_path, finished):
    whole = json.loads(finished.run.result.read_text())
    for key in ("passes", "environment", "config", "test_sha256", "draws_mean_percent"):
        (tmp_path / "result.json").write_text(json.dumps(whole | {key: None}))
        with pytest.raises(CheckpointError, match=f"{key} is missing or of another kind"):
            read_result(tmp_path / "result.json")


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"seed": 1}), "null"])
def test_damaged_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"result.json cannot be read"):
        read_result(tmp_path / "result.json")
