"""What each family of transforms can do: pages with a row for each family.

Legend: B maps, C channels, H height, W width, P parameters.

Convention: as in `stn_train.geometry.plane`: output to input, (x, y), [-1, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from stn_train.data.distortion import Warping, distort
from stn_train.geometry.grids import TransformGrid
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.geometry.transforms import Transform
from stn_train.visualiser.pages import draw_grid
from stn_train.visualiser.style import GREY, GRID_COLOURS, make_room, show

Families = Mapping[str, type[Transform]]

POINTS = (16, 16)
"""Points of the output at which maps are compared."""

# Random maps.

RANDOM_MAPS = 4
"""Of each family."""

MAPS_SEED = 1

DISPLACEMENT = 0.23
"""How far a random map moves points: root mean square, in half sides of the image."""

SETTLING = 10
"""Corrections of a random map's size; the displacement is not quite proportional to it."""

# Undoing distortions.

UNDONE = 100
"""Draws of a distortion that are undone."""

UNDONE_SEED = 8

ITERATIONS = 100
"""Of the search for the theta that undoes best."""

# Layout, in inches.

LABEL, PANEL, HEADER, COLUMN_NAME = 1.55, 0.86, 0.66, 0.2


class Pair(NamedTuple):
    """An image beside what is read from it."""

    image: Tensor
    """(C, H, W)."""
    grid: Tensor
    """Where it is read (H', W', 2), normalised."""
    output: Tensor
    """(C, H', W')."""
    note: str = ""
    """On the output."""


@torch.no_grad()
def random_maps_page(families: Families, image: Tensor) -> Figure:
    """An image (C, H, W) in [0, 1] under random maps of each family, in its default settings.

    All maps move the image equally far, so that the rows differ by what the families can do.
    """
    rows = {}
    for name, family in families.items():
        transform = family().build()
        grids = transform(random_maps(transform, MAPS_SEED), (image.shape[1], image.shape[2]))
        outputs = sample(image.expand(len(grids), -1, -1, -1), grids)  # (B, C, H, W)
        pairs = [Pair(image, *each) for each in zip(grids, outputs, strict=True)]
        rows[label(name, transform)] = pairs
    heading = "Random maps of each family, all of them equally far from the identity"
    return page(heading, IN_PAIRS, rows)


def random_maps(transform: TransformGrid, seed: int) -> Tensor:
    """Theta (RANDOM_MAPS, P), in random directions from the identity.

    Each moves the points of the output by DISPLACEMENT.
    """
    random = Generator().manual_seed(seed)
    directions = torch.randn(RANDOM_MAPS, transform.parameter_count, generator=random)
    points = transform(transform.identity[None], POINTS)  # (1, H, W, 2)
    sizes = torch.full((RANDOM_MAPS, 1), 0.1)
    for _ in range(SETTLING):
        moved = transform(transform.identity + sizes * directions, POINTS) - points
        sizes = sizes * (DISPLACEMENT / moved.square().sum(-1).mean((1, 2)).sqrt())[:, None]
    return transform.identity + sizes * directions


def undoing_page(families: Families, digit: Tensor, distortions: Mapping[str, Warping]) -> Figure:
    """A digit uint8 (C, H, W) under distortions, each undone as well as each family can.

    Drawn is the first of UNDONE draws; the number is what all of them leave in the mean: how far
    the digit's points are from where they were.
    """
    draws = {
        name: distortion.draw(UNDONE, Generator().manual_seed(UNDONE_SEED))
        for name, distortion in distortions.items()
    }
    rows: dict[str, list[Pair]] = {}
    for name, family in families.items():
        transform = family().build()
        pairs = rows[label(name, transform)] = []
        for kind, distortion in distortions.items():
            theta, left = best_undoing(transform, distortion, draws[kind])
            image = distort(digit[None], distortion, draws[kind][:1])  # (1, C, S, S)
            size = (distortion.image_px, distortion.image_px)
            grid = transform(theta[:1], size)
            left_px = float(left.mean()) / distortion.pixel
            note = f"{left_px:.1f} px"
            pairs.append(Pair(image[0], grid[0], sample(image, grid)[0], note))
    heading = "Distorted digits, undone as well as each family can"
    legend = f"{IN_PAIRS} Number: distance of its points from their places, mean of {UNDONE} draws."
    return page(heading, legend, rows, [*distortions])


def best_undoing(
    transform: TransformGrid, distortion: Warping, parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The theta that undo a distortion's draws (B, K) best, and how much each leaves.

    Theta (B, P) is found by least squares over points of the output, from the identity. What is
    left (B,) is the root of the mean square distance in image coordinates, in which [-1, 1] spans
    the undistorted image.
    """
    points = pixel_centres(POINTS)  # (H*W, 2)
    reach = distortion.canvas_px / distortion.image_px
    theta = transform.identity.repeat(len(parameters), 1).requires_grad_()  # (B, P)
    search = torch.optim.LBFGS([theta], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def left() -> Tensor:  # (B,)
        on_canvas = transform.map_points(theta, points) * reach  # (B, H*W, 2)
        back = distortion.map_points(parameters, on_canvas)
        return (back - points).square().sum(-1).mean(1)

    def loss() -> float:
        search.zero_grad()
        total = left().sum()
        total.backward()
        return total.item()

    search.step(loss)
    with torch.no_grad():
        return theta.detach(), left().sqrt()


def label(name: str, transform: TransformGrid) -> str:
    """What stands at the head of a family's row."""
    return f"{name}\n{transform.parameter_count} parameters"


IN_PAIRS = "Left: the image, with the grid that it is read at. Right: what is read."


def page(
    heading: str, legend: str, rows: Mapping[str, Sequence[Pair]], columns: Sequence[str] = ()
) -> Figure:
    """Rows of pairs, below each other.

    columns: names of the pairs, if they have any.
    """
    wide, top = 2 * len(next(iter(rows.values()))), HEADER + COLUMN_NAME * bool(columns)
    width, height = LABEL + PANEL * wide, top + PANEL * len(rows)
    figure = Figure(figsize=(width, height), dpi=130)
    panels = figure.subplots(len(rows), wide, squeeze=False)
    figure.subplots_adjust(LABEL / width, 0.005, 0.995, 1 - top / height, 0.06, 0.06)
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    figure.text(0.5, 1 - 0.2 / height, heading, fontsize=11, weight="bold", **middle)
    figure.text(0.5, 1 - 0.45 / height, legend, fontsize=8.2, **middle)
    for row, (text, pairs) in zip(panels, rows.items(), strict=True):
        name, _, detail = text.partition("\n")
        place = row[0].get_position()
        centre, step = (place.y0 + place.y1) / 2, 0.09 / height
        figure.text(0.01, centre + step, name, va="center", fontsize=10, weight="bold")
        figure.text(0.01, centre - step, detail, va="center", fontsize=8, color=GREY)
        for number, pair in enumerate(pairs):
            before, after = row[2 * number : 2 * number + 2]
            show(before, pair.image)
            make_room(before, pair.image)
            size = torch.tensor([pair.image.shape[2], pair.image.shape[1]])
            draw_grid(before, ((pair.grid + 1) * size - 1) / 2, GRID_COLOURS[0])
            show(after, pair.output)
            where = after.transAxes
            after.text(0.04, 0.05, pair.note, transform=where, color="white", fontsize=7.5)
    for number, name in enumerate(columns):
        left, right = (panels[0][2 * number + side].get_position() for side in (0, 1))
        x, y = (left.x0 + right.x1) / 2, 1 - (top - COLUMN_NAME / 2) / height
        figure.text(x, y, name, fontsize=10, weight="bold", **middle)
    return figure
