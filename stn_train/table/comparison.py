"""Compares two sets of runs, paired over the images they were tested on: is one better?

Legend: N test images, R resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stn_train.cell import Cell
from stn_train.errors import ConfigError
from stn_train.runs.result import Result
from stn_train.table.paper import Experiment, PaperTable, experiment_of

RESAMPLES = 10_000


class Comparison(NamedTuple):
    """The runs of one cell in A beside those of a cell in B; errors in %."""

    cell_a: Cell
    cell_b: Cell
    seeds_a: list[int]
    seeds_b: list[int]
    error_a: float
    """Mean over seeds and test draws."""
    error_b: float
    difference: float
    """A minus B."""
    interval_95: tuple[float, float]
    """Of the difference, resampling test images; the seeds are taken as given."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a cell is its names, the subject only where it has one."""
        cells = {name: [*filter(None, getattr(self, name))] for name in ("cell_a", "cell_b")}
        return self._asdict() | cells


class Pairs(NamedTuple):
    """Which runs of two sets can be compared."""

    matched: list[tuple[list[Result], list[Result]]]
    only_a: list[Result]
    """Those whose experiment the other set lacks."""
    only_b: list[Result]


def pair(results_a: Sequence[Result], results_b: Sequence[Result], table: PaperTable) -> Pairs:
    """Pair runs of the same task, data and cell, in the table's order, other cells after it.

    Where each side has a single experiment, these two are paired. Raises ConfigError if there is
    no pair.
    """
    by_a, by_b = by_experiment(results_a), by_experiment(results_b)
    if len(by_a) == len(by_b) == 1:
        (runs_a,), (runs_b,) = by_a.values(), by_b.values()
        return Pairs([(runs_a, runs_b)], [], [])
    in_table = [Experiment(table.task, table.data, cell) for cell in table.values]
    common = [each for each in dict.fromkeys([*in_table, *by_a]) if each in by_a and each in by_b]
    if not common:
        raise ConfigError(["the two sets of runs have no cell in common"])
    return Pairs(
        [(by_a[each], by_b[each]) for each in common],
        [result for result in results_a if experiment_of(result) not in by_b],
        [result for result in results_b if experiment_of(result) not in by_a],
    )


def by_experiment(results: Sequence[Result]) -> dict[Experiment, list[Result]]:
    """The results of each experiment."""
    found: dict[Experiment, list[Result]] = {}
    for result in results:
        found.setdefault(experiment_of(result), []).append(result)
    return found


def compare(runs_a: Sequence[Result], runs_b: Sequence[Result]) -> Comparison:
    """Compare the runs of two cells.

    Raises ConfigError if they were not tested on the same draws of the same images.
    """
    runs = [*runs_a, *runs_b]
    if len({tuple(run.draws_sha256) for run in runs}) > 1:
        names = " and ".join(sorted({str(run.cell) for run in runs}))
        told = f"{names}: tested on other images, another distortion or another number of draws"
        raise ConfigError([f"{told}; test both with the same settings"])
    rates_a, rates_b = error_rates(runs_a), error_rates(runs_b)
    return Comparison(
        runs_a[0].cell,
        runs_b[0].cell,
        sorted(run.seed for run in runs_a),
        sorted(run.seed for run in runs_b),
        100 * float(rates_a.mean()),
        100 * float(rates_b.mean()),
        100 * float((rates_a - rates_b).mean()),
        bootstrap_interval(100 * (rates_a - rates_b)),
    )


def error_rates(runs: Sequence[Result]) -> Tensor:
    """How often each test image was misjudged, averaged over runs and draws: float64 (N,)."""
    rates = torch.zeros(runs[0].test_digits, dtype=torch.float64)
    for run in runs:
        share = 1 / (len(runs) * len(run.draws_percent))
        times = torch.tensor(run.mistaken_on_draws, dtype=torch.float64)
        rates[run.mistaken_digits] += share * times
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
