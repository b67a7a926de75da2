"""The paper's table: what its runs come to, and how that is shown."""

import csv
import io
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any, Literal

from stn_train.config import changed_settings, completed
from stn_train.errors import ConfigError
from stn_train.published import COLUMNS, ROUNDING, TABLE_1, Cell, model_name
from stn_train.result import cell_of

FIELDS = ["distortion", "backbone", "transform", "paper"]
FIELDS += ["mean", "std", "seeds", "passes", "draws_mean"]
"""The keys of a row, in order."""


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell of the paper's that has results, in the paper's order.

    mean, std: of the test error on the first draw over seeds, in %; std is None for one seed.
    draws_mean: the same for the mean over the fixed draws.
    Raises ConfigError if runs of a cell differ in more than their seed.
    """
    rows = []
    for cell, paper in TABLE_1.items():
        runs = [result for result in results if cell_of(result) == cell]
        if not runs:
            continue
        refuse_unlike(cell, runs)
        errors = [run["test_error_percent"] for run in runs]
        row = [
            *cell,
            paper,
            mean(errors),
            stdev(errors) if len(errors) > 1 else None,
            sorted(run["seed"] for run in runs),
            max(run["passes"] for run in runs),
            mean(run["draws_mean_percent"] for run in runs),
        ]
        rows.append(dict(zip(FIELDS, row, strict=True)))
    return rows


def refuse_unlike(cell: Cell, runs: Sequence[dict[str, Any]]) -> None:
    """Raise ConfigError unless runs of a cell differ in their seed alone."""
    first, *others = (completed(run["config"] | {"seed": 0}) for run in runs)
    for other in others:
        changes = changed_settings(first, other)
        if changes:
            unlike = [f"{each.key} is {each.old} in one, {each.new} in another" for each in changes]
            told = f"{':'.join(cell)}: runs of different settings do not go into one cell:"
            raise ConfigError([told, *unlike])
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError([f"{':'.join(cell)}: two runs have the same seed"])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The paper's layout: a line for each model, a column for each distortion."""
    lines = [["model", *COLUMNS]]
    for model, cells in by_model(rows).items():
        lines.append([model, *("" if row is None else beside_paper(row) for row in cells)])
    return markdown_lines(lines)


def by_model(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any] | None]]:
    """The rows of each model of the paper's, one for each of COLUMNS; None where there is none."""
    by_cell = {cell_of(row): row for row in rows}
    models = dict.fromkeys(cell[1:] for cell in TABLE_1)
    return {
        model_name(*model): [by_cell.get((column, *model)) for column in COLUMNS]
        for model in models
    }


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them the head, as a Markdown table."""
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]]) + "\n"


def details(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each cell, below a head: what it came to, its size and its time."""
    head = "model,on,error,paper,mean of draws,seeds,parameters,passes,minutes a run"
    lines = [tuple(head.split(","))]
    for row in table(results):
        runs = [result for result in results if cell_of(result) == cell_of(row)]
        lines.append(
            (
                *name_and_errors(row),
                f"{row['draws_mean']:.2f}",
                " ".join(map(str, row["seeds"])),
                f"{runs[0]['parameters']:,}",
                f"{row['passes']:g}",
                f"{mean(run['train_seconds'] for run in runs) / 60:.1f}",
            )
        )
    return lines


def beside_paper(row: dict[str, Any]) -> str:
    """A cell: mean and standard deviation, the published value, the difference."""
    return f"{measured(row)} ({row['paper']}, {row['mean'] - row['paper']:+.2f})"


def verdict(row: dict[str, Any]) -> Literal["below", "same", "above"]:
    """How a cell's mean lies to the published value; same: its rounding may hide the difference."""
    difference = row["mean"] - row["paper"]
    if abs(difference) < ROUNDING:
        return "same"
    return "below" if difference < 0 else "above"


def measured(row: dict[str, Any]) -> str:
    """Mean and standard deviation of a cell."""
    return f"{row['mean']:.2f}" + ("" if row["std"] is None else f" ± {row['std']:.2f}")


def name_and_errors(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a line of a table begins with: model, distortion, measured and published error."""
    name = model_name(row["backbone"], row["transform"])
    return name, row["distortion"], measured(row), str(row["paper"])


def plain(rows: list[dict[str, Any]]) -> str:
    """A line for each cell, in columns."""
    lines = [("model", "on", "error in %", "paper", "minus paper", "all draws", "seeds", "passes")]
    for row in rows:
        lines.append(
            (
                *name_and_errors(row),
                f"{row['mean'] - row['paper']:+.2f}",
                f"{row['draws_mean']:.2f}",
                " ".join(map(str, row["seeds"])),
                f"{row['passes']:g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV; seeds are separated by blanks."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"seeds": " ".join(map(str, row["seeds"]))} for row in rows)
    return stream.getvalue()


def circumstances(results: list[dict[str, Any]]) -> str:
    """How results came about, in a sentence: seeds, digits, hardware, versions, commits."""

    def each(values: Iterable[Any]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    def environment(key: str) -> str:
        return each(result["environment"].get(key) for result in results)

    commits = (str(result["environment"].get("commit"))[:9] for result in results)
    return (
        f"Seeds: {each(sorted(result['seed'] for result in results))}; "
        f"training digits: {each(result['training_digits'] for result in results)} "
        f"({each(result['data'] for result in results)}); "
        f"{environment('hardware')}, threads: {environment('threads')}; "
        f"torch {environment('torch')}; commit: {each(commits)}."
    )
