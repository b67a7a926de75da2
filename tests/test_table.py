"""The paper's table: its rows and renderings."""

import csv
import io
import statistics

import pytest
from conftest import of_cell

from stn_train.errors import ConfigError
from stn_train.published import TABLE_1
from stn_train.result import reference_results
from stn_train.table import FIELDS, circumstances, comma_separated, markdown, plain, table


def result(cell, seed, error, draws_mean=None, passes=30.0):
    return of_cell(cell, seed) | {
        "test_error_percent": error,
        "draws_mean_percent": error if draws_mean is None else draws_mean,
        "passes": passes,
        "data": "mnist",
        "config": {"seed": seed},
        "training_digits": 55_000,
        "environment": {
            "threads": 1,
            "hardware": "abacus",
            "torch": "2.15.0",
            "commit": 40 * "a" if seed == 1 else None,
        },
    }


RTS_AFFINE, E_FCN = ("RTS", "CNN", "Aff"), ("E", "FCN", "none")
RESULTS = [
    result(RTS_AFFINE, 2, 0.55, 0.6),
    result(E_FCN, 1, 3.0),
    result(RTS_AFFINE, 1, 0.45, 0.5),
    result(RTS_AFFINE, 3, 0.5, 0.55),
]


def test_rows_hold_mean_and_deviation_over_seeds():
    rows = table(RESULTS)
    assert [list(row) for row in rows] == [FIELDS, FIELDS]
    first, second = rows
    assert first["distortion"] == "E"  # the paper's order: baselines first
    assert (first["mean"], first["std"], first["seeds"]) == (3.0, None, [1])
    assert second["mean"] == pytest.approx(0.5)
    assert second["std"] == pytest.approx(statistics.stdev([0.45, 0.5, 0.55]))
    assert second["draws_mean"] == pytest.approx(0.55)
    assert (second["seeds"], second["passes"], second["paper"]) == ([1, 2, 3], 30.0, 0.5)


def test_markdown_has_the_papers_layout():
    lines = markdown(table(RESULTS)).splitlines()
    assert lines[0] == "| model | R | RTS | P | E |"
    assert len(lines) == 2 + 8
    assert "| FCN |  |  |  | 3.00 (3.2, -0.20) |" in lines
    assert "| ST-CNN Aff |  | 0.50 ± 0.05 (0.5, +0.00) |  |  |" in lines


def test_plain_has_a_line_for_each_cell():
    lines = plain(table(RESULTS)).splitlines()
    assert lines == [
        "model       on   error in %   paper  minus paper  all draws  seeds  passes",
        "FCN         E    3.00         3.2    -0.20        3.00       1      30",
        "ST-CNN Aff  RTS  0.50 ± 0.05  0.5    +0.00        0.55       1 2 3  30",
    ]


def test_circumstances_name_each_once():
    assert circumstances(RESULTS) == (
        "Seeds: 1, 2, 3; training digits: 55000 (mnist); abacus, threads: 1; torch 2.15.0; "
        "commit: None, aaaaaaaaa."
    )


def test_csv_can_be_read_back():
    rows = list(csv.DictReader(io.StringIO(comma_separated(table(RESULTS)))))
    assert list(rows[1]) == FIELDS
    assert rows[1]["seeds"] == "1 2 3"
    assert float(rows[1]["mean"]) == pytest.approx(0.5)
    assert rows[0]["std"] == ""


def test_reference_results_ship_with_the_package():
    results = reference_results()
    assert len(results) >= 5
    assert all(
        row["paper"] == TABLE_1[row["distortion"], row["backbone"], row["transform"]]
        for row in table(results)
    )


def test_runs_of_different_settings_do_not_go_into_one_cell():
    other = result(RTS_AFFINE, 4, 0.1) | {"config": {"train": {"optimizer": "sgd"}}}
    told = "RTS:CNN:Aff: .*\\ntrain.optimizer is adamw in one, sgd in another"
    with pytest.raises(ConfigError, match=told):
        table([*RESULTS, other])
    with pytest.raises(ConfigError, match="two runs have the same seed"):
        table([*RESULTS, RESULTS[0]])
    table([*RESULTS, result(RTS_AFFINE, 4, 0.1) | {"config": {"log": {"snapshots": 3}}}])
