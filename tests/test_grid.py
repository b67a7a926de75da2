"""The runs of the paper's table: their cells, names and configs."""

import pytest

from stn_train.config_file import shipped_configs
from stn_train.errors import ConfigError
from stn_train.grid import cell_name, cells_like, jobs_for
from stn_train.published import TABLE_1


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
    (job,) = jobs_for(cells_like(["RTS:CNN:Aff"]), [4], ["recipe=paper"])
    assert (job.config.train.steps, job.config.train.optimizer) == (150_000, "sgd")
