"""Write what was measured into the repository: no result is typed in by hand.

python scripts/publish.py collect NAME RUN...   runs, or folders of runs -> NAME.jsonl
python scripts/publish.py write                 results -> tables in README and docs, heads of
                                                the configs
python scripts/publish.py ship RUN...           finished runs -> the models that ship with the
                                                program, stn_train/trained

default.jsonl, addition.jsonl and colocalisation.jsonl lie in stn_train/results, since the program
reads them; the others in scripts/results, beside speed.json (the output of scripts/benchmark.py
--json), what scripts/time_to_result.py and scripts/validate.py measured (levers.jsonl,
short_readings.jsonl and numerics.jsonl), and poses.jsonl, of which each line is the output of
``stn-eval --poses 8 --json``.
"""

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from document_tables import CHARTS, TABLES
from document_tables.families import FAMILIES_ON, FAMILIES_SEED
from document_tables.results import ROOT, collected, results_file, results_of

from stn_train.cell import Cell, experiment_title
from stn_train.config import Config
from stn_train.config_changes import changed_settings
from stn_train.config_errors import ConfigSource
from stn_train.config_file import apply_overrides, load_config
from stn_train.demo.graph import observed_graph, with_weights_of
from stn_train.errors import ConfigError, StnError
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.runs.files import write_json
from stn_train.runs.hub import write_hub
from stn_train.runs.result import Result, finished_runs
from stn_train.runs.shipped_models import FOLDER, GRAPH, write_sums
from stn_train.table.paper import TABLES as PAPER_TABLES
from stn_train.table.paper import PaperTable
from stn_train.table.plan import shipped_config
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

COLOCALISED = {
    "T": "a digit alone at a random place of 84 x 84 px",
    "TC": "a digit at a random place of 84 x 84 px, among 16 pieces of others",
}
"""What co-localisation is done on."""

QUESTIONS = {"addition": "the sum of two digits, each in its channel; "}
"""What is asked, where it is not the class of the image."""


WRITTEN = [table for table in PAPER_TABLES.values() if table.name != "birds"]
"""The tables whose configs are written here; those of the birds say more than names, by hand."""


class Kind(StrEnum):
    """What a set of results is for."""

    default = "default"
    """The paper's Table 1 by the default recipe."""
    addition = "addition"
    """The addition of two digits by the default recipe."""
    colocalisation = "colocalisation"
    """Co-localisation by the default recipe."""
    paper = "paper"
    """The table by the paper's recipe."""
    calibration = "calibration"
    """Baselines under the readings of the paper that were tried."""
    readings = "readings"
    """The paper's recipe with a transformer, under other readings than the shipped ones."""
    validation = "validation"
    """Recipes that were tried, measured on validation digits."""
    made_birds = "made_birds"
    """Birds that scripts/made_birds.py draws, with and without spatial transformers."""
    families = "families"
    """The ST-FCN of the default recipe with other families of transforms, one seed."""
    other = "other"
    """Transformers at several layers, volumes, deformable convolutions: no published number."""


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
        forget_folders(result)
        known[identity(result)] = result
    order = [(table.task, cell) for table in PAPER_TABLES.values() for cell in table.values]
    place = {each: number for number, each in enumerate(order)}
    ordered = sorted(known, key=lambda key: (place.get(row_of(known[key]), len(place)), key))
    path = results_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(known[key]) + "\n" for key in ordered))


def forget_folders(result: dict[str, Any]) -> None:
    """Take out of a result where things lay on somebody's machine; folders keep their names."""
    del result["environment"]["command"]  # the config says it
    source = result["config"]["data"]["source"]
    for settings in source.values() if isinstance(source, dict) else ():
        if settings and settings.get("path"):
            settings["path"] = Path(settings["path"]).name


@app.command("ship")
def ship_command(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, or folders of runs.")],
) -> None:
    """Put finished runs among the models that ship; one of the same cell is replaced."""
    try:
        for path in [run.path for folder in runs for run in finished_runs(folder)]:
            typer.echo(f"shipped     {ship(path)}")
    except StnError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def ship(path: Path, parent: Path = FOLDER) -> Path:
    """Put a finished run among the models that ship, under the name of its cell."""
    run = load_run(path)
    folder = parent / run.config.cell.file_name
    shutil.rmtree(folder, ignore_errors=True)
    write_hub(run, folder)
    result = json.loads(run.directory.result.read_text())
    forget_folders(result)
    shipped = RunDirectory(folder)
    write_json(shipped.result, result)
    shutil.copyfile(run.directory.metrics, shipped.metrics)
    (folder / GRAPH).write_bytes(with_weights_of(shipped.model, observed_graph(run)))
    write_sums(folder)
    return folder


def row_of(result: dict[str, Any]) -> tuple[str, Cell]:
    """The task and the cell of a result, whether they are in a table or not."""
    config = Config.from_run(result["config"])
    return config.task_name, config.cell


def place_of(result: dict[str, Any]) -> tuple[PaperTable, Cell]:
    """The table and the cell that a result belongs to; raises ConfigError if there are none."""
    config = Config.from_run(result["config"])
    for table in PAPER_TABLES.values():
        if table.holds(config):
            return table, config.cell
    raise ConfigError([f"{config.title}: in no table"])


def of_its_kind(name: str, result: dict[str, Any]) -> bool:
    """Whether a result is one of the shipped config; results of a former recipe are dropped.

    A setting added since an older result has its default in it. The families of transforms are
    compared by the config of the affine one. Where runs vary by intention, every result is of its
    kind.
    """
    overrides = [f"seed={result['seed']}"]
    if name == Kind.families:
        _, cell = row_of(result)
        if cell.distortion not in FAMILIES_ON or result["seed"] != FAMILIES_SEED:
            return False
        overrides.append(f"transform={cell.transform}")
        shipped = load_config(f"{Cell(cell.distortion, 'FCN', 'Aff').file_name}.yaml", overrides)
    elif name in (Kind.default, Kind.addition, Kind.colocalisation, Kind.paper):
        recipe = "paper" if name == Kind.paper else "default"
        table, cell = place_of(result)
        if recipe == "default" and table.results != name:
            return False
        shipped = shipped_config(table, cell, [f"recipe={recipe}", *overrides])
    else:
        return True
    recorded = Config.from_run(result["config"])
    return not changed_settings(recorded.as_dict(), shipped.as_dict())


def identity(result: dict[str, Any]) -> str:
    """What distinguishes a run from others: its config, with the seed."""
    config = Config.from_run(result["config"]).as_dict()
    settings = {key: value for key, value in config.items() if key not in ("log", "given")}
    return f"{result['seed']:09} {json.dumps(settings, sort_keys=True)}"


def head(table: PaperTable, cell: Cell) -> str:
    """The comment that a cell's config opens with."""
    if cell.subject:
        return head_of_subjects(table, cell)
    title = experiment_title(cell, table.task, table.data)
    lines = [
        f"{title}: {QUESTIONS.get(table.task, '')}{DESCRIPTIONS[cell.distortion]}.",
        f"Paper ({table.in_text.get(cell.distortion, table.place)}): "
        f"{table.published(cell)} % test error"
        + ("." if cell.distortion == "R" else f"; it does not define {cell.distortion} in full."),
    ]
    runs = [result for result in results_of(table.results) if result.cell == cell]
    if runs:
        (row,), fastest = table_rows(runs, table), fastest_of(runs)
        environment, minutes = fastest.environment, fastest.train_seconds / 60
        seeds = ", ".join(str(run.seed) for run in runs)
        lines.append(
            f"Expect: {row.measured} % after {row.passes:g} passes ({minutes:.1f} min on an "
            f"{environment['hardware']}, threads: {environment['threads']}; seeds: {seeds})."
        )
    lines.append(f"Command: stn-train --config {table.file_name(cell)}.yaml")
    return "".join(f"# {line}\n" for line in lines)


def head_of_subjects(table: PaperTable, cell: Cell) -> str:
    """The comment that the config of a column opens with, the same for every subject."""
    published = [
        table.published(each) for each in table.cells if each.distortion == cell.distortion
    ]
    low, high = min(filter(None, published)), max(filter(None, published))
    title = experiment_title(cell._replace(subject=""), table.task, table.data)
    lines = [
        f"{title}: {COLOCALISED[cell.distortion]}; find it.",
        f"Paper ({table.place}): {low:g}"
        + (f" to {high:g} % found ({table.note})." if high > low else " % found, of every digit."),
    ]
    runs = [run for run in results_of(table.results) if run.cell.distortion == cell.distortion]
    if runs:
        rows, fastest = table_rows(runs, table), fastest_of(runs)
        found = [row.mean for row in rows]
        environment, seconds = fastest.environment, fastest.train_seconds
        lines.append(
            f"Expect: {min(found):.0f} to {max(found):.0f} %, by digit ({seconds:.0f} s on an "
            f"{environment['hardware']}, threads: {environment['threads']})."
        )
    lines.append(f"Command: stn-train --config {table.config_name(cell)}.yaml")
    return "".join(f"# {line}\n" for line in lines)


def fastest_of(runs: list[Result]) -> Result:
    """The run whose training took the least time."""
    return min(runs, key=lambda run: run.train_seconds)


def body(table: PaperTable, cell: Cell) -> str:
    """What a cell's config says: what differs from the defaults."""
    task = [] if table.task == "classification" else [f"task={table.task}"]
    data = [] if table.data == "mnist" else [f"data.source={table.data}"]
    settings: dict[str, Any] = {}
    own = [setting for key in (cell.distortion, cell.model) for setting in table.own.get(key, ())]
    chosen = [*task, *data, *cell.overrides, *own]
    apply_overrides(settings, chosen, ConfigSource("the cell"))
    return yaml.safe_dump(settings, sort_keys=False)


@app.command("write")
def write() -> None:
    """Write the heads of the cells' configs, and the documents' tables and charts."""
    for table in WRITTEN:
        for cell in table.cells:
            path = CONFIGS / f"{table.config_name(cell)}.yaml"
            path.write_text(f"{head(table, cell)}\n{body(table, cell)}")
            load_config(str(path))
    for name, (document, part) in TABLES.items():
        path = ROOT / document
        text, begin, end = path.read_text(), BEGIN.format(name), END.format(name)
        path.write_text(text.split(begin)[0] + begin + part() + end + text.split(end)[1])
    for document, chart in CHARTS.items():
        save(chart(), ROOT / document)


if __name__ == "__main__":
    app()
