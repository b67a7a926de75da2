"""A page of volumes: in space and from three sides, before and after a spatial transformer.

Legend: N examples, C channels, D depth, H height, W width.

Returns a matplotlib Figure that nothing else refers to; `style.save` writes it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.runs.directory import Run
from stn_train.tasks.examples import Examples
from stn_train.visualiser.pages import answers_of, one_of_each
from stn_train.visualiser.style import (
    GREY,
    GRID_COLOURS,
    bare,
    fitting_size,
    word_for_class,
    word_for_images,
)

SHOWN = 6
"""Volumes on a page."""

PANEL_INCHES = 1.3
HEADER_INCHES = 0.95

SOLID = 0.5
"""Voxels brighter than this share of a volume's brightest are drawn in space."""

SIDES = ("front", "left side", "top")
"""The sides that a volume is seen from: flattened along its depth, width and height."""


@torch.inference_mode()
def volumes_page(run: Run, test: Images) -> Figure:
    """Test volumes in space and from three sides, before and after the transformer in front.

    Of an image that is turned to face the viewer a thin bar is left to see from the other sides.
    Raises ConfigError if the task makes images.
    """
    model, task = run.model.eval(), run.config.task
    if len(task.shape(run.format)) != 4:
        told = "its task makes images, there are no volumes: --config volumes has some"
        raise ConfigError([f"{run.config.title}: {told}"])
    inputs, targets, _ = Examples.for_test(task, test, 0).batch(one_of_each(test)[:SHOWN])
    trace = model.trace(inputs)
    warps = [trace.warps[name] for name in model.front]
    stages = [inputs, *(warp.output for warp in warps)]  # each (N, C, D, H, W)
    titles = ["volume", *("output" if len(warps) == 1 else name for name in model.front)]
    size = (max(PANEL_INCHES * 4 * len(stages), 7.2), PANEL_INCHES * len(inputs) + HEADER_INCHES)
    figure = Figure(figsize=size, dpi=130)
    heights = [HEADER_INCHES, size[1] - HEADER_INCHES]
    head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    heading = f"{run.config.title}: test {word_for_images(test.classes)} from three sides"
    head.text(0.5, 0.8, heading, ha="center", va="center", fontsize=12, weight="bold")
    answers = answers_of(run, trace.outputs, targets)
    word = word_for_class(task.classes(run.format))
    head.text(0.5, 0.58, legend_of(len(warps), word), ha="center", va="top", fontsize=9)
    parts = body.subfigures(1, len(stages), squeeze=False)[0]
    for part, title, volumes in zip(parts, titles, stages, strict=True):
        boxes = [warp.grid for warp in warps] if volumes is inputs else []
        draw_stage(part, title, volumes.mean(1), boxes)
    for row, answer in enumerate(answers):
        space = parts[0].axes[4 * row]
        text = f"{answer.target} → {answer.given}"
        space.text2D(
            *(-0.02, 0.5, text),
            transform=space.transAxes,
            rotation=90,
            va="center",
            fontsize=fitting_size(text, PANEL_INCHES, 9),
            color=answer.colour,
        )
    return figure


def legend_of(transformers: int, word: str) -> str:
    """The line that explains the layout of the page."""
    lines = []
    if transformers:
        lines.append(
            "Left: the volume, with the box that the transformer reads, its front in green. Right: "
            "what it makes of it.\nThe classifier sees the front of that."
        )
    lines.append(f"Beside each: true {word} → prediction.")
    return "\n".join(lines)


def draw_stage(part: Any, title: str, volumes: Tensor, boxes: Sequence[Tensor]) -> None:
    """Rows of volumes (N, D, H, W): each in space, then from three sides.

    boxes: sampling grids (N, D', H', W', 3), drawn in space by their corners.
    """
    rows = len(volumes)
    places = part.add_gridspec(
        rows, 4, left=0.04, right=0.98, bottom=0.01, top=0.95, wspace=0.06, hspace=0.06
    )
    for row, volume in enumerate(volumes):
        space = part.add_subplot(places[row, 0], projection="3d")
        draw_in_space(space, volume)
        for number, box in enumerate(boxes):
            draw_box(space, box[row], GRID_COLOURS[number % len(GRID_COLOURS)])
        flat = [part.add_subplot(places[row, 1 + number]) for number in range(3)]
        draw_sides(flat, volume)
        if row == 0:
            for axis, side in zip([space, *flat], (title, *SIDES), strict=True):
                axis.set_title(side, fontsize=9, pad=2)


def draw_in_space(axis: Any, volume: Tensor) -> None:
    """The solid voxels of a volume (D, H, W), the nearer the darker."""
    sides = torch.tensor(volume.shape)
    solid = (volume > SOLID * volume.max()).nonzero()  # (voxels, 3): z, y, x
    z, y, x = ((2 * solid + 1) / sides - 1).numpy().T
    axis.scatter(x, z, -y, c=z, cmap="viridis", vmin=-1, vmax=1, s=2, linewidths=0)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xticks=[], yticks=[], zticks=[])
    axis.set_box_aspect((1, 1, 1), zoom=1.25)
    axis.view_init(elev=18, azim=-68)  # nearly from the front, a little from the right and above


def draw_box(axis: Any, grid: Tensor, colour: str) -> None:
    """The edges of the box that a sampling grid (D, H, W, 3) spans, its front in a colour."""
    ends = torch.tensor([0, -1])
    corners = grid[ends][:, ends][:, :, ends]  # (2, 2, 2, 3): z, y, x
    edges = [corners.movedim(along, 2).flatten(0, 1) for along in range(3)]  # each (4, 2, 3)
    for edge in torch.cat(edges).numpy():
        axis.plot(edge[:, 0], edge[:, 2], -edge[:, 1], color=GREY, linewidth=0.5)
    front = corners[0].flatten(0, 1)[[0, 1, 3, 2, 0]].numpy()  # (5, 3)
    axis.plot(front[:, 0], front[:, 2], -front[:, 1], color=colour, linewidth=1.2)


def draw_sides(panels: Sequence[Axes], volume: Tensor) -> None:
    """A volume (D, H, W) flattened along its depth, width and height, each panel a square.

    From the left side what is near the viewer is on the right; from the top it is at the bottom.
    """
    depth, width, height = volume.amax(0), volume.amax(2).flip(0).mT, volume.amax(1).flip(0)
    for axis, image in zip(panels, (depth, width, height), strict=True):
        square = (-1, 1, -1, 1)  # the output has fewer voxels along its depth
        axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, extent=square)
        bare(axis)
