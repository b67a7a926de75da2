"""Paired comparison of runs, against scipy's bootstrap and counts by hand."""

import numpy as np
import pytest
import torch
from conftest import of_cell
from scipy import stats

from stn_train.comparison import bootstrap_interval, compare, error_rates
from stn_train.errors import ConfigError

DIGITS = 1000


def result(cell, seed, mistakes, draws=("a", "b")):
    return of_cell(cell, seed) | {
        "test_digits": DIGITS,
        "draws_percent": [0.0] * len(draws),
        "draws_sha256": list(draws),
        "mistaken_digits": list(mistakes),
        "mistaken_on_draws": list(mistakes.values()),
    }


E_AFF, E_TPS, R_AFF = ("E", "CNN", "Aff"), ("E", "CNN", "TPS"), ("R", "CNN", "Aff")


def test_error_rates_are_means_over_seeds_and_draws():
    rates = error_rates([result(E_AFF, 1, {3: 2, 5: 1}), result(E_AFF, 2, {3: 1})])
    assert rates[3] == pytest.approx(3 / 4)
    assert rates[5] == pytest.approx(1 / 4)
    assert float(rates.sum()) == pytest.approx(1)


def test_cells_in_common_are_compared():
    worse = dict.fromkeys(range(40), 2)
    better = dict.fromkeys(range(10), 2)
    a = [result(E_AFF, 1, worse), result(R_AFF, 1, better)]
    b = [result(E_AFF, 2, better), result(E_AFF, 1, better), result(E_TPS, 1, {})]
    (found,) = compare(a, b)
    assert (found.cell_a, found.cell_b) == (E_AFF, E_AFF)
    assert (found.seeds_a, found.seeds_b) == ([1], [1, 2])
    assert (found.error_a, found.error_b) == (pytest.approx(4), pytest.approx(1))
    assert found.difference == pytest.approx(3)
    assert 1.5 < found.interval_95[0] < 3 < found.interval_95[1] < 4.5


def test_single_cells_are_compared_with_each_other():
    (found,) = compare([result(E_AFF, 1, {1: 1})], [result(E_TPS, 1, {1: 1})])
    assert (found.cell_a, found.cell_b) == (E_AFF, E_TPS)
    assert found.difference == 0
    assert found.interval_95 == (0, 0)


def test_other_digits_or_draws_are_refused():
    others = [result(E_TPS, 1, {}, draws=("a", "c"))]
    with pytest.raises(ConfigError, match="E:CNN:Aff and E:CNN:TPS: tested on other digits"):
        compare([result(E_AFF, 1, {})], others)


def test_nothing_in_common_is_told():
    with pytest.raises(ConfigError, match="no cell of the table in common"):
        compare([result(E_AFF, 1, {}), result(E_TPS, 1, {})], [result(R_AFF, 1, {})])


def test_bootstrap_interval_equals_scipys():
    values = torch.zeros(2000, dtype=torch.float64)
    values[:60], values[60:90] = 1.0, -0.5
    low, high = bootstrap_interval(values)
    reference = stats.bootstrap(
        (values.numpy(),),
        np.mean,
        n_resamples=9999,
        batch=100,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert low == pytest.approx(reference.low, abs=4e-4)
    assert high == pytest.approx(reference.high, abs=4e-4)
