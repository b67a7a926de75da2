"""Write what was measured into the repository: no result is typed in by hand.

python scripts/publish.py collect NAME RUN...   runs, or folders of runs -> NAME.jsonl
python scripts/publish.py write                 results -> tables in README and docs, heads of
                                                the configs

default.jsonl lies in stn_train/results, since the program reads it; the others in scripts/results,
beside speed.json (the output of scripts/benchmark.py --json) and what scripts/time_to_result.py and
scripts/numerics.py measured.
"""

import json
from enum import StrEnum
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from document_tables import (
    CHARTS,
    FAMILIES_ON,
    FAMILIES_SEED,
    MNIST,
    ROOT,
    TABLES,
    collected,
    results_file,
    results_of,
)

from stn_train.config import Cell, Config, changed_settings
from stn_train.config_file import load_config
from stn_train.errors import ConfigError, StnError
from stn_train.runs.result import finished_runs
from stn_train.table.rows import table_rows
from stn_train.visualiser.style import save

CONFIGS = ROOT / "configs"
BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"

DESCRIPTIONS = {
    "R": "digits rotated by up to 90 degrees",
    "RTS": "digits rotated, scaled and placed at random on 42 x 42 px",
    "P": "digits scaled and seen in perspective",
    "E": "digits scaled and bent elastically",
    "TC": "digits placed at random on 60 x 60 px, among six pieces of others",
}


class Kind(StrEnum):
    """What a set of results is for."""

    default = "default"
    """The table by the default recipe."""
    paper = "paper"
    """The table by the paper's recipe."""
    calibration = "calibration"
    """Baselines under the readings of the paper that were tried."""
    validation = "validation"
    """Recipes that were tried, measured on validation digits."""
    families = "families"
    """The ST-FCN of the default recipe with other families of transforms, one seed."""


app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Write what was measured into the repository: no result is typed in by hand.",
)


@app.command("collect")
def collect_command(
    name: Annotated[Kind, typer.Argument(help="The set of results to add to.")],
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.")],
) -> None:
    """Gather the results of runs; of a run that is there already, the new one."""
    try:
        collect(name, runs)
    except StnError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def collect(name: str, runs: list[Path]) -> None:
    """Gather the results of runs, one line each; of a run that is there already, the new one.

    Raises ConfigError for a run that must not be published.
    """
    known = {identity(result): result for result in collected(name) if of_its_kind(name, result)}
    for path in [found.result for run in runs for found in finished_runs(run)]:
        result = json.loads(path.read_text())
        if not of_its_kind(name, result):
            raise ConfigError([f"{path}: not a run of the shipped config"])
        if result.get("changes"):
            raise ConfigError([f"{path}: settings were changed on the way"])
        if str(result["environment"]["commit"]).endswith("-dirty"):
            raise ConfigError([f"{path}: the code was not committed"])
        del result["environment"]["command"]  # the config says it, without anybody's folders
        known[identity(result)] = result
    place = {cell: number for number, cell in enumerate(MNIST.values)}
    ordered = sorted(known, key=lambda key: (place.get(cell_of(known[key]), len(place)), key))
    path = results_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(known[key]) + "\n" for key in ordered))


def cell_of(result: dict[str, Any]) -> Cell:
    """The cell that a result belongs to."""
    return Cell(result["distortion"], result["backbone"], result["transform"])


def of_its_kind(name: str, result: dict[str, Any]) -> bool:
    """Whether a result is one of the shipped config; results of a former recipe are dropped.

    A setting added since an older result has its default in it. The families of transforms are
    compared by the config of the affine one. Where runs vary by intention, every result is of its
    kind.
    """
    cell, overrides = cell_of(result), [f"seed={result['seed']}"]
    if name == Kind.families:
        if cell.distortion not in FAMILIES_ON or result["seed"] != FAMILIES_SEED:
            return False
        overrides.append(f"transform={cell.transform}")
        cell = Cell(cell.distortion, "FCN", "Aff")
    elif name in (Kind.default, Kind.paper):
        overrides.append(f"recipe={name}")
    else:
        return True
    shipped = load_config(f"{cell.file_name}.yaml", overrides)
    recorded = Config.from_run(result["config"])
    return not changed_settings(recorded.as_dict(), shipped.as_dict())


def identity(result: dict[str, Any]) -> str:
    """What distinguishes a run from others: its config, with the seed."""
    config = Config.from_run(result["config"]).as_dict()
    settings = {key: value for key, value in config.items() if key not in ("log", "given")}
    return f"{result['seed']:09} {json.dumps(settings, sort_keys=True)}"


def head(cell: Cell) -> str:
    """The comment that a cell's config opens with."""
    lines = [
        f"{cell.title}: {DESCRIPTIONS[cell.distortion]}.",
        f"Paper ({MNIST.in_text.get(cell.distortion, MNIST.place)}): "
        f"{MNIST.published(cell)} % test error"
        + ("." if cell.distortion == "R" else f"; it does not define {cell.distortion} in full."),
    ]
    runs = [result for result in results_of("default") if result.cell == cell]
    if runs:
        (row,), environment = table_rows(runs, MNIST), runs[0].environment
        minutes = mean(run.train_seconds for run in runs) / 60
        seeds = ", ".join(str(run.seed) for run in runs)
        lines.append(
            f"Expect: {row.measured} % after {row.passes:g} passes ({minutes:.1f} min on an "
            f"{environment['hardware']}, threads: {environment['threads']}; seeds: {seeds})."
        )
    lines.append(f"Command: stn-train --config {cell.file_name}.yaml")
    return "".join(f"# {line}\n" for line in lines)


@app.command("write")
def write() -> None:
    """Write the heads of the cells' configs, and the documents' tables and charts."""
    for cell in MNIST.cells:
        body = "".join(f"{key}: {value}\n" for key, value in cell._asdict().items())
        path = CONFIGS / f"{cell.file_name}.yaml"
        path.write_text(f"{head(cell)}\n{body}")
        load_config(str(path))
    for name, (document, part) in TABLES.items():
        path = ROOT / document
        text, begin, end = path.read_text(), BEGIN.format(name), END.format(name)
        path.write_text(text.split(begin)[0] + begin + part() + end + text.split(end)[1])
    for document, chart in CHARTS.items():
        save(chart(), ROOT / document)


if __name__ == "__main__":
    app()
