"""The grid of the paper's table: its runs, rows and renderings."""

import csv
import io
import json
import statistics

import pytest
from conftest import of_cell

from stn_train.config_file import shipped_configs
from stn_train.errors import CheckpointError, ConfigError
from stn_train.published import TABLE_1
from stn_train.table import (
    FIELDS,
    cell_name,
    cells_like,
    circumstances,
    comma_separated,
    jobs_for,
    markdown,
    plain,
    read_result,
    reference_results,
    results_in,
    table,
)


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


def test_every_cell_has_a_config_of_its_name():
    shipped = {path.stem for path in shipped_configs()}
    names = [cell_name(cell) for cell in TABLE_1]
    assert len(set(names)) == 32
    assert set(names) <= shipped


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        ([], 32),
        (["*"], 32),
        (["RTS:*"], 8),
        (["*:FCN:none"], 4),
        (["E:CNN:TPS"], 1),
        (["RTS:*", "*:CNN:Aff"], 11),
        (["R:*", "R:*"], 8),
    ],
)
def test_patterns_name_cells_once_in_the_papers_order(patterns, count):
    cells = cells_like(patterns)
    assert len(cells) == count
    assert cells == [cell for cell in TABLE_1 if cell in cells]


def test_pattern_that_names_nothing_is_told():
    with pytest.raises(ConfigError, match=r"--cells 'rts:\*' names no cell; a cell is like R:FCN"):
        cells_like(["R:*", "rts:*"])


def test_grid_is_every_cell_with_every_seed_the_cheap_ones_first():
    jobs = jobs_for(cells_like(["P:*"]), [1, 2], ["train.epochs=7"])
    assert len({job.name for job in jobs}) == len(jobs) == 16
    assert [job.config.backbone for job in jobs] == ["FCN"] * 8 + ["CNN"] * 8
    assert [job.config.seed for job in jobs[:8]] == [1] * 4 + [2] * 4
    for job in jobs:
        config = job.config
        cell = config.distortion, config.backbone, config.transform
        assert job.name == f"{cell_name(cell)}-seed{config.seed}"
        assert config.train.epochs == 7


def test_grid_of_the_papers_recipe():
    (job,) = jobs_for([RTS_AFFINE], [4], ["recipe=paper"])
    assert (job.config.train.steps, job.config.train.optimizer) == (150_000, "sgd")


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


def test_runs_of_different_settings_do_not_go_into_one_cell():
    other = result(RTS_AFFINE, 4, 0.1) | {"config": {"train": {"optimizer": "sgd"}}}
    told = "RTS:CNN:Aff: .*\\ntrain.optimizer is adamw in one, sgd in another"
    with pytest.raises(ConfigError, match=told):
        table([*RESULTS, other])
    with pytest.raises(ConfigError, match="two runs have the same seed"):
        table([*RESULTS, RESULTS[0]])
    table([*RESULTS, result(RTS_AFFINE, 4, 0.1) | {"config": {"log": {"snapshots": 3}}}])


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"seed": 1}), "null"])
def test_damaged_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"result.json cannot be read"):
        read_result(tmp_path / "result.json")
