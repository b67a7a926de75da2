"""Charts of numbers: how runs went, where a model is wrong, what its transformer undoes.

Every function returns a matplotlib Figure that nothing else refers to; `save` writes it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from stn_train.data import test_set
from stn_train.digits import CLASSES, Digits
from stn_train.errors import ConfigError
from stn_train.evaluator import confusion_of, predict, wilson_interval
from stn_train.poses import deviations, spread, undoing
from stn_train.published import COLUMNS, model_name
from stn_train.run_directory import Run
from stn_train.table import by_model, verdict
from stn_train.visualiser import GREY, RIGHT, WRONG

CURVES = (
    ("train", "loss", "training loss"),
    ("validation", "validation_error_percent", "validation error (%)"),
)
"""Kind of record, field and name of what is drawn over the passes of a run."""

POSES = {
    "angle_deg": ("angle", "°"),
    "scale": ("scale", ""),
    "right_px": ("shift right", " px"),
    "down_px": ("shift down", " px"),
}
"""The fields of `Poses`: name and unit."""

VERDICTS = {
    "below": (RIGHT, "measured, below the paper"),
    "same": ("tab:blue", "within its rounding"),
    "above": (WRONG, "above it"),
}
"""How `stn_train.table.verdict` is drawn."""

POSES_DIGITS = 2000

LEAST_SPREAD = 1e-3
"""What the distortion varies by less than this is not drawn."""


def learning_curves(title: str, metrics: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Training loss over the passes of runs, from each one's metrics.jsonl.

    Beside it the validation error, where a run has measured it.
    """
    kinds = {record["kind"] for records in metrics.values() for record in records}
    shown = [curve for curve in CURVES if curve[0] in kinds] or CURVES[:1]
    figure = Figure(figsize=(1 + 4 * len(shown), 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (kind, field, name) in zip(panels, shown, strict=True):
        last: list[float] = []
        for run, records in metrics.items():
            points = [(each["pass"], each[field]) for each in records if each["kind"] == kind]
            if points:
                marker = "." if len(points) < 60 else ""
                axis.plot(*zip(*points, strict=True), marker=marker, label=run)
                last.append(points[-1][1])
        axis.set(xlabel="passes over the training digits", ylabel=name, xlim=(0, None))
        logarithmic(axis)
        if not last:
            axis.text(0.5, 0.5, "nothing yet", transform=axis.transAxes, ha="center")
        elif len(metrics) == 1:
            axis.set_title(f"{name}, at the end {last[0]:.3g}", fontsize=10)
        axis.grid(alpha=0.3)
    if len(metrics) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def logarithmic(axis: Axes) -> None:
    """A logarithmic y axis with plain numbers, where all that is drawn is above zero."""
    if axis.lines and axis.dataLim.y0 > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def class_errors(run: Run, test: Digits) -> Figure:
    """Where a model is wrong: the error of each class, and what was taken for what."""
    labels = test.labels
    predictions = predict(run.model, test_set(test, run.config.distort, 0)).argmax(1)  # (N,)
    confusion = confusion_of(labels, predictions)
    figure = Figure(figsize=(10, 4.4), dpi=130, layout="constrained")
    bars, table = figure.subplots(1, 2)
    for digit, row in enumerate(confusion.tolist()):
        count, wrong = sum(row), sum(row) - row[digit]
        if count:
            low, high = wilson_interval(wrong, count)
            error = 100 * wrong / count
            bars.bar(digit, error, color="tab:blue")
            bars.errorbar(
                digit,
                error,
                [[max(error - low, 0)], [max(high - error, 0)]],
                color="black",
                capsize=3,
            )
    bars.set(xlabel="true digit", ylabel="error in % (bars: 95 % interval)", xticks=range(CLASSES))
    bars.grid(axis="y", alpha=0.3)
    mistakes = confusion.clone().fill_diagonal_(0)
    table.imshow(mistakes.numpy(), cmap="Reds", vmin=0, vmax=max(int(mistakes.max()), 1))
    for digit, other in mistakes.nonzero().tolist():
        dark = 2 * mistakes[digit, other] > mistakes.max()
        colour = "white" if dark else "black"
        number = str(int(mistakes[digit, other]))
        table.text(other, digit, number, ha="center", va="center", color=colour, fontsize=8)
    table.set(xlabel="prediction", ylabel="true digit", title="mistakes")
    table.set(xticks=range(CLASSES), yticks=range(CLASSES))
    total, count = int(mistakes.sum()), len(labels)
    heading = f"{total} of {count:,} test digits wrong, {100 * total / count:.2f} %"
    figure.suptitle(f"{run.config.cell}: {heading}", fontsize=12, fontweight="bold")
    return figure


def poses_undone(run: Run, test: Digits) -> Figure:
    """What the distortion did to digits against what the transformer undoes, and what is left.

    Only what the distortion varies is drawn. Colours are classes: a class may have an upright of
    its own. Raises ConfigError if the model has no transformer.
    """
    undone = undoing(run, test_set(test[:POSES_DIGITS], run.config.distort, 0))
    posed = torch.stack([*undone.true, *undone.predicted, *undone.left]).isfinite().all(0)  # (N,)
    if not posed.any():
        raise ConfigError([f"{run.config.cell}: the transformer has collapsed, there are no poses"])
    labels = undone.labels[posed]
    varied = [
        name for name in POSES if spread(getattr(undone.true, name)[posed], name) > LEAST_SPREAD
    ]
    shown = varied or ["angle_deg"]
    figure = Figure(figsize=(3.3 * max(len(shown), 2), 6.4), dpi=130, layout="constrained")
    columns = figure.subplots(2, len(shown), squeeze=False).T
    for (above, below), name in zip(columns, shown, strict=True):
        true, predicted, left = (
            getattr(poses, name)[posed] for poses in (undone.true, undone.predicted, undone.left)
        )
        above.scatter(true, predicted, 3, labels, cmap="tab10", alpha=0.6, linewidths=0)
        above.set(xlabel="by the distortion", ylabel="as the transformer takes it")
        above.set_title(POSES[name][0])
        above.grid(alpha=0.3)
        draw_spreads(below, name, true, left, labels)
    heading = f"{run.config.cell}: does the transformer undo the distortion?"
    figure.suptitle(heading, fontsize=12, fontweight="bold")
    note = "What is left includes how it evens out the digits' own slant, size and place."
    if not posed.all():
        note += f" {int((~posed).sum())} digits are read from one place or outside: not shown."
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


def draw_spreads(axis: Axes, name: str, true: Tensor, left: Tensor, labels: Tensor) -> None:
    """How far a field of the poses (N,) lies from its mean, by the distortion and afterwards."""
    word, unit = POSES[name]
    parts = [deviations(true, name), deviations(left, name)]
    edge = 1.05 * max(float(part.abs().quantile(0.995)) for part in parts)
    axis.hist(
        [part.numpy() for part in parts],
        bins=40,
        range=(-edge, edge),
        histtype="stepfilled",
        alpha=0.6,
        label=["distortion", "left"],
    )
    before, after, within = spread(true, name), spread(left, name), spread(left, name, labels)
    axis.set_title(
        f"spread {before:.3g}{unit} by the distortion, {after:.3g}{unit} left\n"
        f"({within:.3g}{unit} within a class)",
        fontsize=8,
    )
    axis.set(xlabel=f"{word}, minus its mean", yticks=[])
    axis.legend(frameon=False, fontsize=8)


def error_table(rows: list[dict[str, Any]], circumstances: str) -> Figure:
    """The paper's table as a picture: each cell's measured and published error, a panel a column.

    rows: of `stn_train.table.table`; circumstances stand below.
    """
    models = [*by_model(rows)]
    figure = Figure(figsize=(12, 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    for axis, column in zip(panels, COLUMNS, strict=True):
        shown = [row for row in rows if row["distortion"] == column]
        for row in shown:
            place = models.index(model_name(row["backbone"], row["transform"]))
            colour = VERDICTS[verdict(row)][0]
            axis.errorbar(row["mean"], place, xerr=row["std"], fmt="o", color=colour, capsize=3)
            axis.plot(row["paper"], place, "D", mfc="none", mec=GREY, ms=8)
            axis.annotate(
                f"{row['mean']:.2f}",
                (max(row["mean"], row["paper"]), place),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        widest = max([max(row["mean"], row["paper"]) for row in shown], default=1.0)
        axis.set(title=column, xlabel="test error in %", xlim=(0, 1.25 * widest))
        axis.grid(axis="x", alpha=0.3)
    panels[0].set(yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.5))
    marks = [
        *(
            Line2D([], [], ls="", marker="o", color=colour, label=label)
            for colour, label in VERDICTS.values()
        ),
        Line2D([], [], ls="", marker="D", mfc="none", mec=GREY, label="Table 1 of the paper"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel(circumstances, fontsize=7, color=GREY)
    return figure
