"""Pictures of digits: what a spatial transformer does to them.

Legend: N digits, C side of the input in pixels, S side of the transformer's output.

Every function returns a matplotlib Figure that nothing else refers to; `save` writes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from stn_train.atomic import write_atomically
from stn_train.data import DistortedDigits, test_set
from stn_train.digits import CLASSES, Digits
from stn_train.errors import ConfigError
from stn_train.evaluator import BATCH, predict
from stn_train.run_directory import Run

GRID_LINES = 8
"""Lines of the sampling grid each way; the transformer samples far more points between them."""
RIGHT, WRONG, GREY = "#1a7f37", "#cf222e", "#57606a"
GRID_COLOUR = "#3fd07f"
MEANS_DIGITS = 2000
"""A class mean over 200 digits looks the same as over 1,000."""


class Inspected(NamedTuple):
    """Digits as a model saw them."""

    inputs: Tensor
    """(N, C, C)."""
    outputs: Tensor | None
    """What the classifier saw (N, S, S); None without a spatial transformer."""
    grid: Tensor | None
    """Where each output pixel was read from, in input pixels (N, H, W, 2)."""
    labels: Tensor
    """Their classes (N,)."""
    predictions: Tensor
    """What the model takes them for (N,)."""
    confidences: Tensor
    """Probability of the prediction (N,)."""


@torch.inference_mode()
def inspect(run: Run, distorted: DistortedDigits, index: Tensor) -> Inspected:
    """Run a model on some distorted digits, keeping what happens on the way."""
    images, labels = distorted.batch(index)
    confidences, predictions = run.model(images).softmax(1).max(1)
    outputs, grid = None, None
    if run.model.transformer is not None:
        warp = run.model.warp(images)
        outputs = warp.output[:, 0]
        grid = ((warp.grid + 1) * images.shape[-1] - 1) / 2  # normalised to pixels, (N, H, W, 2)
    return Inspected(images[:, 0], outputs, grid, labels, predictions, confidences)


def digits_page(run: Run, test: Digits, count: int = 15, misclassified: bool = False) -> Figure:
    """A page of test digits, each before and after the transformer, in the style of the paper.

    misclassified: only digits that the model gets wrong, the most confident mistakes first.
    Raises ConfigError if there are none.
    """
    distorted = test_set(test, run.config.distort, 0)
    index = worst_mistakes(run, distorted) if misclassified else one_of_each(test.labels)
    inspected = inspect(run, distorted, index[:count])
    shown = len(inspected.labels)
    if shown == 0:
        raise ConfigError(["there is no misclassified digit to show: every prediction is right"])
    warped = inspected.outputs is not None
    across, wide = min(shown, max(5, round(shown**0.5))), 2 if warped else 1
    down = -(-shown // across)
    header = 1.0 if warped else 0.7  # inches
    size = (max(1.3 * across * wide, 7.2), 1.55 * down + header)
    figure = Figure(figsize=size, dpi=130)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[header, size[1] - header])
    head, body = parts[:, 0]
    what = "the most confident mistakes" if misclassified else "test digits"
    legend = "Above each: true digit → prediction (its probability)."
    if warped:
        legend = (
            "Left: the input, with the grid that the transformer reads it at. "
            f"Right: what the classifier sees. Grey: outside.\n{legend}"
        )
    head.text(0.5, 0.72, f"{run.config.cell}: {what}", ha="center", fontsize=12, weight="bold")
    head.text(0.5, 0.6, legend, ha="center", va="top", fontsize=9, linespacing=1.4)
    places = body.subfigures(down, across, squeeze=False).flatten()
    for number, place in enumerate(places[:shown]):
        draw_digit(place, inspected, number)
    return figure


@torch.inference_mode()
def class_means(run: Run, test: Digits) -> Figure:
    """Mean of each class before and after the transformer: the sharper, the better aligned.

    Below each mean the standard deviation, bright where the digits of a class differ. Without a
    transformer only the inputs are shown.
    """
    distorted = test_set(test[:MEANS_DIGITS], run.config.distort, 0)
    inputs, outputs = [], []
    for start in range(0, len(distorted), BATCH):
        images = distorted.batch(slice(start, start + BATCH))[0]
        inputs.append(images[:, 0])
        if run.model.transformer is not None:
            outputs.append(run.model.warp(images).output[:, 0])
    labels = distorted.digits.labels
    rows = [("input:\nmean", class_by_class(torch.cat(inputs), labels, Tensor.mean))]
    rows.append(("input:\ndeviation", class_by_class(torch.cat(inputs), labels, deviation)))
    if outputs:
        rows.append(("output:\nmean", class_by_class(torch.cat(outputs), labels, Tensor.mean)))
        after = class_by_class(torch.cat(outputs), labels, deviation)
        rows.append(("output:\ndeviation", after))
    figure = Figure(figsize=(11, 1.05 * len(rows) + 0.65), dpi=130, layout="constrained")
    axes = figure.subplots(len(rows), CLASSES, squeeze=False)
    # One brightness for all: an aligned class is brighter where its digits agree.
    brightest = max(float(images.max()) for _, images in rows)
    for (name, images), row in zip(rows, axes, strict=True):
        for image, axis in zip(images, row, strict=True):
            axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=brightest, interpolation="nearest")
            bare(axis)
        row[0].set_ylabel(name, fontsize=9)
    for digit in range(CLASSES):
        axes[0, digit].set_title(str(digit), fontsize=10)
    figure.suptitle(
        f"{run.config.cell}: mean and deviation of each class over {len(labels):,} test digits",
        fontsize=12,
        fontweight="bold",
    )
    return figure


def class_by_class(
    images: Tensor, labels: Tensor, statistic: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """A statistic over the images (N, S, S) of each class: (10, S, S)."""
    parts = [images[labels == digit] for digit in range(CLASSES)]
    # A class without a digit, in a tiny test set, is black.
    return torch.stack([statistic(part, 0).nan_to_num() for part in parts])


def deviation(images: Tensor, dimension: int) -> Tensor:
    """The standard deviation of images along a dimension."""
    return images.std(dimension, correction=0)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; the suffix decides the format. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.lower().removeprefix(".")
    write_atomically(path, lambda stream: figure.savefig(stream, format=form))
    return path


def one_of_each(labels: Tensor) -> Tensor:
    """Indices of the first 0, the first 1, ..., the first 9, the second 0, and so on."""
    order = torch.argsort(labels, stable=True)
    by_class = order.split(torch.bincount(labels, minlength=CLASSES).tolist())
    longest = max(len(members) for members in by_class)
    turns = [members[turn : turn + 1] for turn in range(longest) for members in by_class]
    return torch.cat(turns)


def worst_mistakes(run: Run, distorted: DistortedDigits) -> Tensor:
    """Indices of the misclassified digits, the most confident mistake first."""
    confidences, predictions = predict(run.model, distorted).softmax(1).max(1)
    wrong = (predictions != distorted.digits.labels).nonzero()[:, 0]
    return wrong[confidences[wrong].argsort(descending=True)]


def draw_digit(place: Any, inspected: Inspected, number: int) -> None:
    """One digit of a page: its input with the grid, and its output where there is one."""
    images = [each for each in (inspected.inputs, inspected.outputs) if each is not None]
    panels = place.subplots(1, len(images), squeeze=False)[0]
    place.subplots_adjust(left=0.04, right=0.96, bottom=0.02, top=0.84, wspace=0.06)
    side = inspected.inputs.shape[-1]
    margin = side / 7  # grids reach beyond the image, where the padding is
    panels[0].set_facecolor("#30343a")
    for axis, image in zip(panels, images, strict=True):
        axis.imshow(
            image[number].numpy(),
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(-0.5, image.shape[-1] - 0.5, image.shape[-2] - 0.5, -0.5),
        )
        bare(axis)
    panels[0].set(xlim=(-margin, side - 1 + margin), ylim=(side - 1 + margin, -margin))
    if inspected.grid is not None:
        draw_grid(panels[0], inspected.grid[number])
    label, prediction = int(inspected.labels[number]), int(inspected.predictions[number])
    place.suptitle(
        f"{label} → {prediction} ({100 * float(inspected.confidences[number]):.0f} %)",
        fontsize=9,
        y=0.97,
        color=RIGHT if label == prediction else WRONG,
    )


def draw_grid(axis: Axes, grid: Tensor) -> None:
    """Some lines of a sampling grid (H, W, 2) in pixels, its border thicker."""
    widths = [1.4 if number in (0, GRID_LINES - 1) else 0.5 for number in range(GRID_LINES)] * 2
    lines = LineCollection(grid_lines(grid), linewidths=widths, colors=GRID_COLOUR)
    axis.add_collection(lines)


def grid_lines(grid: Tensor) -> list[Any]:
    """Evenly spaced rows, then columns, of a sampling grid (H, W, 2)."""
    height, width = grid.shape[:2]
    rows = torch.linspace(0, height - 1, GRID_LINES).round().long()
    columns = torch.linspace(0, width - 1, GRID_LINES).round().long()
    return [line.numpy() for line in (*grid[rows].unbind(0), *grid[:, columns].unbind(1))]


def bare(axis: Axes) -> None:
    """An image's axis without ticks and frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
