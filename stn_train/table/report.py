"""A table of runs as one HTML page without scripts, and the live page that it links to."""

import base64
import io
import json
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from matplotlib.figure import Figure

from stn_train.data.distortion import Warping
from stn_train.demo.page import demo_page, sliders
from stn_train.errors import CheckpointError, DataError, StnError
from stn_train.html import template
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.runs.result import Result, finished_runs, reference_results
from stn_train.runs.shipped_models import FOLDER, is_shipped
from stn_train.table.chart import error_table
from stn_train.table.paper import PaperTable, experiment_of
from stn_train.table.plan import shipped_config, start_of
from stn_train.table.rows import (
    by_model,
    circumstances,
    config_of,
    details,
    outside,
    table_rows,
    verdict,
)
from stn_train.visualiser.animation import (
    Frame,
    learning_frames,
    save_animation,
    sweep_frames,
)
from stn_train.visualiser.charts import learning_curves
from stn_train.visualiser.pages import digits_page

ENVIRONMENT = ["hardware", "device", "threads", "cores", "platform", "python"]
ENVIRONMENT += ["torch", "torchvision", "numpy", "matplotlib", "stn_train", "commit"]
"""What the page says about where runs were made."""


class FinishedRun(NamedTuple):
    """A run directory and its result."""

    directory: RunDirectory
    result: Result

    @property
    def caption(self) -> str:
        """ST-CNN Aff on R, seed 1: 0.58 % test error."""
        result, measure = self.result, self.result.measure
        error = f"{result.test_percent:.2f} {measure.unit} test {measure.name}"
        return f"{experiment_of(result).title}, seed {result.seed}: {error}"


class Material(NamedTuple):
    """What a report is made of."""

    results: list[Result]
    """Those that belong into the table."""
    runs: list[FinishedRun]
    """Those of them whose directory is here, by seed."""
    outside: str
    """Names what was found and does not belong into the table."""


class Live(NamedTuple):
    """The live page that lies beside a report."""

    name: str
    """Of its file."""
    html: str
    """Empty if there is no page."""
    about: str
    """Whose page it is."""
    told: str = ""
    """Why it is not that of one of the runs."""

    @property
    def shortcoming(self) -> str:
        """The reason as a sentence; empty if there is none."""
        short = (
            "The live page is not of one of these runs" if self.html else "There is no live page"
        )
        return f"{short}, since {self.told}" if self.told else ""

    @property
    def address(self) -> str:
        """Of the file, as seen from the report."""
        return quote(self.name)


class Picture(NamedTuple):
    """A picture inside the page."""

    source: str
    """A data URL."""
    caption: str
    css: str = "picture"
    """Its class; charts are inverted on dark pages."""


def material(folder: Path | None, table: PaperTable) -> Material:
    """The finished runs in a folder; without one, the results and the models that ship.

    Raises CheckpointError if none of them belongs into the table, or one cannot be read.
    """
    if folder is None:
        found, runs = reference_results(table.results), shipped_runs(table)
        where = "the program ships no result"
    else:
        every = [FinishedRun(run, Result.read(run.result)) for run in finished_runs(folder)]
        found = [run.result for run in every]
        runs = sorted(
            (run for run in every if table.holds(run.result)), key=lambda run: run.result.seed
        )
        where = f"{folder} holds no finished run"
    results = [result for result in found if table.holds(result)]
    left_out = outside(found, table)
    if not results:
        advice = left_out or f"stn-table run --table {table.name} trains some"
        raise CheckpointError(f"{where} of a cell of the table; {advice}")
    return Material(sorted(results, key=lambda result: result.seed), runs, left_out)


def shipped_runs(table: PaperTable) -> list[FinishedRun]:
    """The models that ship whose cell is in the table."""
    runs = [FinishedRun(run, Result.read(run.result)) for run in finished_runs(FOLDER)]
    return [run for run in runs if table.holds(run.result)]


def report(
    found: Material, table: PaperTable, live: Live | None = None, data_dir: Path | None = None
) -> str:
    """The page of the finished runs, with a link to the live page where there is one.

    If the test images cannot be loaded, the page has no pictures of them. Raises CheckpointError
    if a run cannot be read.
    """
    results, runs = found.results, found.runs
    rows = table_rows(results, table)
    pictures, no_pictures = shown_pictures(runs, table, data_dir)
    shown = table.part({row.cell for row in rows})
    errors = error_table(rows, shown, "")
    page = template("table", "report.html", verdict=lambda row: verdict(row, table))
    return page.render(
        table=shown,
        runs=len(results),
        circumstances=circumstances(results),
        outside=found.outside,
        live=live,
        models=by_model(rows, shown),
        chart=chart(
            errors, f"{table.measure.name.capitalize()}s with their deviation, beside the paper's"
        ),
        curves=list(curves(runs, table)),
        pictures=pictures,
        no_pictures=no_pictures,
        details=details(results, table),
        environments=environments(results),
        test_sets=sorted({(result.cell.distortion, result.test_sha256) for result in results}),
        commands=[command_of(result, table) for result in results],
    )


def live_page(
    runs: Sequence[FinishedRun], table: PaperTable, name: str, data_dir: Path | None = None
) -> Live:
    """The live page of a run's network; where that cannot be, of a model that ships.

    Of the best transformer of each distortion it is the one that was trained to undo most of what
    the page's sliders do. name: of the file that the page will be.
    """
    told = ""
    for several in (runs, shipped_runs(table)):
        best = max(best_transformers(several, table), key=ranges_trained, default=None)
        if best is None:
            continue
        try:
            run = load_run(best.directory.path)
            html = demo_page(run, run.config.load_splits(data_dir).test)
        except StnError as error:
            told = told or str(error).splitlines()[0]
        else:
            ships = ", a model that ships with the program" if is_shipped(run.checkpoint) else ""
            return Live(name, html, f"{best.caption}{ships}", told)
    return Live(name, "", "", told)


def ranges_trained(run: FinishedRun) -> int:
    """Of how many sliders a network saw a range in training."""
    return sum(each["trained"] is not None for each in sliders(config_of(run.result).distortion))


def environments(results: Sequence[Result]) -> list[list[str]]:
    """The different environments of the runs: a head, then a line for each entry."""
    described = [
        tuple(str(result.environment.get(key)) for key in ENVIRONMENT) for result in results
    ]
    columns = list(dict.fromkeys(described))
    head = ["", *(f"runs: {described.count(column)}" for column in columns)]
    entries = zip(ENVIRONMENT, *columns, strict=True)
    return [head, *(list(entry) for entry in entries)]


def curves(runs: Sequence[FinishedRun], table: PaperTable) -> Iterator[Picture]:
    """Learning curves: a figure for each distortion, with the first seed of each model."""
    first = {run.result.cell: run.directory for run in reversed(runs)}
    for distortion in table.columns:
        metrics = {
            cell.model: first[cell].read_metrics()
            for cell in table.values
            if cell in first and cell.distortion == distortion
        }
        if metrics:
            alone, *others = metrics
            about = f"On {distortion}, one seed each" if others else f"{alone} on {distortion}"
            yield chart(learning_curves(about, metrics), f"Learning on {distortion}")


def shown_pictures(
    runs: Sequence[FinishedRun], table: PaperTable, data_dir: Path | None
) -> tuple[list[Picture], str]:
    """The pictures of the best transformers, or none and why there are none."""
    try:
        return list(pictures(runs, table, data_dir)), ""
    except DataError as error:
        return [], str(error).splitlines()[0]


def pictures(
    runs: Sequence[FinishedRun], table: PaperTable, data_dir: Path | None
) -> Iterator[Picture]:
    """What the best transformer of each distortion does to test images; the first one in motion.

    Raises DataError if the test images cannot be loaded.
    """
    moving = True
    for best in best_transformers(runs, table):
        run = load_run(best.directory.path)
        test = run.config.load_splits(data_dir).test
        if moving and isinstance(run.config.distortion, Warping):
            yield gif(sweep_frames(run, test), f"{best.caption}, on moving digits")
            moving = False
        if best.directory.kept_snapshots():
            yield gif(learning_frames(run, test), f"{best.caption}, as it learnt")
        yield picture(drawn(digits_page(run, test), "png"), "png", best.caption)


def best_transformers(runs: Sequence[FinishedRun], table: PaperTable) -> Iterator[FinishedRun]:
    """For each distortion the best run with a transformer that still has its weights."""
    sign = 1 if table.measure.lower_is_better else -1
    for distortion in table.columns:
        tried = [
            run
            for run in runs
            if run.result.cell.distortion == distortion
            and run.result.cell.transform != "none"
            and (run.directory.last.exists() or run.directory.model.exists())
        ]
        if tried:
            yield min(
                tried, key=lambda run: (sign * run.result.test_percent, str(run.directory.path))
            )


def gif(frames: Iterable[Frame], caption: str) -> Picture:
    """An animation."""
    with tempfile.TemporaryDirectory() as folder:
        content = save_animation(frames, Path(folder) / "animation.gif").read_bytes()
    return picture(content, "gif", caption)


def chart(figure: Figure, caption: str) -> Picture:
    """A chart in vector graphics; dark pages invert it."""
    return picture(drawn(figure, "svg"), "svg+xml", caption, "chart")


def drawn(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a file."""
    stream = io.BytesIO()
    figure.savefig(stream, format=form, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()


def picture(content: bytes, form: str, caption: str, css: str = "picture") -> Picture:
    """A picture file as a part of the page."""
    return Picture(f"data:image/{form};base64,{base64.b64encode(content).decode()}", caption, css)


def command_of(result: Result, table: PaperTable) -> str:
    """The command that trains a run again, from the shipped config of its cell."""
    recipe = f"recipe={result.recipe}"
    name, own = start_of(table, result.cell)
    shipped = shipped_config(table, result.cell, [recipe, f"seed={result.seed}"]).as_dict()
    changes = changed_keys(shipped, config_of(result).as_dict())
    words = ["stn-train", "--config", name]
    for override in own:
        words += ["--set", override]
    words += [] if result.recipe == "default" else ["--set", recipe]
    words += ["--seed", str(result.seed)]
    for key, value in changes:
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)


def changed_keys(
    base: dict[str, Any], other: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The settings of another config that differ from a base: dotted keys and values."""
    for key, value in other.items():
        if key == "given":
            continue  # written by the program
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from changed_keys(base[key], value, f"{prefix}{key}.")
        elif base.get(key) != value:
            yield f"{prefix}{key}", value
