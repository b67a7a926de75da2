"""The runs that the paper's table takes: its cells, each with several seeds."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from stn_train.config import Config, refuse_other_config
from stn_train.config_file import load_config
from stn_train.errors import ConfigError
from stn_train.published import TABLE_1, Cell
from stn_train.result import read_result
from stn_train.run_directory import RunDirectory
from stn_train.shipped import shipped_directory

NAMES = {"Aff": "affine", "Proj": "projective", "TPS": "tps"}


class Job(NamedTuple):
    """A run of the grid."""

    name: str
    """Of its folder: the cell's config and the seed."""
    config: Config


def cell_name(cell: Cell) -> str:
    """The name of a cell's config: rts_affine, rts_affine_fcn, rts_cnn."""
    distortion, backbone, transform = cell
    if transform == "none":
        return f"{distortion}_{backbone}".lower()
    return f"{distortion.lower()}_{NAMES[transform]}" + ("_fcn" if backbone == "FCN" else "")


def cells_like(patterns: Sequence[str]) -> list[Cell]:
    """The cells that patterns such as RTS:*, *:FCN:none or E:CNN:TPS name; all if there are none.

    Raises ConfigError for a pattern that names none.
    """
    found: set[Cell] = set()
    for pattern in patterns or ["*"]:
        named = {cell for cell in TABLE_1 if fnmatchcase(":".join(cell), pattern)}
        if not named:
            example = "R:FCN:none, RTS:CNN:Aff; RTS:* is all of a distortion"
            raise ConfigError([f"--cells {pattern!r} names no cell; a cell is like {example}"])
        found |= named
    return [cell for cell in TABLE_1 if cell in found]


def jobs_for(cells: Sequence[Cell], seeds: Sequence[int], overrides: Sequence[str]) -> list[Job]:
    """The runs of these cells and seeds, the cheap ones first.

    Raises ConfigError for an override of what names a run.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in ("distortion", "backbone", "transform", "seed"):
            raise ConfigError([f"--set {override}: --cells and --seeds say that here"])
    jobs = [
        Job(
            f"{cell_name(cell)}-seed{seed}",
            load_config(
                str(shipped_directory() / f"{cell_name(cell)}.yaml"), [*overrides, f"seed={seed}"]
            ),
        )
        for seed in seeds
        for cell in cells
    ]
    return sorted(jobs, key=lambda job: job.config.backbone != "FCN")  # stable: seed by seed


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Those runs that are not finished; raises ConfigError if one is of another config."""
    return [job for job in jobs if not finished(job, folder)]


def finished(job: Job, folder: Path) -> bool:
    """Whether a run is complete; raises ConfigError if it is of another config."""
    path = RunDirectory(folder / job.name).result
    if not path.exists():
        return False
    refuse_other_config(path.parent, read_result(path)["config"], job.config.as_dict())
    return True
