"""Paired comparison of runs, against scipy's bootstrap and counts by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from stn_train.cell import Cell
from stn_train.errors import ConfigError
from stn_train.runs.result import reference_results
from stn_train.table.comparison import bootstrap_interval, compare, error_rates, pair
from stn_train.table.paper import TABLES

DIGITS = 1000
MNIST = TABLES["mnist"]


def result(cell, seed, mistakes, draws=("a", "b"), **changes):
    made = replace(
        reference_results()[0],
        cell=Cell(*cell),
        seed=seed,
        test_digits=DIGITS,
        draws_percent=[0.0] * len(draws),
        draws_sha256=list(draws),
        mistaken_digits=list(mistakes),
        mistaken_on_draws=list(mistakes.values()),
    )
    return replace(made, **changes)


def compared(results_a, results_b):
    return [compare(*each) for each in pair(results_a, results_b, MNIST).matched]


E_AFF, E_TPS = Cell("E", "CNN", "Aff"), Cell("E", "CNN", "TPS")
R_AFF, NO_CELL = Cell("R", "CNN", "Aff"), Cell("none", "tutorial", "none")


def test_error_rates_are_means_over_seeds_and_draws():
    rates = error_rates([result(E_AFF, 1, {3: 2, 5: 1}), result(E_AFF, 2, {3: 1})])
    assert rates[3] == pytest.approx(3 / 4)
    assert rates[5] == pytest.approx(1 / 4)
    assert float(rates.sum()) == pytest.approx(1)


def test_cells_in_common_are_compared_and_the_others_returned():
    worse = dict.fromkeys(range(40), 2)
    better = dict.fromkeys(range(10), 2)
    a = [result(E_AFF, 1, worse), result(R_AFF, 1, better)]
    b = [result(E_AFF, 2, better), result(E_AFF, 1, better), result(E_TPS, 1, {})]
    (found,) = compared(a, b)
    assert (found.cell_a, found.cell_b) == (E_AFF, E_AFF)
    assert (found.seeds_a, found.seeds_b) == ([1], [1, 2])
    assert (found.error_a, found.error_b) == (pytest.approx(4), pytest.approx(1))
    assert found.difference == pytest.approx(3)
    assert 1.5 < found.interval_95[0] < 3 < found.interval_95[1] < 4.5
    pairs = pair(a, b, MNIST)
    assert (pairs.only_a, pairs.only_b) == (a[1:], b[2:])


def test_cells_outside_the_table_are_compared_after_those_in_it():
    results = [result(NO_CELL, 1, {}), result(E_AFF, 1, {}), result(R_AFF, 1, {})]
    assert [each.cell_a for each in compared(results, results)] == [R_AFF, E_AFF, NO_CELL]


def test_the_same_cell_on_other_data_is_another_one():
    mnist, clothes = result(E_AFF, 1, {1: 1}), result(E_AFF, 1, {2: 2}, data="fashion_mnist")
    pairs = pair([mnist, clothes], [clothes, mnist], MNIST)
    assert pairs.matched == [([mnist], [mnist]), ([clothes], [clothes])]
    assert pair([mnist, clothes], [clothes], MNIST).only_a == [mnist]


def test_single_cells_are_compared_with_each_other():
    (found,) = compared([result(E_AFF, 1, {1: 1})], [result(E_TPS, 1, {1: 1})])
    assert (found.cell_a, found.cell_b) == (E_AFF, E_TPS)
    assert found.difference == 0
    assert found.interval_95 == (0, 0)


def test_other_images_or_draws_are_refused():
    others = [result(E_TPS, 1, {}, draws=("a", "c"))]
    with pytest.raises(ConfigError, match="E:CNN:Aff and E:CNN:TPS: tested on other"):
        compared([result(E_AFF, 1, {})], others)


def test_nothing_in_common_is_told():
    with pytest.raises(ConfigError, match="no cell in common"):
        pair([result(E_AFF, 1, {}), result(E_TPS, 1, {})], [result(R_AFF, 1, {})], MNIST)


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
