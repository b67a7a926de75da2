"""Charts: how runs went, where a model is wrong, what its transformer undoes; all by name.

Legend: N examples.

Every function returns a matplotlib Figure that nothing else refers to; `style.save` writes it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from stn_train.config import Config
from stn_train.data.distortion import Warping
from stn_train.data.images import DIGIT_PX, ImageFormat, Images
from stn_train.errors import ConfigError
from stn_train.evaluator import answer, confusion_of, wilson_interval
from stn_train.runs.directory import Run
from stn_train.tasks.examples import Examples
from stn_train.visualiser.health import health_page
from stn_train.visualiser.pages import (
    class_means,
    digits_page,
    refuse_without_classes,
)
from stn_train.visualiser.poses import deviations, spread, undoing
from stn_train.visualiser.style import GREY, short, word_for_class, word_for_images
from stn_train.visualiser.volumes import volumes_page

POSES = {
    "angle_deg": ("angle", "°"),
    "scale": ("scale", ""),
    "right_px": ("shift right", " px"),
    "down_px": ("shift down", " px"),
}
"""The fields of `Poses`: name and unit."""

POSES_IMAGES = 2000

MIN_SPREAD = 1e-3
"""A part of the pose that the distortion varies by less than this is not drawn."""

NUMBERED_CLASSES = 20
"""With more classes the table of mistakes is too small for numbers."""

ANY_IMAGES = ImageFormat((1, DIGIT_PX, DIGIT_PX), tuple("0123456789"))
"""Whether a task has classes, and how much it draws, do not depend on its images: it is asked with
these."""


class Curve(NamedTuple):
    """A number that is drawn over the passes of runs."""

    kind: str
    """Of the records that hold it."""
    field: str
    name: str
    """On the axis."""


LOSS = Curve("train", "loss", "training loss")


def learning_curves(title: str, metrics: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Training loss over the passes of runs, from each one's metrics.jsonl.

    Beside it each measure of validation that a run has.
    """
    shown = curves_in([record for records in metrics.values() for record in records])
    figure = Figure(figsize=(1 + 4 * len(shown), 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (kind, field, name) in zip(panels, shown, strict=True):
        last: list[float] = []
        for run, records in metrics.items():
            points = [
                (each["pass"], each[field])
                for each in records
                if each["kind"] == kind and field in each
            ]
            if points:
                marker = "." if len(points) < 60 else ""
                axis.plot(*zip(*points, strict=True), marker=marker, label=run)
                last.append(points[-1][1])
        axis.set(xlabel="passes over the training images", ylabel=name, xlim=(0, None))
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


def curves_in(records: list[dict[str, Any]]) -> list[Curve]:
    """What records of metrics.jsonl have measured: the loss, unless only something else was.

    A record of a validation holds validation_KEY, KEY as of its task's `Measure`.
    """
    kinds = {record["kind"] for record in records}
    fields = {
        field: None  # a dict, to keep the order
        for record in records
        for field in record
        if record["kind"] == "validation" and field.startswith("validation_")
    }
    measured = [Curve("validation", field, in_words(field)) for field in fields]
    return [LOSS, *measured] if LOSS.kind in kinds or not measured else measured


def in_words(field: str) -> str:
    """A field's name on an axis: validation_error_percent is the validation error (%)."""
    name = field.removesuffix("_percent").replace("_", " ")
    return f"{name} (%)" if field.endswith("_percent") else name


def logarithmic(axis: Axes) -> None:
    """A logarithmic y axis with plain numbers, if everything on it is above zero."""
    if axis.lines and axis.dataLim.y0 > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def class_errors(run: Run, test: Images) -> Figure:
    """Where a model is wrong: the error of each class, and what was taken for what.

    Raises ConfigError if the task has no classes.
    """
    refuse_without_classes(run)
    task = run.config.task
    names, word = task.classes(run.format), word_for_class(task.classes(run.format))
    answers, targets = answer(run.model, Examples.for_test(task, test, 0))
    confusion = confusion_of(targets, answers, len(names))
    larger = max(1.0, len(names) / 16)
    figure = Figure(figsize=(10 * larger, 4.4 * larger), dpi=130, layout="constrained")
    bars, table = figure.subplots(1, 2)
    for number, row in enumerate(confusion.tolist()):
        count, wrong = sum(row), sum(row) - row[number]
        if count:
            low, high = wilson_interval(wrong, count)
            error = 100 * wrong / count
            bars.bar(number, error, color="tab:blue")
            bars.errorbar(
                number,
                error,
                [[max(error - low, 0)], [max(high - error, 0)]],
                color="black",
                capsize=3,
            )
    bars.set(xlabel=f"true {word}", ylabel="error in % (bars: 95 % interval)")
    bars.grid(axis="y", alpha=0.3)
    mistakes = confusion.clone().fill_diagonal_(0)
    table.imshow(mistakes.numpy(), cmap="Reds", vmin=0, vmax=max(int(mistakes.max()), 1))
    for number, other in mistakes.nonzero().tolist() if len(names) <= NUMBERED_CLASSES else []:
        dark = 2 * mistakes[number, other] > mistakes.max()
        colour = "white" if dark else "black"
        text = str(int(mistakes[number, other]))
        table.text(other, number, text, ha="center", va="center", color=colour, fontsize=8)
    table.set(xlabel="prediction", ylabel=f"true {word}", title="mistakes")
    labels = [short(name) for name in names]
    turned = 90 if max(map(len, labels)) > 2 else 0
    bars.set_xticks(range(len(names)), labels, rotation=turned)
    table.set_xticks(range(len(names)), labels, rotation=turned)
    table.set_yticks(range(len(names)), labels)
    total, count, images = int(mistakes.sum()), len(targets), word_for_images(test.classes)
    heading = f"{total} of {count:,} test {images} wrong, {100 * total / count:.2f} %"
    figure.suptitle(f"{run.config.title}: {heading}", fontsize=12, fontweight="bold")
    return figure


def poses_undone(run: Run, test: Images) -> Figure:
    """What the distortion did to images against what the transformer undoes, and what is left.

    Only what the distortion varies is drawn. Colours are classes: the upright pose of a class can
    be its own. Raises ConfigError where there are no poses to compare, as `undoing` does.
    """
    undone = undoing(run, Examples.for_test(run.config.task, test[:POSES_IMAGES], 0))
    posed = torch.stack([*undone.true, *undone.predicted, *undone.left]).isfinite().all(0)  # (N,)
    title, images = run.config.title, word_for_images(test.classes)
    if not posed.any():
        raise ConfigError([f"{title}: the transformer has collapsed, there are no poses"])
    labels = undone.labels[posed]
    varied = [
        name for name in POSES if spread(getattr(undone.true, name)[posed], name) > MIN_SPREAD
    ]
    shown = varied or ["angle_deg"]
    figure = Figure(figsize=(3.3 * max(len(shown), 2), 6.4), dpi=130, layout="constrained")
    columns = figure.subplots(2, len(shown), squeeze=False).T
    colours = "tab10" if len(test.classes) <= 10 else "tab20"
    for (above, below), name in zip(columns, shown, strict=True):
        true, predicted, left = (
            getattr(poses, name)[posed] for poses in (undone.true, undone.predicted, undone.left)
        )
        above.scatter(true, predicted, 3, labels, cmap=colours, alpha=0.6, linewidths=0)
        above.set(xlabel="by the distortion", ylabel="as the transformer takes it")
        above.set_title(POSES[name][0])
        above.grid(alpha=0.3)
        draw_spreads(below, name, true, left, labels)
    heading = f"{title}: does the transformer undo the distortion?"
    figure.suptitle(heading, fontsize=12, fontweight="bold")
    note = f"What is left includes how it evens out the {images}' own slant, size and place."
    if not posed.all():
        note += f" {int((~posed).sum())} {images} are read from one place or outside: not shown."
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


def draw_spreads(axis: Axes, name: str, true: Tensor, left: Tensor, labels: Tensor) -> None:
    """Histograms of a field of the poses (N,), less its mean: by the distortion, and left."""
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


def curves(run: Run, _: Images | None = None) -> Figure:
    """Loss and validation over the passes of a run; needs no images."""
    metrics = run.directory.read_metrics()
    return learning_curves(run.config.title, {run.config.title: metrics})


PICTURES: dict[str, Callable[[Run, Images], Figure]] = {
    "grid": digits_page,
    "means": class_means,
    "classes": class_errors,
    "poses": poses_undone,
    "curves": curves,
    "volumes": volumes_page,
    "health": health_page,
}
"""What can be drawn of a run and the test images."""


def pictures_of(config: Config) -> list[str]:
    """The names of the pictures that a run leaves.

    Poses need a single spatial transformer, in front, and a distortion that is a map of the plane
    and all that is drawn; the errors of classes need classes; volumes need a task that makes them.
    Health is drawn only where somebody asks.
    """
    pixels = torch.zeros(1, *ANY_IMAGES.shape, dtype=torch.uint8)
    any_image = Images(pixels, torch.zeros(1, dtype=torch.int64), ANY_IMAGES.classes)
    warps_alone = (
        isinstance(config.distortion, Warping)
        and len(config.task.draw(any_image, torch.Generator())) == 1
    )
    has = {
        "poses": config.has_one_in_front and warps_alone,
        "classes": bool(config.task.classes(ANY_IMAGES)),
        "volumes": len(config.task.shape(ANY_IMAGES)) == 4,
        "health": False,
    }
    return [name for name in PICTURES if has.get(name, True)]
