"""The experiments beside the paper's first table."""

from collections.abc import Callable
from statistics import mean, stdev

from matplotlib.figure import Figure

from document_tables.errors import above_the_paper, unmeasured
from document_tables.results import results_of
from document_tables.text import with_notes
from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.data.clutter import Clutter
from stn_train.data.distortions import Translation
from stn_train.data.sources import DataSettings, load_splits
from stn_train.runs.result import Result
from stn_train.table.paper import TABLES as PAPER_TABLES
from stn_train.table.rows import EFFORT, circumstances, details, effort, markdown_lines, table_rows
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples
from stn_train.visualiser.style import show

ADDITION, COLOCALISATION = PAPER_TABLES["addition"], PAPER_TABLES["colocalisation"]


def addition_table() -> str:
    """Every cell of the addition of two digits, in Markdown."""
    results = results_of(ADDITION.results)
    rows = table_rows(results, ADDITION)
    missing = unmeasured([row.cell for row in rows], ADDITION)
    above = above_the_paper(rows, ADDITION)
    cells = markdown_lines(details(results, ADDITION))
    return with_notes(cells, above, missing, circumstances(results))


def colocalisation_table() -> str:
    """The share located, digit by digit, beside the published one, in Markdown."""
    results = results_of(COLOCALISATION.results)
    rows = {row.cell: row for row in table_rows(results, COLOCALISATION)}
    head = ["digit"]
    for column in COLOCALISATION.columns:
        head += [column, f"{column}, each set", f"{column}, paper"]
    lines = [head]
    for model in COLOCALISATION.rows:
        line = [model[-1]]
        for column in COLOCALISATION.columns:
            cell = Cell(column, *model)
            row, paper = rows.get(cell), COLOCALISATION.published(cell)
            runs = sorted((run.seed, run.test_percent) for run in results if run.cell == cell)
            line += ["" if row is None else f"{row.mean:.1f}"]
            line += [" ".join(f"{percent:.0f}" for _, percent in runs), f"{paper:g}"]
        lines.append(line)
    below = [row.cell for row in rows.values() if row.difference is not None and row.difference < 0]
    missing = [cell for cell in COLOCALISATION.cells if cell not in rows]
    names = ", ".join(f"{cell.subject} on {cell.distortion}" for cell in below)
    parts = [markdown_lines(lines), f"Below the paper: {names or 'none'}.\n"]
    if missing:
        names = ", ".join(f"{cell.subject} on {cell.distortion}" for cell in missing)
        parts.append(f"Not measured yet: {names}.\n")
    return "\n".join([*parts, *([f"{circumstances(results)}\n"] if results else [])])


def made_birds_table() -> str:
    """Every network on the birds that scripts/made_birds.py draws, in Markdown."""
    return runs_table(results_of("made_birds"), made_birds_name)


def made_birds_name(result: Result) -> str:
    """The network of a run, and what it was given."""
    config, seen = Config.from_run(result.config), result.cell.distortion.removeprefix("crop")
    moves = config.train.localisation_learning_rate_scale
    return result.cell.model + (
        f", {seen} px"
        if config.transform is None
        else ""
        if moves
        else ", windows that do not move"
    )


def layers_table() -> str:
    """Transformers at several layers on R, beside one in front and none, in Markdown."""
    arranged = [run for run in results_of("other") if "@" in str(run.cell.transform)]
    return runs_table(beside_them(arranged) + arranged)


def deformable_table() -> str:
    """Deformable convolutions beside the CNN without and with a transformer, in Markdown."""
    deformable = [run for run in results_of("other") if run.cell.backbone == "DCN"]
    return runs_table(beside_them(deformable) + deformable)


def beside_them(results: list[Result]) -> list[Result]:
    """The CNN without and with an affine transformer on the same distortions."""
    cells = [
        Cell(on, "CNN", transform)
        for on in dict.fromkeys(result.cell.distortion for result in results)
        for transform in ("none", "Aff")
    ]
    return [result for result in results_of("default") if result.cell in cells]


def volumes_table() -> str:
    """Every network on digits in space, in Markdown."""
    return runs_table([run for run in results_of("other") if run.task == "extruded"])


def clutter_table() -> str:
    """Every network on TC, in Markdown."""
    return runs_table([run for run in results_of("default") if run.cell.distortion == "TC"])


def runs_table(
    results: list[Result], name: Callable[[Result], str] = lambda result: result.cell.model
) -> str:
    """Runs of experiments that the paper prints no number for, in Markdown: a line a network."""
    if not results:
        return "Not yet run.\n"
    measure = results[0].measure
    digits = 2 if measure.lower_is_better else 1  # an error is the smaller number
    head = ("network", "on", f"test {measure.name} in {measure.unit}", *EFFORT)
    networks: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        networks.setdefault((name(result), result.cell.distortion), []).append(result)
    lines = [head]
    for network, runs in networks.items():
        measured = [run.test_percent for run in runs]
        spread = f" ± {stdev(measured):.{digits}f}" if len(runs) > 1 else ""
        lines.append((*network, f"{mean(measured):.{digits}f}{spread}", *effort(runs)))
    return f"{markdown_lines(lines)}\n{circumstances(results)}\n"


def clutter_samples() -> Figure:
    """Test digits among clutter: a row for each distortion of `CLUTTERED`, on its fixed draw."""
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    test = load_splits(DataSettings()).test
    for axes, (name, distortion) in zip(
        figure.subplots(len(CLUTTERED), SAMPLES), CLUTTERED.items(), strict=True
    ):
        examples = Examples.for_test(Classification().with_distortion(distortion), test, 0)
        for axis, image in zip(axes, examples.batch(slice(SAMPLES)).inputs, strict=True):
            show(axis, image)
        axes[0].set_ylabel(name, fontsize=9)
    return figure


CLUTTERED = {
    "T": Translation(),
    "TC": Clutter(),
    "TC, 84 px,\n16 patches": Clutter(canvas_px=84, patches=16),
}
"""The rows of the picture of cluttered digits."""

SAMPLES = 7
"""Digits in a row of it."""
