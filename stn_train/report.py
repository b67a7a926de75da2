"""A table of runs as one HTML page that needs nothing else: no network, no scripts."""

import base64
import io
import json
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from stn_train.animation import rotation, save_animation, training
from stn_train.charts import error_table, learning_curves
from stn_train.config import completed
from stn_train.config_file import load_config
from stn_train.data import load_splits
from stn_train.errors import CheckpointError, DataError
from stn_train.grid import cell_name
from stn_train.published import COLUMNS, SOURCE, TABLE_1, model_name
from stn_train.result import cell_of, finished_runs, read_result
from stn_train.run_directory import RunDirectory, load_run
from stn_train.shipped import shipped_directory
from stn_train.table import by_model, circumstances, details, measured, table, verdict
from stn_train.visualiser import digits_page

ENVIRONMENT = ["hardware", "device", "threads", "cores", "platform", "python"]
ENVIRONMENT += ["torch", "torchvision", "numpy", "matplotlib", "stn_train", "commit"]
"""What the page tells of where runs were made."""

RunAndResult = tuple[RunDirectory, dict[str, Any]]


def report(folder: Path, data_dir: Path | None = None) -> str:
    """The page of the finished runs in a folder.

    Runs of none of the table's cells are left out. Raises CheckpointError if there are none or one
    cannot be read. Without their test digits the page has no pictures of them.
    """
    found = [(run, read_result(run.result)) for run in finished_runs(folder)]
    runs = [(run, result) for run, result in found if cell_of(result) in TABLE_1]
    if not runs:
        raise CheckpointError(f"{folder} holds no finished run of a cell of the table")
    runs.sort(key=lambda run: int(run[1]["seed"]))
    results = [result for _, result in runs]
    rows, (head, *lines) = table(results), details(results)
    template = resources.files("stn_train").joinpath("report.html").read_text(encoding="utf-8")
    errors = error_table(rows, "")
    return Template(template).substitute(
        title=f"Spatial Transformer Networks: {len(results)} runs",
        circumstances=escape(circumstances(results)),
        table=html_table(rows),
        chart=chart(errors, "Errors with their deviation, beside the paper's", "large"),
        curves="\n".join(curves(runs)),
        pictures="\n".join(pictures(runs, data_dir)),
        cells=wide("Errors in %, sizes, times.", [html_line(head, "th"), *map(html_line, lines)]),
        environments=html_environments(results),
        commands=escape("\n".join(map(command_of, results))),
    )


def html_table(rows: list[dict[str, Any]]) -> str:
    """The paper's layout, each cell with the published value and the difference."""
    lines = [html_line(["model", *COLUMNS], "th")]
    for model, cells in by_model(rows).items():
        shown = "".join(html_cell(row) for row in cells)
        lines.append(f"<tr><th>{model}</th>{shown}</tr>")
    caption = (
        "Test error in %: mean and standard deviation over seeds, on the first draw of the test "
        f"distortion; below it the paper's ({SOURCE}) and the difference."
    )
    return wide(caption, lines)


def html_cell(row: dict[str, Any] | None) -> str:
    """A cell of the paper's table."""
    if row is None:
        return "<td></td>"
    beside = f"paper {row['paper']}, {row['mean'] - row['paper']:+.2f}"
    return (
        f'<td class="{verdict(row)}"><strong>{measured(row)}</strong><small>{beside}</small></td>'
    )


def html_line(values: Sequence[str], kind: str = "td") -> str:
    """A line of a table."""
    return "<tr>" + "".join(f"<{kind}>{escape(value)}</{kind}>" for value in values) + "</tr>"


def html_environments(results: Sequence[dict[str, Any]]) -> str:
    """The different environments that the runs were made in, a column each."""
    told = [tuple(str(result["environment"].get(key)) for key in ENVIRONMENT) for result in results]
    columns = list(dict.fromkeys(told))
    lines = [html_line(["", *(f"runs: {told.count(column)}" for column in columns)], "th")]
    for number, key in enumerate(ENVIRONMENT):
        lines.append(html_line([key, *(column[number] for column in columns)]))
    tests = sorted({(result["distortion"], result["test_sha256"]) for result in results})
    for distortion, digest in tests:
        line = f'<td colspan="{len(columns)}"><code>{escape(digest)}</code></td>'
        lines.append(f"<tr><th>test set, {escape(distortion)}</th>{line}</tr>")
    return wide("Versions and hardware; SHA-256 of the test sets.", lines)


def wide(caption: str, lines: Sequence[str]) -> str:
    """A table that scrolls by itself where the page is narrower."""
    body = "\n".join(lines)
    head = f'<p class="soft">{escape(caption)}</p>'
    return f'{head}\n<div class="wide"><table>\n{body}\n</table></div>'


def curves(runs: Sequence[RunAndResult]) -> Iterator[str]:
    """Learning curves, a figure for each distortion, the first seed of each model."""
    first = {cell_of(result): run for run, result in reversed(runs)}
    for distortion in COLUMNS:
        metrics = {
            model_name(*cell[1:]): first[cell].read_metrics()
            for cell in TABLE_1
            if cell in first and cell[0] == distortion
        }
        if metrics:
            figure = learning_curves(f"On {distortion}, one seed each", metrics)
            yield chart(figure, f"Learning on {distortion}")


def pictures(runs: Sequence[RunAndResult], data_dir: Path | None) -> Iterator[str]:
    """For each distortion the digits of the best transformer; one of them in motion."""
    moving = True
    for distortion in ("RTS", "R", "P", "E"):
        tried = [
            (result["test_error_percent"], str(run.path), run)
            for run, result in runs
            if result["distortion"] == distortion
            and result["transform"] != "none"
            and run.last.exists()
        ]
        if not tried:
            continue
        error, _, run = min(tried)
        model = load_run(run.path)
        try:
            test = load_splits(model.config.data, data_dir).test
        except DataError as missing:
            yield f'<p class="soft">No pictures: {escape(str(missing).splitlines()[0])}</p>'
            return
        caption = f"{model.config.cell}, seed {model.config.seed}: {error:.2f} % test error"
        if moving:
            yield picture(gif(rotation(model, test)), "gif", f"{caption}, on moving digits")
            moving = False
        if run.kept_snapshots():
            yield picture(gif(training(model, test)), "gif", f"{caption}, as it learnt")
        yield picture(drawn(digits_page(model, test), "png"), "png", caption)


def gif(frames: Any) -> bytes:
    """An animation as the bytes of a GIF."""
    with tempfile.TemporaryDirectory() as folder:
        return save_animation(frames, Path(folder) / "animation.gif").read_bytes()


def chart(figure: Figure, caption: str, size: str = "") -> str:
    """A chart in lines, sharp in any size; dark pages turn it over."""
    return picture(drawn(figure, "svg"), "svg+xml", caption, f"chart {size}".strip())


def drawn(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a file."""
    stream = io.BytesIO()
    figure.savefig(stream, format=form, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()


def picture(content: bytes, form: str, caption: str, kind: str = "picture") -> str:
    """A picture within the page."""
    data = f"data:image/{form};base64,{base64.b64encode(content).decode()}"
    text = escape(caption)
    return (
        f'<figure><div class="wide"><img class="{kind}" src="{data}" alt="{text}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def command_of(result: dict[str, Any]) -> str:
    """The command that makes a run again, from a shipped config."""
    name = f"{cell_name(cell_of(result))}.yaml"
    chosen = [f"recipe={result['recipe']}", f"seed={result['seed']}"]
    shipped = load_config(str(shipped_directory() / name), chosen).as_dict()
    changes = list(settings_unlike(shipped, completed(result["config"])))
    sets = [f"--set {shlex.quote(change)}" for change in changes]
    recipe = [] if result["recipe"] == "default" else [f"--set recipe={result['recipe']}"]
    return " ".join(["stn-train", "--config", name, *recipe, "--seed", str(result["seed"]), *sets])


def settings_unlike(base: dict[str, Any], other: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings of another config that differ from a base, as ``section.key=value``."""
    for key, value in other.items():
        if isinstance(value, dict):
            yield from settings_unlike(base.get(key, {}), value, f"{prefix}{key}.")
        elif base.get(key) != value:
            yield f"{prefix}{key}={json.dumps(value)}"
