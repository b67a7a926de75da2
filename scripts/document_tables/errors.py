"""The paper's table: by the default recipe, by the paper's own, and averaged over poses."""

from statistics import mean

from document_tables.results import MNIST, collected, results_of
from document_tables.text import mean_and_error, with_notes
from stn_train.cell import Cell
from stn_train.recipes import PAPER
from stn_train.runs.result import Result
from stn_train.runs.shipped_models import FOLDER
from stn_train.table.comparison import compare, pair
from stn_train.table.paper import PaperTable
from stn_train.table.rows import (
    Row,
    circumstances,
    details,
    markdown,
    markdown_lines,
    table_rows,
    verdict,
)


def error_table() -> str:
    """The paper's table with our numbers, in Markdown, and how they were obtained."""
    results = results_of("default")
    rows = table_rows(results, MNIST)
    missing = unmeasured([row.cell for row in rows], MNIST)
    above = above_the_paper(rows, MNIST)
    return with_notes(markdown(rows, MNIST), above, missing, circumstances(results))


def cells_table() -> str:
    """Every cell of the default recipe, in Markdown."""
    results = results_of("default")
    rows = table_rows(results, MNIST)
    above = above_the_paper(rows, MNIST), above_in_draws(rows)
    cells = markdown_lines(details(results, MNIST))
    return with_notes(cells, *above, circumstances(results))


def paper_recipe_table() -> str:
    """The paper's table by the paper's own recipe, in Markdown.

    The baselines that the readings of the distortions were chosen by stand in it too.
    """
    results = paper_recipe_results()
    rows = table_rows(results, MNIST)
    measured = f"Measured: {len(rows)} of {len(MNIST.cells)} cells."
    above = above_the_paper(rows, MNIST)
    return with_notes(markdown(rows, MNIST), measured, above, circumstances(results))


def paper_recipe_results() -> list[Result]:
    """The runs by the paper's recipe, those of the calibration that have its length included."""
    whole = [run for run in results_of("calibration") if run.steps == PAPER["steps"]]
    return [*whole, *results_of("paper")]


def recipes_table() -> str:
    """The default recipe beside the paper's own, paired over the test digits, in Markdown."""
    head = ("model", "on", "default recipe", "paper's recipe", "difference", "95 % interval")
    lines = [(*head, "seeds")]
    for ours, theirs in pair(results_of("default"), paper_recipe_results(), MNIST).matched:
        compared = compare(ours, theirs)
        low, high = compared.interval_95
        lines.append(
            (
                compared.cell_a.model,
                compared.cell_a.distortion,
                f"{compared.error_a:.2f}",
                f"{compared.error_b:.2f}",
                f"{compared.difference:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{len(ours)} and {len(theirs)}",
            )
        )
    return f"{markdown_lines(lines)}\n"


def poses_table() -> str:
    """What averaging over poses brings to the models that ship, in Markdown.

    The two numbers of a model are of the same draws; the difference is paired over them.
    """
    head = ["model", "on", "error", "mean of draws", "poses", "error", "mean of draws"]
    lines = [(*head, "difference of the means")]
    for report in collected("poses"):
        cell = Cell.read(report)
        alone = Result.read(FOLDER / cell.file_name / "result.json")
        one, several = alone.draws_percent, report["draws_percent"]
        if alone.draws_sha256 != report["draws_sha256"]:
            raise ValueError(f"{cell}: measured on other draws than the model's own result")
        differences = [after - before for before, after in zip(one, several, strict=True)]
        before, after = ((f"{each[0]:.2f}", f"{mean(each):.3f}") for each in (one, several))
        gain = mean_and_error(differences, "+")
        lines.append((cell.model, cell.distortion, *before, str(report["poses"]), *after, gain))
    return f"{markdown_lines(lines)}\n"


def unmeasured(measured: list[Cell], table: PaperTable) -> str:
    """Which cells with a published value are not among those that were measured, in a sentence."""
    missing = [cell.title for cell in table.cells if cell not in measured]
    return f"Not measured yet: {', '.join(missing)}." if missing else ""


def above_the_paper(rows: list[Row], table: PaperTable) -> str:
    """Which cells' means are above the published values, in a sentence."""
    published = sum(row.paper is not None for row in rows)
    above = [row for row in rows if row.difference is not None and row.difference > 0]
    names = ", ".join(
        row.cell.title + " (by less than the paper rounds)" * (verdict(row, table) == "same")
        for row in above
    )
    return f"Above the paper: {len(above)} of {published} cells{names and ': '}{names}."


def above_in_draws(rows: list[Row]) -> str:
    """Which cells' means over the fixed draws are above the published values, in a sentence."""
    published = [(row, row.paper) for row in rows if row.paper is not None]
    above = [row.cell.title for row, paper in published if row.draws_mean > paper]
    names = ": " * bool(above) + ", ".join(above)
    return f"Above the paper in the mean of draws: {len(above)} of {len(published)} cells{names}."
