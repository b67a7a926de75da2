"""How pictures look: colours, bare axes, lines of sampling grids, words for classes; saving them.

Legend: C channels, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from stn_train.runs.files import write_atomically

RIGHT, WRONG, GREY = "#1a7f37", "#cf222e", "#57606a"

GRID_COLOURS = ("#3fd07f", "#ff9f40", "#58a6ff", "#f778ba", "#f2e05c", "#b392f0")
"""Of the sampling grids of a network's transformers, in turn."""

OUTSIDE_COLOUR = "#30343a"
"""Behind an image, where a grid reaches beyond it."""

TWO_CHANNELS = ((1.0, 0.45, 0.1), (0.0, 0.55, 0.9))
"""Red, green and blue of each channel of an image that has two."""

GRID_LINES = 8
"""Lines of the sampling grid each way; the transformer samples far more points between them."""

NAME_LENGTH = 11
"""Longer class names are cut."""

DIGITS = tuple("0123456789")
"""The classes that are called digits."""


def show(
    axis: Axes, image: Tensor, brightest: float = 1.0, interpolation: str | None = "nearest"
) -> AxesImage:
    """Draw an image (C, H, W) without ticks; ``brightest`` is drawn white."""
    pixels = pixels_of(image, brightest)
    drawn = axis.imshow(pixels, cmap="gray", vmin=0, vmax=brightest, interpolation=interpolation)
    bare(axis)
    return drawn


def pixels_of(image: Tensor, brightest: float = 1.0) -> Any:
    """An image (C, H, W) as matplotlib takes it.

    Three channels are colours (H, W, 3), as shares of ``brightest`` since matplotlib does not
    scale those; of two, each has a colour of its own, and where both are bright it is white. Of
    any other number of channels it is the mean (H, W).
    """
    if len(image) == 2:
        image = torch.einsum("chw,cr->rhw", image, torch.tensor(TWO_CHANNELS, dtype=image.dtype))
    if len(image) == 3:
        return (image / brightest).clamp(0, 1).permute(1, 2, 0).numpy()
    return (image[0] if len(image) == 1 else image.mean(0)).numpy()


def bare(axis: Axes) -> None:
    """Remove an axis's ticks and frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def outline(axis: Axes, colour: str) -> None:
    """Give an axis a frame."""
    axis.spines[:].set(visible=True, color=colour, linewidth=1.5)


def make_room(axis: Axes, image: Tensor) -> None:
    """Widen the axis of an image (C, H, W): grids reach beyond it, where the padding is."""
    height, width = image.shape[-2:]
    right, down = width / 7, height / 7
    axis.set(xlim=(-right, width - 1 + right), ylim=(height - 1 + down, -down))
    axis.set_facecolor(OUTSIDE_COLOUR)


def grid_lines(grid: Tensor) -> list[Any]:
    """Evenly spaced rows, then columns, of a sampling grid (H, W, 2)."""
    height, width = grid.shape[:2]
    rows = torch.linspace(0, height - 1, GRID_LINES).round().long()
    columns = torch.linspace(0, width - 1, GRID_LINES).round().long()
    return [line.numpy() for line in (*grid[rows].unbind(0), *grid[:, columns].unbind(1))]


def short(name: str) -> str:
    """A class name, cut where it is long."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def fitting_size(text: str, width: float, largest: float) -> float:
    """The font size in points that a text fits into a width in inches with."""
    return min(largest, 72 * width / (0.55 * len(text)))  # 0.55: mean width of a letter


def word_for_images(classes: Sequence[str]) -> str:
    """What images of these classes are called in pictures."""
    return "digits" if tuple(classes) == DIGITS else "images"


def word_for_class(classes: Sequence[str]) -> str:
    """What one of these classes is called in pictures."""
    return "digit" if tuple(classes) == DIGITS else "class"


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; the suffix decides the format. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.lower().removeprefix(".")
    write_atomically(path, lambda stream: figure.savefig(stream, format=form))
    return path
