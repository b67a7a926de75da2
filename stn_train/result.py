"""result.json, read: what a finished run came to. The trainer writes it."""

import json
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any

from stn_train.errors import CheckpointError
from stn_train.published import Cell
from stn_train.run_directory import RunDirectory

RESULT: dict[str, type | UnionType] = {
    **dict.fromkeys(("distortion", "backbone", "transform", "recipe", "data"), str),
    **dict.fromkeys(("seed", "parameters", "training_digits", "test_digits"), int),
    **dict.fromkeys(("test_error_percent", "draws_mean_percent"), int | float),
    **dict.fromkeys(("passes", "train_seconds", "total_seconds"), int | float),
    **dict.fromkeys(("config", "environment"), dict),
    **dict.fromkeys(("draws_sha256", "draws_percent"), list),
    **dict.fromkeys(("mistaken_digits", "mistaken_on_draws"), list),
    "test_sha256": str,
    "validation_error_percent": int | float | None,
}
"""What is read of a result.json, and of which kind it must be."""


def results_in(folder: Path) -> list[dict[str, Any]]:
    """The result.json of each finished run in a folder, or of the one run whose folder it is.

    Raises CheckpointError if there is none, or one cannot be read.
    """
    return [read_result(run.result) for run in finished_runs(folder)]


def finished_runs(folder: Path) -> list[RunDirectory]:
    """The finished runs in a folder, or the one run whose folder it is.

    Raises CheckpointError if there is none.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist")
    own = folder / "result.json"
    paths = [own] if own.exists() else sorted(folder.glob("*/result.json"))
    if not paths:
        raise CheckpointError(f"{folder} holds no finished run")
    return [RunDirectory(path.parent) for path in paths]


def read_result(path: Path) -> dict[str, Any]:
    """A run's result; raises CheckpointError if it cannot be read."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(result, dict):
        raise CheckpointError(f"{path} cannot be read: it is not the result of a run")
    for key, kind in RESULT.items():
        if not isinstance(result.get(key), kind):
            raise CheckpointError(f"{path} cannot be read: {key} is missing or of another kind")
    return result


def reference_results() -> list[dict[str, Any]]:
    """Our own measured results, which ship with the package."""
    text = resources.files("stn_train").joinpath("results/default.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def cell_of(result: dict[str, Any]) -> Cell:
    """Which cell a result belongs to."""
    return result["distortion"], result["backbone"], result["transform"]
