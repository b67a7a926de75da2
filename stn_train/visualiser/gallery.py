"""A page of pictures of one's own: as they are, as the model is given them, as it sees them.

Returns a matplotlib Figure that nothing else refers to; `style.save` writes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from stn_train.data.pictures import open_picture
from stn_train.runs.directory import Run
from stn_train.tasks.examples import Examples
from stn_train.visualiser.pages import Inspected, draw_warps, inspect
from stn_train.visualiser.style import bare, fitting_size, outline

PANEL_INCHES = 1.45
HEADER_INCHES = 0.9

PANELS_A_ROW = 9

MAX_PICTURES = 60
"""The most pictures on a page: more would be too small to see."""

THUMBNAIL_PX = 400
"""Larger pictures are drawn in this size."""

FRAME = "#d0d7de"
"""The colour of the frame around a picture."""

NAME_LENGTH = 22
"""Longer file names are cut at their beginning."""


def gallery_page(run: Run, files: Sequence[Path], examples: Examples) -> Figure:
    """Pictures in files, each beside what the model is given of it and what it makes of that.

    Above each its name and the prediction.
    """
    inspected = inspect(run, examples, torch.arange(len(files)))
    wide = 2 + len(inspected.outputs)
    across = min(len(files), max(1, PANELS_A_ROW // wide))
    down = -(-len(files) // across)
    size = (max(PANEL_INCHES * wide * across, 7.2), 1.25 * PANEL_INCHES * down + HEADER_INCHES)
    figure = Figure(figsize=size, dpi=130)
    heights = [HEADER_INCHES, size[1] - HEADER_INCHES]
    head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    heading = f"{run.config.title}: pictures of your own"
    head.text(0.5, 0.72, heading, ha="center", fontsize=12, weight="bold")
    head.text(0.5, 0.55, legend_of(inspected), ha="center", va="top", fontsize=9, linespacing=1.4)
    places = body.subfigures(down, across, squeeze=False).flatten()
    for number, (place, file) in enumerate(zip(places, files, strict=False)):
        draw_picture(place, inspected, number, file, size[0] / across)
    return figure


def legend_of(inspected: Inspected) -> str:
    """The line that explains the layout of a page."""
    given = "what the model is given"
    if inspected.grids:
        given += ", with the grid that its transformer reads"
    parts = ["the picture", given, *(["what the classifier sees"] if inspected.outputs else [])]
    return f"From left to right: {'; '.join(parts)}.\nAbove: the name of the file → prediction."


def draw_picture(place: Any, inspected: Inspected, number: int, file: Path, width: float) -> None:
    """One picture: itself, the input with the grids, then what each transformer made of it.

    width: of the place, in inches.
    """
    panels = place.subplots(1, 2 + len(inspected.outputs), squeeze=False)[0]
    place.subplots_adjust(left=0.03, right=0.97, bottom=0.02, top=0.84, wspace=0.06)
    panels[0].imshow(thumbnail(file))
    bare(panels[0])
    outline(panels[0], FRAME)  # else white paper has no edge
    draw_warps(panels[1:], inspected, number)
    answer, name = inspected.answers[number], file.name
    short = name if len(name) <= NAME_LENGTH else f"…{name[1 - NAME_LENGTH :]}"
    text = f"{short} → {answer.given} ({answer.percent:.0f} %)"
    place.suptitle(text, fontsize=fitting_size(text, width, 9), y=0.97)


def thumbnail(file: Path) -> Any:
    """A picture as matplotlib takes it, in colours; over white where it is transparent."""
    picture = open_picture(file)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    coloured = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
