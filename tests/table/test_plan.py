"""The runs of a table: their cells, names and configs."""

from dataclasses import replace

import pytest

from stn_train.cell import Cell
from stn_train.errors import ConfigError
from stn_train.shipped_configs import shipped_configs
from stn_train.table.paper import TABLES
from stn_train.table.plan import cells_like, jobs_for, shipped_config

MNIST = TABLES["mnist"]


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_has_a_shipped_config_of_its_name(name):
    shipped = {path.stem for path in shipped_configs()}
    names = {cell: TABLES[name].config_name(cell) for cell in TABLES[name].cells}
    bare = {cell._replace(subject="") for cell in names}  # the subjects of a cell share a config
    assert len(set(names.values())) == len(bare)
    assert set(names.values()) <= shipped


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        ([], 36),
        (["*"], 36),
        (["RTS:*"], 8),
        (["*:FCN:none"], 5),
        (["E:CNN:TPS"], 1),
        (["RTS:*", "*:CNN:Aff"], 12),
        (["TC:*"], 4),
        (["*:*:TPS"], 8),
        (["TC:CNN:TPS"], 1),  # it has no published value
        (["TC:CNN:TPS", "TC:*"], 5),
        (["R:*", "R:*"], 8),
    ],
)
def test_patterns_name_cells_once_in_the_papers_order(patterns, count):
    cells = cells_like(patterns, MNIST)
    assert len(cells) == count
    assert cells == [cell for cell in MNIST.values if cell in cells]


def test_pattern_that_names_nothing_is_told():
    with pytest.raises(ConfigError, match=r"--cells 'rts:\*' .*R:FCN:none"):
        cells_like(["R:*", "rts:*"], MNIST)
    with pytest.raises(ConfigError, match=r"--cells 'TC:\*:TPS' names no cell"):
        cells_like(["TC:*:TPS"], MNIST)  # they have no published value


def test_plan_is_every_cell_with_every_seed_the_cheap_ones_first():
    jobs = jobs_for(MNIST, cells_like(["P:*"], MNIST), [1, 2], ["train.epochs=7"])
    assert len({job.name for job in jobs}) == len(jobs) == 16
    assert [job.config.cell.backbone for job in jobs] == ["FCN"] * 8 + ["CNN"] * 8
    assert [job.config.seed for job in jobs[:8]] == [1] * 4 + [2] * 4
    for job in jobs:
        assert job.name == f"{job.config.cell.file_name}-seed{job.config.seed}"
        assert job.config.train.epochs == 7


def test_a_job_is_the_config_of_its_cell_and_seed():
    cells = cells_like(["R:FCN:Aff", "RTS:CNN:TPS"], MNIST)
    for job in jobs_for(MNIST, cells, [3, 7], ["train.epochs=7"]):
        overrides = ["train.epochs=7", f"seed={job.config.seed}"]
        loaded = shipped_config(MNIST, job.config.cell, overrides)
        assert job.config == loaded
        assert job.config.as_dict() == loaded.as_dict()


def test_a_cell_without_a_published_value_starts_from_another_config():
    (job,) = jobs_for(MNIST, cells_like(["TC:FCN:TPS"], MNIST), [1], [])
    assert job.name == "tc_tps_fcn-seed1"
    assert job.config.cell == Cell("TC", "FCN", "TPS")
    cell = Cell("TC", "FCN", "Aff")
    shipped = shipped_config(MNIST, cell)
    assert (job.config.model, job.config.train) == (shipped.model, shipped.train)


def test_plan_of_the_papers_recipe():
    cells = cells_like(["RTS:CNN:Aff"], MNIST)
    (job,) = jobs_for(MNIST, cells, [4], ["recipe=paper"])
    assert (job.config.train.steps, job.config.train.optimizer) == (150_000, "sgd")


def test_plan_of_another_table_is_on_its_data():
    clothes = replace(MNIST, name="clothes", data="fashion_mnist")
    (job,) = jobs_for(clothes, cells_like(["R:FCN:none"], clothes), [1], [])
    assert job.config.source_name == "fashion_mnist"
    assert clothes.holds(job.config)


def test_a_cell_without_a_config_of_its_own_starts_from_any_other():
    cell = Cell("E", "CNN", "2xAff+TPS@1")
    config = shipped_config(MNIST, cell, ["seed=3"])
    assert config.cell == cell
    assert config.title == "ST-CNN 2xAff+TPS@1 on E"
    assert config.transformers["front"].count == 2


def test_plan_of_the_addition_is_named_after_it():
    addition = TABLES["addition"]
    (job,) = jobs_for(addition, cells_like(["*:2xTPS"], addition), [1], [])
    assert job.name == "addition_rts_2xtps_fcn-seed1"
    assert addition.holds(job.config)
    assert not MNIST.holds(job.config)


@pytest.mark.parametrize("key", ["distortion", "backbone", "transform", "transformers", "seed"])
def test_what_identifies_a_run_is_no_setting_to_change(key):
    with pytest.raises(ConfigError, match=f"--set {key}=E: --cells and --seeds"):
        jobs_for(MNIST, MNIST.cells[:1], [1], [f"{key}=E"])


def test_settings_of_another_distortion_are_refused():
    cell = Cell("R", "FCN", "none")
    changed = shipped_config(MNIST, cell, ["distortion.R.max_angle_deg=30"])
    assert changed.as_dict()["distortion"]["R"]["max_angle_deg"] == 30
    with pytest.raises(ConfigError, match=r"distortion is R\b"):
        shipped_config(MNIST, cell, ["distortion.RTS.max_angle_deg=30"])


def test_cells_are_the_shipped_ones_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r_fcn.yaml").write_text("distortion: R\nbackbone: {FCN: {hidden: 7}}\n")
    config = shipped_config(MNIST, Cell("R", "FCN", "none"))
    assert config.as_dict()["backbone"]["FCN"]["hidden"] != 7
