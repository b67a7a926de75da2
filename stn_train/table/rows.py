"""The rows of a table of runs, and how they are printed."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.config_changes import changed_settings
from stn_train.errors import ConfigError
from stn_train.runs.result import Result
from stn_train.table.paper import Experiment, PaperTable, experiment_of

CELL = ["distortion", "backbone", "transform"]
MEASURED = ["paper", "mean", "std", "seeds", "passes", "draws_mean"]
FIELDS = [*CELL, *MEASURED]
"""The keys of a row in JSON and CSV, in order; `subject` follows the cell where it has one."""


@dataclass(frozen=True)
class Row:
    """A cell of a table: measured over seeds, and published. All but seeds and passes in %."""

    cell: Cell
    paper: float | None
    """The published value, if there is one."""
    mean: float
    """Over seeds, of the test error on the first draw."""
    std: float | None
    """Standard deviation over seeds; None for one seed."""
    seeds: list[int]
    passes: float
    """Over the training data; of the longest run."""
    draws_mean: float
    """Over seeds, of the mean test error over the fixed draws."""

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.paper is None else self.mean - self.paper

    @property
    def measured(self) -> str:
        """Mean and standard deviation."""
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")

    @property
    def paper_text(self) -> str:
        """The published value as printed in the paper."""
        return "" if self.paper is None else str(self.paper)

    @property
    def difference_text(self) -> str:
        """The difference with its sign."""
        return "" if self.difference is None else f"{self.difference:+.2f}"

    def as_dict(self) -> dict[str, Any]:
        """The row in types that JSON has, with the keys FIELDS."""
        measured = self.mean, self.std, self.seeds, self.passes, self.draws_mean
        return self.cell.as_dict() | dict(zip(MEASURED, (self.paper, *measured), strict=True))


def table_rows(results: Iterable[Result], table: PaperTable) -> list[Row]:
    """A row for each cell of the table that has results, in the table's order.

    Results that do not belong into it are left out: `outside` names them. Raises ConfigError if
    runs of a cell differ in more than their seed.
    """
    rows = []
    for cell, runs in runs_by_cell(results, table).items():
        refuse_unlike(cell, runs)
        values = [run.test_percent for run in runs]
        row = Row(
            cell=cell,
            paper=table.published(cell),
            mean=mean(values),
            std=stdev(values) if len(values) > 1 else None,
            seeds=sorted(run.seed for run in runs),
            passes=max(run.passes for run in runs),
            draws_mean=mean(run.draws_mean_percent for run in runs),
        )
        rows.append(row)
    return rows


def runs_by_cell(results: Iterable[Result], table: PaperTable) -> dict[Cell, list[Result]]:
    """The results that belong into a table, cell by cell in the table's order."""
    held = [result for result in results if table.holds(result)]
    grouped = {cell: [run for run in held if run.cell == cell] for cell in table.values}
    return {cell: runs for cell, runs in grouped.items() if runs}


def refuse_unlike(cell: Cell, runs: Sequence[Result]) -> None:
    """Raise ConfigError unless runs of a cell differ in their seed alone."""
    first, *others = (config_of(run).as_dict() | {"seed": 0} for run in runs)
    for other in others:
        changes = changed_settings(first, other)
        if changes:
            unlike = [f"{each.key} is {each.old} in one, {each.new} in another" for each in changes]
            raise ConfigError([f"{cell}: its runs must differ in the seed alone:", *unlike])
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError([f"{cell}: two runs have the same seed"])


def config_of(result: Result) -> Config:
    """The config that a result was trained with; raises ConfigError if it is not valid."""
    try:
        return Config.from_run(result.config)
    except ConfigError as error:
        told = f"{result.cell}, seed {result.seed}: its config is not valid"
        raise ConfigError([f"{told}: {'; '.join(error.problems)}"]) from None


def outside(results: Iterable[Result], table: PaperTable) -> str:
    """Names the runs that do not belong into a table; empty if all do."""
    seeds: dict[Experiment, set[int]] = {}
    for result in results:
        if not table.holds(result):
            seeds.setdefault(experiment_of(result), set()).add(result.seed)
    names = [
        f"{experiment.title} (seed{'s' * (len(found) > 1)} {', '.join(map(str, sorted(found)))})"
        for experiment, found in seeds.items()
    ]
    return f"not in this table: {'; '.join(names)}" if names else ""


def verdict(row: Row, table: PaperTable) -> Literal["better", "same", "worse"] | None:
    """How a mean compares with the published value; None if there is none.

    same: the difference is smaller than the rounding of the published value.
    """
    if row.paper is None:
        return None
    if abs(row.mean - row.paper) < table.rounding:
        return "same"
    return "better" if table.measure.better(row.mean, row.paper) else "worse"


def by_model(rows: Sequence[Row], table: PaperTable) -> dict[str, list[Row | None]]:
    """For each model of the table, its row in each column; None where there is none."""
    by_cell = {row.cell: row for row in rows}
    return {
        Cell(table.columns[0], *model).model: [
            by_cell.get(Cell(column, *model)) for column in table.columns
        ]
        for model in table.rows
    }


def beside_paper(row: Row) -> str:
    """A cell: mean and standard deviation, the published value, the difference."""
    if row.paper is None:
        return row.measured
    return f"{row.measured} ({row.paper_text}, {row.difference_text})"


def markdown(rows: Sequence[Row], table: PaperTable) -> str:
    """The paper's layout: a line for each model, a column for each distortion."""
    lines = [["model", *table.columns]]
    for model, cells in by_model(rows, table).items():
        lines.append([model, *("" if row is None else beside_paper(row) for row in cells)])
    return markdown_lines(lines)


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them the head, as a Markdown table."""
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]]) + "\n"


def plain(rows: Sequence[Row], table: PaperTable) -> str:
    """A line for each cell, in aligned columns."""
    measured = f"{table.measure.name} in {table.measure.unit}"
    lines = [("model", "on", measured, "paper", "minus paper", "all draws", "seeds", "passes")]
    for row in rows:
        lines.append(
            (
                row.cell.model,
                row.cell.distortion,
                row.measured,
                row.paper_text,
                row.difference_text,
                f"{row.draws_mean:.2f}",
                " ".join(map(str, row.seeds)),
                f"{row.passes:g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


def comma_separated(rows: Sequence[Row]) -> str:
    """The rows as CSV; seeds are separated by blanks."""
    stream = io.StringIO()
    keys = dict.fromkeys(key for row in rows for key in row.as_dict())
    writer = csv.DictWriter(stream, [*keys] or FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_dict() | {"seeds": " ".join(map(str, row.seeds))} for row in rows)
    return stream.getvalue()


def details(results: Sequence[Result], table: PaperTable) -> list[tuple[str, ...]]:
    """A head and a line for each cell: errors, size of the model, time of a run."""
    lines: list[tuple[str, ...]] = [
        ("model", "on", table.measure.name, "paper", "mean of draws", *EFFORT)
    ]
    grouped = runs_by_cell(results, table)
    for row in table_rows(results, table):
        errors = row.measured, row.paper_text, f"{row.draws_mean:.2f}"
        lines.append((row.cell.model, row.cell.distortion, *errors, *effort(grouped[row.cell])))
    return lines


EFFORT = ("seeds", "parameters", "passes", "minutes a run")
"""The heads of what `effort` returns."""


def effort(runs: Sequence[Result]) -> tuple[str, str, str, str]:
    """What runs of one network took: seeds, size of the model, passes, minutes of training.

    The minutes are those of the fastest run: a slow or a busy machine only adds to them.
    """
    return (
        " ".join(map(str, sorted(run.seed for run in runs))),
        f"{runs[0].parameters:,}",
        f"{max(run.passes for run in runs):g}",
        f"{min(run.train_seconds for run in runs) / 60:.1f}",
    )


def circumstances(results: Sequence[Result]) -> str:
    """How results were obtained, in a sentence: seeds, data, hardware, precision, commits."""

    def each(values: Iterable[Any]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    def environment(key: str) -> str:
        return each(result.environment.get(key) for result in results)

    commits = (str(result.environment.get("commit"))[:9] for result in results)
    precision = each(result.precision for result in results if result.precision)
    return (
        f"Seeds: {each(sorted(result.seed for result in results))}; "
        f"training digits: {each(result.training_digits for result in results)} "
        f"({each(result.data for result in results)}); "
        f"{environment('hardware')}, threads: {environment('threads')}; "
        f"{precision}{'; ' if precision else ''}"
        f"torch {environment('torch')}; commit: {each(commits)}."
    )
