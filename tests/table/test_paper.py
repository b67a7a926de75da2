"""Published numbers: which stand beside what, and what it takes to add a table."""

from dataclasses import replace

import pytest

from stn_train.cell import Cell
from stn_train.errors import ConfigError
from stn_train.runs.result import reference_results
from stn_train.table import paper
from stn_train.table.paper import TABLES, Experiment, PaperTable, published_for, table_named

MNIST = TABLES["mnist"]

# Jaderberg et al. 2015, Table 1, left, as printed; the last number is in the text of section 4.1.
PRINTED = """
FCN         2.1 5.2 3.1 3.2 13.2
CNN         1.2 0.8 1.5 1.4 3.5
ST-FCN Aff  1.2 0.8 1.5 2.7 2.0
ST-FCN Proj 1.3 0.9 1.4 2.6 -
ST-FCN TPS  1.1 0.8 1.4 2.4 -
ST-CNN Aff  0.7 0.5 0.8 1.2 1.7
ST-CNN Proj 0.8 0.6 0.8 1.3 -
ST-CNN TPS  0.7 0.5 0.8 1.1 -
"""


def test_table_1_is_the_papers():
    lines = [line.rsplit(maxsplit=5) for line in PRINTED.strip().splitlines()]
    values = {
        (model.strip(), distortion): float(value)
        for model, *row in lines
        for distortion, value in zip(("R", "RTS", "P", "E", "TC"), row, strict=True)
        if value != "-"
    }
    assert {(cell.model, cell.distortion): MNIST.published(cell) for cell in MNIST.cells} == values
    assert MNIST.models == [model.strip() for model, *_ in lines]


@pytest.mark.parametrize("cell", MNIST.cells, ids=str)
def test_published_value_stands_beside_a_config_and_a_result_of_the_cell(cell, tiny):
    config = tiny(
        distortion=cell.distortion, backbone=cell.backbone, transform=cell.transform, data={}
    )
    assert config.cell == cell
    assert published_for(config) == MNIST.published(cell)
    assert published_for(replace(reference_results()[0], cell=cell)) == MNIST.published(cell)


def test_a_cell_without_a_published_value_is_not_asked_for_but_held(tiny):
    cell = Cell("TC", "CNN", "TPS")
    assert cell in MNIST.values
    assert cell not in MNIST.cells
    assert MNIST.published(cell) is None
    config = tiny(distortion="TC", backbone="CNN", transform="TPS", data={})
    assert MNIST.holds(config)
    assert published_for(config) is None


def test_origin_of_a_value_says_whether_it_is_the_tables():
    assert MNIST.origin(Cell("R", "CNN", "Aff")) == "Table 1, mean of three runs"
    assert MNIST.origin(Cell("TC", "CNN", "Aff")) == "text of section 4.1"
    assert MNIST.source == "Jaderberg et al. 2015, Table 1; TC: text of section 4.1"


def test_nothing_stands_beside_other_data_another_task_or_another_cell(tiny):
    result = reference_results()[0]
    assert published_for(result) is not None
    assert published_for(replace(result, data="kmnist")) is None
    assert published_for(replace(result, task="addition")) is None
    assert published_for(replace(result, cell=result.cell._replace(distortion="none"))) is None
    assert published_for(tiny(data={"source": "kmnist"})) is None
    assert published_for(tiny(distortion="none")) is None
    assert published_for(tiny(backbone="tutorial")) is None


def test_a_table_is_one_object_and_one_entry(monkeypatch, tiny):
    clothes = PaperTable(
        name="clothes",
        title="Clothes, rotated",
        paper="Nobody 2030",
        place="Table 7",
        note="one run",
        task="classification",
        data="fashion_mnist",
        columns=("R", "none"),
        rows={("CNN", "Aff"): (9.5, 7.25), ("tutorial", "none"): (None, 8.0)},
        rounding=0.005,
    )
    monkeypatch.setitem(paper.TABLES, "clothes", clothes)
    assert table_named("clothes") is clothes
    assert clothes.cells == [
        Cell("R", "CNN", "Aff"),
        Cell("none", "CNN", "Aff"),
        Cell("none", "tutorial", "none"),
    ]
    assert clothes.models == ["ST-CNN Aff", "tutorial"]
    shown = {"distortion": "R", "backbone": "CNN", "transform": "Aff"}
    assert published_for(tiny(**shown, data={"source": "fashion_mnist"})) == 9.5
    assert published_for(tiny(**shown)) == MNIST.published(Cell(**shown))
    assert published_for(tiny(**shown, data={"source": "kmnist"})) is None
    unknown = replace(
        reference_results()[0], data="fashion_mnist", cell=Cell("R", "tutorial", "none")
    )
    assert clothes.holds(unknown)
    assert published_for(unknown) is None


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_settings_of_its_own_are_those_of_a_column_or_model_of_the_table(table):
    assert set(table.own) <= {*table.columns, *(cell.model for cell in table.cells)}


def test_unknown_table_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'mnst'.*mnist.*did you mean mnist"):
        table_named("mnst")


def test_title_of_an_experiment_says_what_is_not_the_papers():
    cell = Cell("R", "CNN", "none")
    assert Experiment("classification", "mnist", cell).title == "CNN on R"
    assert Experiment("classification", "emnist", cell).title == "CNN on R, emnist"
    assert Experiment("addition", "mnist", cell).title == "CNN on R, addition"


def test_part_of_a_table_has_the_rows_and_columns_of_some_cells():
    cells = {Cell("RTS", "FCN", "none"), Cell("TC", "CNN", "Aff")}
    part = TABLES["mnist"].part(cells)
    assert part.columns == ("RTS", "TC")
    assert part.rows == {("FCN", "none"): (5.2, 13.2), ("CNN", "Aff"): (0.5, 1.7)}
    assert "TC: " in part.source
    assert TABLES["mnist"].part(TABLES["mnist"].values) == TABLES["mnist"]
