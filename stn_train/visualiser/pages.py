"""Pages of images: what a network's spatial transformers make of its inputs.

Legend: N examples, C channels, H height, W width.

Every function returns a matplotlib Figure that nothing else refers to; `style.save` writes it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.evaluator import predict
from stn_train.models.network import Network, Trace
from stn_train.runs.directory import Run
from stn_train.tasks.examples import Examples
from stn_train.visualiser.style import (
    GRID_COLOURS,
    GRID_LINES,
    RIGHT,
    WRONG,
    fitting_size,
    grid_lines,
    make_room,
    outline,
    short,
    show,
    word_for_class,
    word_for_images,
)

MEANS_IMAGES = 2000
"""A class mean over 200 images looks the same as over 1,000."""

MEANS_VALUES = 1 << 27
"""Of larger images fewer are taken, so that they stay in memory."""

MEANS_CLASSES = 20
"""Of more classes only the first have their means shown."""


class Answer(NamedTuple):
    """What a network says of an example, one class of several."""

    target: str
    """The right class, shortened where its name is long."""
    given: str
    """The network's class, likewise."""
    right: bool
    percent: float
    """The probability that the network gives its answer."""

    @property
    def colour(self) -> str:
        """What it is written in."""
        return RIGHT if self.right else WRONG


class Inspected(NamedTuple):
    """Examples as a network saw them."""

    inputs: Tensor
    """(N, C, H, W); of volumes, flattened as the network flattens them."""
    outputs: dict[str, Tensor]
    """What each spatial transformer made of them, by its name: (N, C, H', W').

    Of one in front, what the classifier sees; of one that warps feature maps, the mean over
    channels (N, 1, H', W'), stretched to [0, 1].
    """
    grids: dict[str, Tensor]
    """Where each output pixel was read from, in input pixels (N, H', W', 2).

    Of the transformers in front alone; none of volumes.
    """
    answers: list[Answer]
    """One for each example; none where the task has no classes."""
    volumes: bool
    """Whether the network was given volumes."""


@torch.inference_mode()
def inspect(run: Run, examples: Examples, index: Tensor) -> Inspected:
    """Run a model on some examples, keeping what happens on the way."""
    inputs, targets, _ = examples.batch(index)
    trace = run.model.trace(inputs)
    height, width = inputs.shape[-2:]
    size = torch.tensor([width, height], device=inputs.device)
    front, volumes = run.model.front, inputs.ndim == 5
    # Normalised to pixels: (N, H', W', 2).
    grids = {name: ((trace.warps[name].grid + 1) * size - 1) / 2 for name in front if not volumes}
    outputs = {
        name: output if name in front else unit_range(output)
        for name, output in transformed(run.model, trace).items()
    }
    answers = answers_of(run, trace.outputs, targets)
    return Inspected(run.model.projected(inputs), outputs, grids, answers, volumes)


def transformed(network: Network, trace: Trace) -> dict[str, Tensor]:
    """What each transformer made of a batch, by its name.

    Of one in front, as the classifier sees it (N, C, H', W'); of others, the mean over channels
    (N, 1, H', W').
    """
    front = network.front
    return {
        name: network.shown(warp.output) if name in front else warp.output.mean(1, keepdim=True)
        for name, warp in trace.warps.items()
    }


def unit_range(maps: Tensor) -> Tensor:
    """Maps stretched together to [0, 1]."""
    low, high = maps.aminmax()
    return (maps - low) / (high - low).clamp(min=1e-12)


def answers_of(run: Run, outputs: Tensor, targets: Tensor) -> list[Answer]:
    """A network's outputs (N, classes) as answers; none where the task has no classes."""
    task = run.config.task
    names = [short(name) for name in task.classes(run.format)]
    if not names:
        return []
    answers = task.answers(outputs).tolist()
    shares = outputs.softmax(1).amax(1).tolist()
    return [
        Answer(names[target], names[answer], target == answer, 100 * share)
        for target, answer, share in zip(targets.tolist(), answers, shares, strict=True)
    ]


def digits_page(run: Run, test: Images, count: int = 15, misclassified: bool = False) -> Figure:
    """A page of test images, before and after the transformers, in the style of the paper.

    misclassified: only those that the model gets wrong, the most confident mistakes first.
    Raises ConfigError if there are none, or the task has no classes.
    """
    examples = Examples.for_test(run.config.task, test, 0)
    index = worst_mistakes(run, examples) if misclassified else one_of_each(test)
    if len(index) == 0:
        word = word_for_images(test.classes).removesuffix("s")
        raise ConfigError([f"there is no misclassified {word} to show: every prediction is right"])
    inspected = inspect(run, examples, index[:count])
    shown, wide = len(inspected.inputs), 1 + len(inspected.outputs)
    across = min(shown, max(5, round(shown**0.5)), max(20 // wide, 1))
    down = -(-shown // across)
    header = 1.0 if inspected.outputs else 0.7  # inches
    size = (max(1.3 * across * wide, 7.2), 1.55 * down + header)
    figure = Figure(figsize=size, dpi=130)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[header, size[1] - header])
    head, body = parts[:, 0]
    images = f"test {word_for_images(test.classes)}"
    heading = f"{run.config.title}: {'the most confident mistakes' if misclassified else images}"
    head.text(0.5, 0.72, heading, ha="center", fontsize=12, weight="bold")
    legend = legend_of(run, inspected)
    head.text(0.5, 0.6, legend, ha="center", va="top", fontsize=9, linespacing=1.4)
    places = body.subfigures(down, across, squeeze=False).flatten()
    for number, place in enumerate(places[:shown]):
        draw_example(place, inspected, number, size[0] / across)
    return figure


def legend_of(run: Run, inspected: Inspected) -> str:
    """The line that explains the layout of a page."""
    lines = []
    if inspected.volumes:
        lines.append("Left: the volume, flattened along its depth.")
        if inspected.outputs:
            lines[0] += " Right: what the classifier sees."
    elif [*inspected.outputs] == [*inspected.grids] and len(inspected.outputs) == 1:
        seen = "it reads" if run.config.task.locates else "the classifier sees"
        lines.append(
            "Left: the input, with the grid that the transformer reads it at. "
            f"Right: what {seen}. Grey: outside."
        )
    elif inspected.outputs:
        names = [
            name if name in inspected.grids else f"{name} (mean over channels)"
            for name in inspected.outputs
        ]
        grids = ", with the grid of each transformer. Grey: outside" if inspected.grids else ""
        lines.append(f"First: the input{grids}. Then the outputs of {', '.join(names)}.")
    if inspected.answers:
        word = word_for_class(run.config.task.classes(run.format))
        lines.append(f"Above each: true {word} → prediction (its probability).")
    return "\n".join(lines)


def draw_example(place: Any, inspected: Inspected, number: int, width: float) -> None:
    """One example of a page: its input with the grids, then what each transformer made of it.

    width: of the place, in inches.
    """
    panels = place.subplots(1, 1 + len(inspected.outputs), squeeze=False)[0]
    place.subplots_adjust(left=0.04, right=0.96, bottom=0.02, top=0.84, wspace=0.06)
    draw_warps(panels, inspected, number)
    if inspected.answers:
        answer = inspected.answers[number]
        text = f"{answer.target} → {answer.given} ({answer.percent:.0f} %)"
        place.suptitle(text, fontsize=fitting_size(text, width, 9), y=0.97, color=answer.colour)


def draw_warps(panels: Sequence[Axes], inspected: Inspected, number: int) -> None:
    """An input with the grids that it is read at, then what each transformer made of it.

    Of several transformers in front, each output has a frame in the colour of its grid.
    """
    images = [inspected.inputs, *inspected.outputs.values()]
    for axis, image in zip(panels, images, strict=True):
        show(axis, image[number])
    make_room(panels[0], inspected.inputs)
    colours = grid_colours(inspected)
    for name, grid in inspected.grids.items():
        draw_grid(panels[0], grid[number], colours[name])
    for axis, name in zip(panels[1:], inspected.outputs, strict=True):
        if len(colours) > 1 and name in colours:
            outline(axis, colours[name])


def grid_colours(inspected: Inspected) -> dict[str, str]:
    """The colour of each transformer's grid."""
    return {
        name: GRID_COLOURS[number % len(GRID_COLOURS)]
        for number, name in enumerate(inspected.grids)
    }


def draw_grid(axis: Axes, grid: Tensor, colour: str) -> None:
    """Some lines of a sampling grid (H, W, 2) in pixels, its border thicker."""
    widths = [1.4 if number in (0, GRID_LINES - 1) else 0.5 for number in range(GRID_LINES)] * 2
    axis.add_collection(LineCollection(grid_lines(grid), linewidths=widths, colors=colour))


@torch.inference_mode()
def class_means(run: Run, test: Images) -> Figure:
    """Mean of each class before and after each transformer: the sharper, the better aligned.

    Below each mean the standard deviation, bright where the images of a class differ. Without a
    transformer only the inputs are shown.
    """
    values = math.prod(run.config.task.shape(test.format))
    count = max(1, min(MEANS_IMAGES, MEANS_VALUES // values))
    examples = Examples.for_test(run.config.task, test[:count], 0)
    classes = run.config.task.classes(run.format)
    kinds: dict[str, list[Tensor]] = {}
    targets = []
    for part in examples.parts():
        batch = examples.batch(part)
        outputs = transformed(run.model, run.model.trace(batch.inputs))
        for name, images in {"input": run.model.projected(batch.inputs), **outputs}.items():
            kinds.setdefault(name, []).append(images)
        targets.append(batch.targets)
    # Without classes to answer, images are told apart by their own.
    labels = torch.cat(targets) if classes else test.labels[:count]
    names = (classes or test.classes)[:MEANS_CLASSES]
    plain = ["input", *run.model.front]
    rows = []
    for name, parts in kinds.items():
        images = torch.cat(parts) if name in plain else unit_range(torch.cat(parts))
        word = "output" if len(kinds) == 2 and name != "input" else name
        for statistic in (mean, deviation):
            found = class_by_class(images, labels, len(names), statistic)
            rows.append((f"{word}:\n{statistic.__name__}", found))
    figure = Figure(
        figsize=(max(1.1 * len(names), 7.2), 1.05 * len(rows) + 0.65),
        dpi=130,
        layout="constrained",
    )
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    # One brightness for all: an aligned class is brighter where its images agree.
    brightest = max(float(images.max()) for _, images in rows)
    for (name, images), row in zip(rows, axes, strict=True):
        for image, axis in zip(images, row, strict=True):
            show(axis, image, brightest)
        row[0].set_ylabel(name, fontsize=9)
    for name, axis in zip(names, axes[0], strict=True):
        axis.set_title(short(name), fontsize=10)
    every = (
        "each class" if names == (classes or test.classes) else f"the first {len(names)} classes"
    )
    title = (
        f"{run.config.title}: mean and deviation of {every} over {len(labels):,} "
        f"test {word_for_images(test.classes)}"
    )
    size = min(12, 0.85 * fitting_size(title, figure.get_figwidth(), 15))  # bold is wider
    figure.suptitle(title, fontsize=size, fontweight="bold")
    return figure


def class_by_class(
    images: Tensor, labels: Tensor, classes: int, statistic: Callable[[Tensor], Tensor]
) -> Tensor:
    """A statistic over the images (N, C, H, W) of each class: (classes, C, H, W)."""
    parts = [images[labels == number] for number in range(classes)]
    # A class without an image, in a tiny test set, is black.
    black = torch.zeros_like(images[0])
    return torch.stack([statistic(part) if len(part) else black for part in parts])


def mean(images: Tensor) -> Tensor:
    """The mean image (C, H, W) of images (N, C, H, W)."""
    return images.mean(0)


def deviation(images: Tensor) -> Tensor:
    """The standard deviation (C, H, W) of images (N, C, H, W)."""
    return images.std(0, correction=0)


def one_of_each(images: Images) -> Tensor:
    """Indices of the first image of each class, then the second of each, and so on."""
    order = torch.argsort(images.labels, stable=True)
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    by_class = order.split(counts.tolist())
    longest = max(len(members) for members in by_class)
    turns = [members[turn : turn + 1] for turn in range(longest) for members in by_class]
    return torch.cat(turns)


def worst_mistakes(run: Run, examples: Examples) -> Tensor:
    """Indices of the misclassified examples, the most confident mistake first.

    Raises ConfigError if the task has no classes.
    """
    refuse_without_classes(run)
    outputs, targets = predict(run.model, examples)
    wrong = (run.config.task.answers(outputs) != targets).nonzero()[:, 0]
    confidences = outputs.softmax(1).amax(1)
    return wrong[confidences[wrong].argsort(descending=True)]


def refuse_without_classes(run: Run) -> None:
    """Raise ConfigError if an answer of the run's task is not one of several classes."""
    if not run.config.task.classes(run.format):
        raise ConfigError([f"{run.config.title}: the task has no classes to be mistaken for"])
