"""Moving pictures: a spatial transformer as it learns, and at work on digits that move.

Legend: N digits on the page, F frames, C side of the input in pixels, S side of the output.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from stn_train.atomic import write_atomically
from stn_train.data import DistortedDigits, test_set
from stn_train.digits import CLASSES, Digits
from stn_train.errors import ConfigError
from stn_train.evaluator import error_percent
from stn_train.run_directory import Run, load_run
from stn_train.visualiser import (
    GRID_COLOUR,
    RIGHT,
    WRONG,
    Inspected,
    bare,
    grid_lines,
    inspect,
    one_of_each,
)

ERROR_DIGITS = 2000
"""Test digits that the error in a frame is counted on."""

SWEEP_FRAMES = 32
SWEEP_MS, LEARNING_MS, LAST_MS = 130, 350, 2500
"""How long a frame of either kind is shown, and the last of those of learning."""


class Frame(NamedTuple):
    """One picture of an animation."""

    title: str
    inspected: Inspected
    milliseconds: int


def training(run: Run, test: Digits) -> Iterator[Frame]:
    """The same digits, through the snapshots that a run kept.

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
    page = one_of_each(test.labels)[:CLASSES]
    distorted = test_set(test, run.config.distort, 0)
    counted = test_set(test[:ERROR_DIGITS], run.config.distort, 0)
    for path in snapshots:
        kept = load_run(path)
        error = error_percent(kept.model, counted)
        title = f"{run.config.cell}, step {kept.step:,}: error {error:.1f} %"
        shown = LAST_MS if path == snapshots[-1] else LEARNING_MS
        yield Frame(title, inspect(kept, distorted, page), shown)


def rotation(run: Run, test: Digits) -> Iterator[Frame]:
    """A digit of each class, swept through the distortion that the model was trained on."""
    digits = test[one_of_each(test.labels)[:CLASSES]]
    sweep = run.config.distort.sweep(SWEEP_FRAMES)  # (F, K)
    for parameters in sweep:
        same = parameters.expand(len(digits), -1)
        distorted = DistortedDigits(digits, run.config.distort, same)
        title = f"{run.config.cell}: test digits as they are distorted"
        yield Frame(title, inspect(run, distorted, torch.arange(len(digits))), SWEEP_MS)


ANIMATIONS = {"training": training, "rotation": rotation}
"""What can be animated: a function of a run and the test digits."""


class Page:
    """A row of inputs with their grids, above a row of what the classifier sees."""

    def __init__(self, inspected: Inspected) -> None:
        """Lay it out for these digits; every frame must have as many, in the same sizes."""
        count, rows = len(inspected.labels), 1 if inspected.outputs is None else 2
        self.figure = Figure(figsize=(0.95 * count, 0.95 * rows + 0.75), dpi=80)
        self.title = self.figure.suptitle("", fontsize=11, fontweight="bold", y=0.985)
        axes = self.figure.subplots(rows, count, squeeze=False)
        self.figure.subplots_adjust(0.01, 0.01, 0.99, 0.79, wspace=0.06, hspace=0.06)
        side = inspected.inputs.shape[-1]
        margin = side / 7  # grids reach beyond the image
        self.images: list[list[Any]] = []
        for row, images in zip(axes, [inspected.inputs, inspected.outputs], strict=False):
            assert images is not None  # there are as many rows as kinds of images
            self.images.append([])
            for axis, image in zip(row, images, strict=True):
                self.images[-1].append(axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1))
                bare(axis)
        self.lines: list[LineCollection] = []
        self.heads = []
        for axis in axes[0]:
            axis.set(xlim=(-margin, side - 1 + margin), ylim=(side - 1 + margin, -margin))
            axis.set_facecolor("#30343a")
            self.lines.append(LineCollection([], colors=GRID_COLOUR, linewidths=0.7))
            axis.add_collection(self.lines[-1])
            self.heads.append(axis.set_title("", fontsize=10, pad=3))

    def draw(self, frame: Frame) -> Image.Image:
        """The page with this frame on it."""
        inspected = frame.inspected
        self.title.set_text(frame.title)
        for row, images in zip(self.images, [inspected.inputs, inspected.outputs], strict=False):
            for artist, image in zip(row, images if images is not None else [], strict=True):
                artist.set_data(image.numpy())
        for number, (lines, head) in enumerate(zip(self.lines, self.heads, strict=True)):
            if inspected.grid is not None:
                lines.set_segments(grid_lines(inspected.grid[number]))
            label, prediction = int(inspected.labels[number]), int(inspected.predictions[number])
            right = label == prediction
            head.set(text=f"→ {prediction}{'' if right else ' ✗'}", color=RIGHT if right else WRONG)
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
