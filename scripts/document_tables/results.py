"""The committed results, as the program and the scripts wrote them."""

import json
from pathlib import Path
from typing import Any

from stn_train.runs.result import Result
from stn_train.table.paper import TABLES as PAPER_TABLES

ROOT = Path(__file__).parents[2]

SHIPPED = ROOT / "stn_train" / "results"
"""Results that the program reads itself."""

RESULTS = ROOT / "scripts" / "results"
"""All others, and speed.json, the output of scripts/benchmark.py --json."""

MNIST = PAPER_TABLES["mnist"]


def results_file(name: str) -> Path:
    """Where the results gathered under a name are kept, one a line."""
    shipped = {table.results for table in PAPER_TABLES.values()}
    return (SHIPPED if name in shipped else RESULTS) / f"{name}.jsonl"


def collected(name: str) -> list[dict[str, Any]]:
    """The results gathered under a name, as their result.json has them."""
    path = results_file(name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results_of(name: str) -> list[Result]:
    """The results gathered under a name; those before mistakes were recorded have none."""
    unrecorded: dict[str, Any] = {"mistaken_digits": [], "mistaken_on_draws": []}
    return [Result.from_dict(unrecorded | data, results_file(name)) for data in collected(name)]
