"""Moving pictures: spatial transformers as they learn, and at work on images that move.

Legend: F frames, K parameters of the distortion.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from stn_train.data.distortion import Warping
from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.evaluator import score_percent
from stn_train.runs.directory import Run, load_run
from stn_train.runs.files import write_atomically
from stn_train.tasks.examples import Examples
from stn_train.visualiser.pages import Inspected, grid_colours, inspect, one_of_each
from stn_train.visualiser.style import (
    fitting_size,
    grid_lines,
    make_room,
    outline,
    pixels_of,
    show,
    word_for_images,
)

COLUMNS = 10
"""Images in a row of a frame."""

PANEL_INCHES = 0.95

SCORED_IMAGES = 2000
"""Test images that the score in a frame's title is measured on."""

SWEEP_FRAMES = 32
SWEEP_MS, LEARNING_MS, LAST_MS = 130, 350, 2500
"""How long a frame of the sweep is shown, one of learning, and the last of learning."""


class Frame(NamedTuple):
    """One picture of an animation."""

    title: str
    inspected: Inspected
    milliseconds: int


def learning_frames(run: Run, test: Images) -> Iterator[Frame]:
    """The same images, through the snapshots that a run kept.

    Raises ConfigError if it kept none.
    """
    snapshots = run.directory.kept_snapshots()
    if not snapshots:
        raise ConfigError(
            [
                f"{run.directory.path} has no snapshots of its training: "
                "train with --set log.snapshots=24"
            ]
        )
    task, index = run.config.task, one_of_each(test)[:COLUMNS]
    examples = Examples.for_test(task, test, 0)
    scored = Examples.for_test(task, test[:SCORED_IMAGES], 0)
    for path in snapshots:
        snapshot = load_run(path)
        score = score_percent(snapshot.model, scored)
        measured = f"{task.measure.name} {score:.1f} {task.measure.unit}"
        title = f"{run.config.title}, step {snapshot.step:,}: {measured}"
        shown_ms = LAST_MS if path == snapshots[-1] else LEARNING_MS
        yield Frame(title, inspect(snapshot, examples, index), shown_ms)


def sweep_frames(run: Run, test: Images) -> Iterator[Frame]:
    """An image of each class, swept through the distortion that the model was trained on.

    Raises ConfigError if the distortion is not a map of the plane: it has nothing to sweep.
    """
    task, images = run.config.task, test[one_of_each(test)[:COLUMNS]]
    if not isinstance(task.distortion, Warping):
        kind = type(task.distortion).__name__
        raise ConfigError(
            [f"{run.config.title}: rotation.gif needs a map of the plane; {kind} is not one"]
        )
    _, *others = Examples.for_test(task, images, 0).draws  # the distortion's parameters come first
    title = f"{run.config.title}: test {word_for_images(test.classes)} as they are distorted"
    for parameters in task.distortion.sweep(SWEEP_FRAMES):  # (F, K)
        same = parameters.expand(len(images), -1)
        swept = Examples(task, images, (same, *others))
        yield Frame(title, inspect(run, swept, torch.arange(len(images))), SWEEP_MS)


ANIMATIONS: dict[str, Callable[[Run, Images], Iterator[Frame]]] = {
    "training": learning_frames,
    "rotation": sweep_frames,
}
"""What can be animated: a function of a run and the test images."""


class Page:
    """A row of inputs with their grids, above a row of what each transformer makes of them."""

    def __init__(self, inspected: Inspected) -> None:
        """Lay it out for these images; every frame must have as many, in the same sizes."""
        kinds = [inspected.inputs, *inspected.outputs.values()]
        count, rows = len(inspected.inputs), len(kinds)
        self.figure = Figure(figsize=(PANEL_INCHES * count, PANEL_INCHES * rows + 0.75), dpi=80)
        self.title = self.figure.suptitle("", fontsize=11, fontweight="bold", y=0.985)
        axes = self.figure.subplots(rows, count, squeeze=False)
        self.figure.subplots_adjust(0.01, 0.01, 0.99, 0.79, wspace=0.06, hspace=0.06)
        self.images: list[list[AxesImage]] = [
            [show(axis, image, interpolation=None) for axis, image in zip(row, images, strict=True)]
            for row, images in zip(axes, kinds, strict=True)
        ]
        colours = grid_colours(inspected)
        for row, name in zip(axes[1:], inspected.outputs, strict=True):
            for axis in row if len(colours) > 1 and name in colours else ():
                outline(axis, colours[name])
        self.lines: list[list[LineCollection]] = []
        self.heads = []
        for axis in axes[0]:
            make_room(axis, inspected.inputs)
            lines = [LineCollection([], colors=each, linewidths=0.7) for each in colours.values()]
            for collection in lines:
                axis.add_collection(collection)
            self.lines.append(lines)
            self.heads.append(axis.set_title("", fontsize=10, pad=3))

    def draw(self, frame: Frame) -> Image.Image:
        """The page with this frame on it."""
        inspected = frame.inspected
        self.title.set_text(frame.title)
        kinds = [inspected.inputs, *inspected.outputs.values()]
        for row, images in zip(self.images, kinds, strict=True):
            for artist, image in zip(row, images, strict=True):
                artist.set_data(pixels_of(image))
        for number, collections in enumerate(self.lines):
            for lines, grid in zip(collections, inspected.grids.values(), strict=True):
                lines.set_segments(grid_lines(grid[number]))
        for answer, head in zip(inspected.answers, self.heads, strict=False):
            text = f"→ {answer.given}{'' if answer.right else ' ✗'}"
            size = fitting_size(text, PANEL_INCHES, 10)
            head.set(text=text, fontsize=size, color=answer.colour)
        stream = io.BytesIO()
        self.figure.savefig(stream, format="png")
        return Image.open(stream).convert("RGB")


def save_animation(frames: Iterable[Frame], path: Path) -> Path:
    """Write frames as a GIF that starts again at its end; returns the path."""
    page: Page | None = None
    images, milliseconds = [], []
    for frame in frames:
        page = page or Page(frame.inspected)
        images.append(page.draw(frame).quantize(128))
        milliseconds.append(frame.milliseconds)
    first, *others = images
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path,
        lambda stream: first.save(
            stream, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0
        ),
    )
    return path
