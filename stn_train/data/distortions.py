"""The distortions: those of the paper's Table 1, placing alone, and none.

Legend: B batch, K control points, P points.

Scale and warp are one map, so an image is interpolated once. Clutter and crops are modules of
their own.
"""

import functools
import math
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.clutter import Clutter
from stn_train.data.crop import Crop
from stn_train.data.distortion import (
    CanvasSide,
    Degrees,
    Distortion,
    Pixels,
    Placing,
    Scale,
    Warping,
)
from stn_train.data.draws import Draws, draw_integers, draw_normal, draw_uniform
from stn_train.geometry.matrices import (
    affine_map,
    combine,
    inverse_3x3,
    inverse_similarity,
    projective_map,
    square_to_quad,
)
from stn_train.geometry.plane import unit_square
from stn_train.geometry.splines import control_grid, thin_plate_basis, thin_plate_solver


class Undistorted(Warping):
    """none: the image as it is, in the middle of the canvas."""

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        return torch.empty(count, 0)

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        return points.expand(len(parameters), -1, -1)


class Rotation(Warping):
    """R: rotated by an angle uniform in [-90, 90] degrees (section 4.1)."""

    max_angle_deg: Degrees = 90.0
    """The angle is uniform between minus this and this."""

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        # The angle in degrees, counter-clockwise: (count, 1).
        return draw_uniform(-self.max_angle_deg, self.max_angle_deg, (count, 1), generator)

    @override
    def sweep(self, count: int) -> Tensor:
        return swing(self.max_angle_deg, count)[:, None]

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        angle_deg = parameters[:, 0]
        no_shift = angle_deg.new_zeros(len(angle_deg), 2)
        matrices = inverse_similarity(angle_deg, torch.ones_like(angle_deg), no_shift)
        return affine_map(matrices, points)


class ScaledWarping(Warping):
    """A warp that also scales the image."""

    min_scale: Scale = 0.75
    """The scale is uniform between this and max_scale."""
    max_scale: Scale = 1.0
    """The largest scale."""

    @model_validator(mode="after")
    def _scales_in_order(self) -> Self:
        if self.min_scale > self.max_scale:
            raise PydanticCustomError(
                "order",
                "min_scale {low} is larger than max_scale {high}",
                {"low": self.min_scale, "high": self.max_scale},
            )
        return self

    def draw_scale(self, count: int, generator: Generator) -> Tensor:
        """(count, 1)."""
        return draw_uniform(self.min_scale, self.max_scale, (count, 1), generator)


class RotationScaleTranslation(ScaledWarping):
    """RTS: rotated, scaled and placed at a random location of a 42 x 42 image (section 4.1)."""

    canvas_px: CanvasSide = 42
    """Side of the distorted image in pixels; 42 in the paper. Unless given, it grows or shrinks
    with the images of a source that are not 28 px wide."""
    max_angle_deg: Degrees = 45.0
    """The angle is uniform between minus this and this."""
    min_scale: Scale = 0.7
    """The scale is uniform between this and max_scale."""
    max_scale: Scale = 1.2
    """The largest scale."""
    max_shift_px: Pixels | None = None
    """Each of the two shifts is uniform between minus this and this; null for as far as the
    scaled image has room on the canvas. "A random location" is not defined in the paper:
    docs/calibration.md has the readings that were tried."""

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        # Angle in degrees, scale, shift right and shift down in pixels: (count, 4).
        angle_deg = draw_uniform(-self.max_angle_deg, self.max_angle_deg, (count, 1), generator)
        scale = self.draw_scale(count, generator)
        if self.max_shift_px is None:
            room_px = ((self.canvas_px - self.image_px * scale) / 2).clamp(min=0)  # (count, 1)
            shift_px = room_px * draw_uniform(-1, 1, (count, 2), generator)
        else:
            reach_px = self.max_shift_px
            shift_px = draw_uniform(-reach_px, reach_px, (count, 2), generator)
        return torch.cat([angle_deg, scale, shift_px], dim=1)

    @override
    def sweep(self, count: int) -> Tensor:
        parameters = super().sweep(count)  # sizes and places change from draw to draw
        parameters[:, 0] = swing(self.max_angle_deg, count)
        return parameters

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        angle_deg, scale, shift_px = parameters[:, 0], parameters[:, 1], parameters[:, 2:]
        return affine_map(inverse_similarity(angle_deg, scale, shift_px * self.pixel), points)


def swing(reach: float, count: int) -> Tensor:
    """From 0 to ``reach``, to minus that, and back towards 0, smoothly: (count,)."""
    return reach * torch.sin(2 * math.pi * torch.arange(count) / count)


class Projection(ScaledWarping):
    """P: scaled, then seen in perspective: each image corner is displaced (section 4.1)."""

    corner_std_px: Pixels = 5 / math.sqrt(2)
    """Standard deviation of each corner's displacement, right and down. Here 5 px, the paper's
    number, is the deviation of the displacement's length; 5 px each way leave many digits
    unreadable. docs/calibration.md has the readings that were tried."""

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        # Scale, then the (x, y) displacements in pixels of the corners top left, top right,
        # bottom right and bottom left: (count, 9).
        scale = self.draw_scale(count, generator)
        return torch.cat([scale, draw_normal(self.corner_std_px, (count, 8), generator)], dim=1)

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        scale, shifts_px = parameters[:, 0], parameters[:, 1:].reshape(-1, 4, 2)
        edge = self.canvas_px / self.image_px
        square = unit_square(points.device)  # (4, 2)
        to_quad = square_to_quad(square * edge + shifts_px * self.pixel)  # (B, 3, 3)
        to_image = inverse_3x3(to_quad)
        to_image[:, :2] *= (edge / scale)[:, None, None]
        return projective_map(to_image, points)


class Elastic(ScaledWarping):
    """E: scaled, then bent by a thin plate spline with displaced control points (section 4.1)."""

    control_std_px: Pixels = 1.5
    """Standard deviation of each control point's displacement, right and down; 1.5 in the paper."""
    control_side: Annotated[int, Field(ge=2, le=16)] = 4
    """Control points a side, on a regular grid; 4 in the paper."""
    control_span: Annotated[float, Field(ge=0.1, le=2)] = 0.75
    """Side of the square that the control grid spans, as a share of the canvas: 1 from edge to
    edge; 0.75 puts 4 x 4 points at the centres of 4 x 4 fields. Not stated in the paper:
    docs/calibration.md has the readings that were tried."""

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        # Scale, then each control point's (x, y) displacement in pixels, row by row:
        # (count, 1 + 2 * control_side**2).
        scale = self.draw_scale(count, generator)
        shifts_px = draw_normal(self.control_std_px, (count, 2 * self.control_side**2), generator)
        return torch.cat([scale, shifts_px], dim=1)

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        # The spline is the map from output to input itself, so that it passes exactly through
        # the displaced control points.
        scale, shifts_px = parameters[:, 0], parameters[:, 1:].reshape(-1, self.control_side**2, 2)
        reach = self.control_span * self.canvas_px / self.image_px
        control, solver = elastic_system(self.control_side, points.device)
        basis = thin_plate_basis(points / reach, control, solver)  # (P, K) or (B, P, K)
        read_from = (control * reach + shifts_px * self.pixel) / scale[:, None, None]  # (B, K, 2)
        return combine(read_from.mT, basis).mT  # (B, P, 2)


@functools.cache
@torch.inference_mode(False)  # what is cached must serve training, too
def elastic_system(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Control points (K, 2) over [-1, 1]^2 and their spline's solver (K + 3, K), solved once."""
    control = control_grid(side)
    solver = thin_plate_solver(control)
    return control.float().to(device), solver.float().to(device)


class Translation(Placing, Warping):
    """T: put at a random place of a 60 x 60 image, nothing else (A.2 has it on 84 x 84)."""

    canvas_px: CanvasSide = 60
    """Side of the distorted image in pixels; 60 in section 4.1, 84 in A.2. Unless given, it grows
    or shrinks with the images of a source that are not 28 px wide."""

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        # Shift right and down from the middle in pixels, between whole places: (count, 2).
        room_px = self.canvas_px - self.image_px
        return draw_integers(room_px + 1, (count, 2), generator) - room_px / 2

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        return points - (parameters * self.pixel)[:, None]

    @override
    def places(self, draws: Draws) -> Tensor:
        (shift_px,) = draws
        return shift_px + (self.canvas_px - self.image_px) / 2


DISTORTIONS: dict[str, type[Distortion]] = {
    "R": Rotation,
    "RTS": RotationScaleTranslation,
    "P": Projection,
    "E": Elastic,
    "T": Translation,
    "TC": Clutter,
    "crop": Crop,
    "none": Undistorted,
}
"""What `distortion` in a config can be."""
