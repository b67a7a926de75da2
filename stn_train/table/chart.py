"""A table of runs as a chart."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stn_train.table.paper import PaperTable
from stn_train.table.rows import Row, by_model, verdict
from stn_train.visualiser.style import GREY, RIGHT, WRONG

COLOURS = {"better": RIGHT, "same": "tab:blue", "worse": WRONG, None: GREY}
"""The colour of each `stn_train.table.rows.verdict`."""


def error_table(rows: Sequence[Row], table: PaperTable, circumstances: str) -> Figure:
    """A table as a picture: each cell's measured and published value, a panel for each column.

    circumstances: the line below it.
    """
    models = [*by_model(rows, table)]
    size = max(12, 3 * len(table.columns)), max(2.0, 1.2 + 0.45 * len(models))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(panels, table.columns, strict=True):
        widest = []
        for row in (row for row in rows if row.cell.distortion == column):
            place, colour = models.index(row.cell.model), COLOURS[verdict(row, table)]
            widest.append(max(row.mean, row.paper or 0.0))
            axis.errorbar(row.mean, place, xerr=row.std, fmt="o", color=colour, capsize=3)
            if row.paper is not None:
                axis.plot(row.paper, place, "D", mfc="none", mec=GREY, ms=8)
            axis.annotate(
                f"{row.mean:.2f}",
                (row.mean, place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
        label = f"test {table.measure.name} in {table.measure.unit}"
        axis.set(title=column, xlabel=label, xlim=(0, 1.15 * max(widest, default=1.0)))
        axis.grid(axis="x", alpha=0.3)
    panels[0].set(yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.8))
    figure.legend(handles=marks(table), loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel(circumstances, fontsize=7, color=GREY)
    return figure


def marks(table: PaperTable) -> list[Line2D]:
    """The legend: what the colours and the diamond mean."""
    better, worse = ("below", "above") if table.measure.lower_is_better else ("above", "below")
    labels = {
        "better": f"measured, {better} the paper",
        "same": "within its rounding",
        "worse": f"{worse} it",
    }
    return [
        *(
            Line2D([], [], ls="", marker="o", color=COLOURS[kind], label=label)
            for kind, label in labels.items()
        ),
        Line2D([], [], ls="", marker="D", mfc="none", mec=GREY, label=table.paper),
    ]
