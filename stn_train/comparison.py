"""Two sets of runs, paired over the digits they were tested on: is one better?

Legend: N test digits, R resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stn_train.errors import ConfigError
from stn_train.published import TABLE_1, Cell
from stn_train.result import cell_of

RESAMPLES = 10_000


class Comparison(NamedTuple):
    """How the runs of one cell in A did beside those of a cell in B; errors in %."""

    cell_a: Cell
    cell_b: Cell
    seeds_a: list[int]
    seeds_b: list[int]
    error_a: float
    """Mean over seeds and test draws."""
    error_b: float
    difference: float
    """A less B."""
    interval_95: tuple[float, float]
    """Of the difference, over digits like these; the seeds are taken as they are."""


def compare(
    results_a: Sequence[dict[str, Any]], results_b: Sequence[dict[str, Any]]
) -> list[Comparison]:
    """Compare cell by cell; where each side has a single cell, these two.

    Raises ConfigError where they have no cell in common, or were not tested on the same draws
    of the same digits.
    """
    by_cell_a, by_cell_b = by_cell(results_a), by_cell(results_b)
    pairs = [(cell, cell) for cell in TABLE_1 if cell in by_cell_a and cell in by_cell_b]
    if len(by_cell_a) == len(by_cell_b) == 1:
        pairs = [(next(iter(by_cell_a)), next(iter(by_cell_b)))]
    if not pairs:
        raise ConfigError(["the two have no cell of the table in common"])
    return [compare_cells(by_cell_a[a], by_cell_b[b]) for a, b in pairs]


def by_cell(results: Sequence[dict[str, Any]]) -> dict[Cell, list[dict[str, Any]]]:
    """The results of each cell."""
    found: dict[Cell, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(cell_of(result), []).append(result)
    return found


def compare_cells(runs_a: list[dict[str, Any]], runs_b: list[dict[str, Any]]) -> Comparison:
    """Compare the runs of two cells."""
    if len({tuple(run["draws_sha256"]) for run in runs_a + runs_b}) > 1:
        names = " and ".join(sorted({":".join(cell_of(run)) for run in runs_a + runs_b}))
        told = f"{names}: tested on other digits, another distortion or another number of draws"
        raise ConfigError([f"{told}; test both with the same settings"])
    rates_a, rates_b = error_rates(runs_a), error_rates(runs_b)
    return Comparison(
        cell_of(runs_a[0]),
        cell_of(runs_b[0]),
        sorted(run["seed"] for run in runs_a),
        sorted(run["seed"] for run in runs_b),
        100 * float(rates_a.mean()),
        100 * float(rates_b.mean()),
        100 * float((rates_a - rates_b).mean()),
        bootstrap_interval(100 * (rates_a - rates_b)),
    )


def error_rates(runs: list[dict[str, Any]]) -> Tensor:
    """How often each test digit was taken for another, over runs and draws: float64 (N,)."""
    rates = torch.zeros(runs[0]["test_digits"], dtype=torch.float64)
    for run in runs:
        share = 1 / (len(runs) * len(run["draws_percent"]))
        times = torch.tensor(run["mistaken_on_draws"], dtype=torch.float64)
        rates[run["mistaken_digits"]] += share * times
    return rates


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values (N,) (Efron 1979)."""
    generator = torch.Generator().manual_seed(0)
    count, means = len(values), []
    for _ in range(RESAMPLES // 100):
        drawn = torch.randint(count, (100, count), generator=generator)
        means.append(values[drawn].mean(1))  # (100,)
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype))
    return float(low), float(high)
