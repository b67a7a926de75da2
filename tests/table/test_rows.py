"""The rows of a table and how they are printed."""

import csv
import io
import statistics
from dataclasses import replace

import pytest

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.errors import ConfigError
from stn_train.runs.result import reference_results
from stn_train.table.paper import TABLES, PaperTable
from stn_train.table.rows import (
    FIELDS,
    Row,
    circumstances,
    comma_separated,
    details,
    effort,
    markdown,
    outside,
    plain,
    table_rows,
    verdict,
)
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure
from stn_train.tasks.classification import Classification

MNIST = TABLES["mnist"]


def result(cell, seed, error, draws_mean=None, **changes):
    made = replace(
        reference_results()[0],
        cell=Cell(*cell),
        seed=seed,
        test_percent=error,
        draws_mean_percent=error if draws_mean is None else draws_mean,
        passes=30.0,
        config={"seed": seed},
        training_digits=55_000,
        environment={
            "threads": 1,
            "hardware": "abacus",
            "torch": "2.15.0",
            "commit": 40 * "a" if seed == 1 else None,
        },
    )
    return replace(made, **changes)


RTS_AFFINE, E_FCN = Cell("RTS", "CNN", "Aff"), Cell("E", "FCN", "none")
RESULTS = [
    result(RTS_AFFINE, 2, 0.55, 0.6),
    result(E_FCN, 1, 3.0),
    result(RTS_AFFINE, 1, 0.45, 0.5),
    result(RTS_AFFINE, 3, 0.5, 0.55),
]


def rows():
    return table_rows(RESULTS, MNIST)


def row(mean, paper, std=None):
    return Row(Cell(*RTS_AFFINE), paper, mean, std, [1], 30.0, mean)


def test_rows_hold_mean_and_deviation_over_seeds():
    first, second = rows()
    assert first.cell == Cell(*E_FCN)  # the paper's order: baselines first
    assert (first.mean, first.std, first.seeds) == (3.0, None, [1])
    assert second.mean == pytest.approx(0.5)
    assert second.std == pytest.approx(statistics.stdev([0.45, 0.5, 0.55]))
    assert second.draws_mean == pytest.approx(0.55)
    assert (second.seeds, second.passes, second.paper) == ([1, 2, 3], 30.0, 0.5)


def test_a_row_as_data_has_these_keys_in_order():
    first, second = (each.as_dict() for each in rows())
    assert list(first) == list(second) == FIELDS
    assert [first[key] for key in FIELDS[:4]] == ["E", "FCN", "none", 3.2]
    assert [second[key] for key in FIELDS[4:]] == [
        pytest.approx(0.5),
        pytest.approx(0.05),
        [1, 2, 3],
        30.0,
        pytest.approx(0.55),
    ]


def test_markdown_has_the_papers_layout():
    lines = markdown(rows(), MNIST).splitlines()
    assert lines[0] == "| model | R | RTS | P | E | TC |"
    assert len(lines) == 2 + 8
    assert "| FCN |  |  |  | 3.00 (3.2, -0.20) |  |" in lines
    assert "| ST-CNN Aff |  | 0.50 ± 0.05 (0.5, +0.00) |  |  |  |" in lines


def test_plain_has_a_line_for_each_cell():
    assert plain(rows(), MNIST).splitlines() == [
        "model       on   error in %   paper  minus paper  all draws  seeds  passes",
        "FCN         E    3.00         3.2    -0.20        3.00       1      30",
        "ST-CNN Aff  RTS  0.50 ± 0.05  0.5    +0.00        0.55       1 2 3  30",
    ]


def test_circumstances_name_each_once():
    assert circumstances(RESULTS) == (
        "Seeds: 1, 2, 3; training digits: 55000 (mnist); abacus, threads: 1; bfloat16; "
        "torch 2.15.0; commit: None, aaaaaaaaa."
    )
    assert "; bfloat16, float32; torch" in circumstances(
        [*RESULTS, replace(RESULTS[0], precision="float32")]
    )
    assert "threads: 1; torch" in circumstances([replace(RESULTS[0], precision=None)])


def test_minutes_are_those_of_the_fastest_run():
    seconds = {1: 90.0, 2: 6000.0, 3: 900.0}  # two of them on slow or busy machines
    runs = [replace(run, train_seconds=seconds[run.seed]) for run in RESULTS if run != RESULTS[1]]
    assert effort(runs) == ("1 2 3", f"{runs[0].parameters:,}", "30", "1.5")


def test_csv_can_be_read_back():
    read = list(csv.DictReader(io.StringIO(comma_separated(rows()))))
    assert list(read[1]) == FIELDS
    assert read[1]["seeds"] == "1 2 3"
    assert float(read[1]["mean"]) == pytest.approx(0.5)
    assert read[0]["std"] == ""


def test_reference_results_fill_the_table():
    results = reference_results()
    found = table_rows(results, MNIST)
    assert [each.cell for each in found] == list(MNIST.cells)
    assert all(each.paper == MNIST.published(each.cell) for each in found)
    assert outside(results, MNIST) == ""


def test_runs_of_different_settings_do_not_go_into_one_cell():
    other = result(RTS_AFFINE, 4, 0.1, config={"train": {"optimizer": "sgd"}})
    with pytest.raises(ConfigError, match=r"RTS:CNN:Aff: .*\n *train.optimizer is .* sgd"):
        table_rows([*RESULTS, other], MNIST)
    with pytest.raises(ConfigError, match=r"RTS:CNN:Aff: .* same seed"):
        table_rows([*RESULTS, RESULTS[0]], MNIST)
    logged = result(RTS_AFFINE, 4, 0.1, config={"log": {"snapshots": 3}})
    assert table_rows([*RESULTS, logged], MNIST)[1].seeds == [1, 2, 3, 4]


def test_what_was_given_makes_no_difference():
    config = Config.from_run(RESULTS[0].config).as_dict()
    given = config | {"given": {"distortion": "RTS"}}
    pair = [result(RTS_AFFINE, 1, 0.5, config=config), result(RTS_AFFINE, 2, 0.6, config=given)]
    assert table_rows(pair, MNIST)[0].seeds == [1, 2]


def test_runs_outside_the_table_are_left_out_and_named():
    elsewhere = [
        result(("R", "CNN", "none"), 2, 9.0, data="fashion_mnist"),
        result(RTS_AFFINE, 1, 8.0, data="fashion_mnist"),
        result(("R", "CNN", "none"), 1, 9.0, data="fashion_mnist"),
        result(("none", "tutorial", "Aff"), 7, 1.0),
    ]
    assert table_rows([*elsewhere, *RESULTS], MNIST) == rows()
    assert details([*elsewhere, *RESULTS], MNIST) == details(RESULTS, MNIST)
    assert outside([*elsewhere, *RESULTS, elsewhere[0]], MNIST) == (
        "not in this table: CNN on R, fashion_mnist (seeds 1, 2); "
        "ST-CNN Aff on RTS, fashion_mnist (seed 1); ST-tutorial Aff on undistorted images (seed 7)"
    )


def test_cell_without_a_published_value_has_only_the_measured_one():
    table = replace(MNIST, rows={("CNN", "Aff"): (0.7, None, 0.8, 1.2, 1.7)})
    (unpublished,) = found = table_rows(RESULTS, table)
    assert (unpublished.paper, unpublished.difference) == (None, None)
    assert unpublished.as_dict()["paper"] is None
    assert verdict(unpublished, table) is None
    assert markdown(found, table).splitlines()[-1] == "| ST-CNN Aff |  | 0.50 ± 0.05 |  |  |  |"
    assert " ".join(plain(found, table).splitlines()[1].split()) == (
        "ST-CNN Aff RTS 0.50 ± 0.05 0.55 1 2 3 30"
    )
    assert comma_separated(found).splitlines()[1].startswith("RTS,CNN,Aff,,0.5,")
    assert details(RESULTS, table)[1][2:4] == ("0.50 ± 0.05", "")


@pytest.mark.parametrize(
    ("mean", "kind"), [(0.74, "better"), (0.76, "same"), (0.84, "same"), (0.86, "worse")]
)
def test_what_rounding_may_hide_is_neither_better_nor_worse(mean, kind):
    assert verdict(row(mean, 0.8), MNIST) == kind


def test_more_is_better_where_the_task_says_so(monkeypatch):
    class Overlap(Classification):
        measure = Measure("overlap_percent", "overlap", "%", lower_is_better=False)

    monkeypatch.setitem(TASKS, "overlap", Overlap)
    table: PaperTable = replace(MNIST, task="overlap")
    assert verdict(row(90, 80), table) == "better"
    assert verdict(row(70, 80), table) == "worse"
    assert "overlap in %" in plain([row(90, 80)], table)
