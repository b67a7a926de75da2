"""The runs that a table takes: its cells, each with several seeds."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.config_changes import refuse_other_config
from stn_train.config_file import load_config
from stn_train.errors import ConfigError
from stn_train.runs.directory import RunDirectory
from stn_train.runs.result import Result
from stn_train.shipped_configs import shipped_directory
from stn_train.table.paper import PaperTable

DECIDED = {"distortion", "backbone", "transform", "seed"}
"""Settings that --cells and --seeds decide."""


ANY_CELL = "rts_affine.yaml"
"""What a cell without a shipped config of its own starts from: it says nothing but names."""


class Job(NamedTuple):
    """A run to train."""

    name: str
    """Name of its folder: the cell's config and the seed."""
    config: Config


def cells_like(patterns: Sequence[str], table: PaperTable) -> list[Cell]:
    """The cells that match patterns such as RTS:*, *:FCN:none or E:CNN:TPS; all without a pattern.

    A cell without a published value is found by its whole name alone. Raises ConfigError for a
    pattern that names no cell.
    """
    found: set[Cell] = set()
    for pattern in patterns or ["*"]:
        matches = {cell for cell in table.cells if fnmatchcase(str(cell), pattern)}
        matches |= {cell for cell in table.values if str(cell) == pattern}
        if not matches:
            first, last = table.cells[0], table.cells[-1]
            example = f"{first}, {last}; {first.distortion}:* is all of a distortion"
            raise ConfigError([f"--cells {pattern!r} names no cell; a cell is like {example}"])
        found |= matches
    return [cell for cell in table.values if cell in found]


def jobs_for(
    table: PaperTable, cells: Sequence[Cell], seeds: Sequence[int], overrides: Sequence[str]
) -> list[Job]:
    """The runs of these cells and seeds, seed by seed, the cheap ones first.

    Raises ConfigError for an override of a setting that identifies a run.
    """
    for override in overrides:
        key, *_ = override.partition("=")[0].strip().split(".")
        decided = DECIDED | {f"task.{table.task}.subject"}
        if key == "transformers" or override.partition("=")[0].strip() in decided:
            raise ConfigError([f"--set {override}: --cells and --seeds decide that here"])
    configs = {cell: shipped_config(table, cell, overrides) for cell in cells}
    jobs = [
        Job(f"{table.file_name(cell)}-seed{seed}", with_seed(configs[cell], seed))
        for seed in seeds
        for cell in cells
    ]
    return sorted(jobs, key=lambda job: job.config.cell.backbone != "FCN")  # a stable sort


def with_seed(config: Config, seed: int) -> Config:
    """A config with another seed, as if that had been given: nothing else depends on it."""
    return config.model_copy(update={"seed": seed, "given": config.given | {"seed": seed}})


def shipped_config(table: PaperTable, cell: Cell, overrides: Sequence[str] = ()) -> Config:
    """The shipped config of a cell, for the table's task and data, with overrides."""
    name, own = start_of(table, cell)
    return load_config(str(shipped_directory() / name), [*own, *overrides])


def start_of(table: PaperTable, cell: Cell) -> tuple[str, list[str]]:
    """The name of the shipped config that a cell starts from, and the overrides that it takes.

    They are none for the cells of the paper: each has a config of its own.
    """
    name, own = f"{table.config_name(cell)}.yaml", []
    if not (shipped_directory() / name).is_file():
        name, own = ANY_CELL, cell.overrides
    shipped = load_config(str(shipped_directory() / name))
    own += [] if shipped.task_name == table.task else [f"task={table.task}"]
    own += [] if shipped.source_name == table.data else [f"data.source={table.data}"]
    if cell.subject and cell.subject != shipped.cell.subject:
        own.append(f"task.{table.task}.subject={cell.subject}")
    return name, own


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The runs that are not finished; raises ConfigError if a finished one is of another config."""
    return [job for job in jobs if not finished(job, folder)]


def finished(job: Job, folder: Path) -> bool:
    """Whether a run has a result; raises ConfigError if it is of another config."""
    path = RunDirectory(folder / job.name).result
    if not path.exists():
        return False
    refuse_other_config(path.parent, Result.read(path).config, job.config)
    return True
