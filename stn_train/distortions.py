"""The distortions that make digits hard: draw parameters for each digit, then warp all at once.

Legend: B batch, K parameters, N points, C canvas side in pixels.

Convention: as in `stn_train.geometry`, in digit coordinates: [-1, 1] spans the 28 x 28 digit,
    and the C x C canvas reaches beyond it where it is larger. Output to input.

Parameters are drawn on the CPU from an explicit generator and are the same bits on every
machine; applying them is pure and runs on any device. Scale and warp are one map, so a digit
is interpolated once.

To add one: write a `Distortion` and name it in DISTORTIONS. Its fields become the keys of the
config's `distort` section.
"""

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Generator, Tensor

from stn_train.digits import SIDE, Digits
from stn_train.geometry import (
    affine_map,
    combine,
    control_grid,
    pixel_centres,
    projective_map,
    sample,
    square_to_quad,
    thin_plate_basis,
    thin_plate_solver,
)
from stn_train.settings import Settings

PIXEL = 2 / SIDE
"""One pixel in digit coordinates."""

SWEEP_DRAWS = 6

Scale = Annotated[float, Field(ge=0.1, le=4)]
Pixels = Annotated[float, Field(ge=0, le=SIDE)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class Distortion(Settings, ABC):
    """One way to distort digits; its fields are what the paper leaves open or a user may vary."""

    canvas_px: Annotated[int, Field(ge=SIDE, le=4 * SIDE)] = SIDE
    """Side of the distorted image in pixels; the digit starts in its middle."""

    @abstractmethod
    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw the parameters of ``count`` digits on the CPU: float32 (count, K)."""

    @abstractmethod
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """Where canvas points (N, 2) are read from in the digit, under parameters (B, K).

        Both in digit coordinates. Returns (B, N, 2).
        """

    def sweep(self, count: int) -> Tensor:
        """Parameters (count, K) for showing the distortion: from draw to draw, and back again."""
        draws = self.draw(SWEEP_DRAWS, Generator().manual_seed(0))  # (SWEEP_DRAWS, K)
        time = SWEEP_DRAWS * torch.arange(count) / count  # (count,)
        first = time.long()
        share = (0.5 - 0.5 * torch.cos(math.pi * (time - first)))[:, None]  # slow at each draw
        return torch.lerp(draws[first], draws[(first + 1) % SWEEP_DRAWS], share)

    def grid(self, parameters: Tensor) -> Tensor:
        """The sampling grid (B, C, C, 2) of parameters (B, K)."""
        canvas = (self.canvas_px, self.canvas_px)
        points = pixel_centres(canvas, parameters.device) * (self.canvas_px / SIDE)  # (C*C, 2)
        return self.map_points(parameters, points).reshape(-1, *canvas, 2)  # (B, C, C, 2)


def distort(images: Tensor, distortion: Distortion, parameters: Tensor) -> Tensor:
    """Distort digits with parameters from ``distortion.draw``, in one bilinear interpolation.

    images uint8 (B, 28, 28), parameters (B, K) on any device -> float (B, 1, C, C) in [0, 1] on
    the images' device; zero outside the digit. Raises ValueError for other images.
    """
    if images.dtype != torch.uint8 or images.shape[1:] != (SIDE, SIDE):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be torch.uint8 (B, {SIDE}, {SIDE}), got {found}")
    pixels = images[:, None].float().div_(255)  # (B, 1, 28, 28)
    return sample(pixels, distortion.grid(parameters.to(images.device)))


def draws_sha256(digits: Digits, distortion: Distortion, parameters: Tensor) -> str:
    """SHA-256 that identifies distorted digits: which digits, which distortion, which draw.

    Taken of what goes into the interpolation, since its last bits differ between devices.
    """
    digest = hashlib.sha256(digits.sha256().encode())
    digest.update(type(distortion).__name__.encode())
    digest.update(distortion.model_dump_json().encode())
    digest.update(parameters.contiguous().numpy().tobytes())
    return digest.hexdigest()


def draw_uniform(low: float, high: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform between low and high, rounded to float32, the same bits on every machine."""
    unit = torch.rand(size, generator=generator, dtype=torch.float64)
    return (low + (high - low) * unit).float()


def draw_normal(std: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal with mean 0, float32, the same bits on every machine.

    `torch.randn` is not: its vectorised logarithm and cosine differ between processors in the
    last bit. Here the inverse distribution function of a uniform number is rounded to 2^-20,
    far coarser than such a difference and far finer than a pixel.
    """
    unit = torch.rand(size, generator=generator, dtype=torch.float64).clamp_(min=2**-53)
    standard = math.sqrt(2) * torch.erfinv(2 * unit - 1)
    return (std * ((standard * 2**20).round() / 2**20)).float()


def swing(reach: float, count: int) -> Tensor:
    """From 0 to ``reach``, to minus that, and back towards 0, smoothly: (count,)."""
    return reach * torch.sin(2 * math.pi * torch.arange(count) / count)


class Undistorted(Distortion):
    """none: the digit as it is, in the middle of the canvas."""

    def draw(self, count: int, generator: Generator) -> Tensor:  # noqa: ARG002
        """No parameters: (count, 0)."""
        return torch.empty(count, 0)

    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """See `Distortion.map_points`."""
        return points.expand(len(parameters), -1, -1)


class Rotation(Distortion):
    """R: rotated by an angle uniform in [-90, 90] degrees (section 4.1)."""

    max_angle_deg: Degrees = 90.0
    """The angle is uniform between minus this and this."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Angle in degrees, counter-clockwise: (count, 1)."""
        return draw_uniform(-self.max_angle_deg, self.max_angle_deg, (count, 1), generator)

    def sweep(self, count: int) -> Tensor:
        """All angles, there and back."""
        return swing(self.max_angle_deg, count)[:, None]

    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """See `Distortion.map_points`."""
        angle_deg = parameters[:, 0]
        no_shift = angle_deg.new_zeros(len(angle_deg), 2)
        return affine_map(similarity(angle_deg, torch.ones_like(angle_deg), no_shift), points)


class ScaledDistortion(Distortion):
    """A distortion that also scales the digit."""

    min_scale: Scale = 0.75
    """The scale is uniform between this and max_scale."""
    max_scale: Scale = 1.0
    """See min_scale."""

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


class RotationScaleTranslation(ScaledDistortion):
    """RTS: rotated, scaled and placed at a random location of a 42 x 42 image (section 4.1)."""

    canvas_px: Annotated[int, Field(ge=SIDE, le=4 * SIDE)] = 42
    """Side of the distorted image in pixels; 42 in the paper."""
    max_angle_deg: Degrees = 45.0
    """The angle is uniform between minus this and this."""
    min_scale: Scale = 0.7
    """The scale is uniform between this and max_scale."""
    max_scale: Scale = 1.2
    """See min_scale."""
    max_shift_px: Pixels | None = None
    """Each of the two shifts is uniform between minus this and this; null for as far as the
    digit's 28 px square, scaled, has room on the canvas. "A random location" is not defined in
    the paper: docs/calibration.md has the readings that were tried."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Angle in degrees, scale, shift right and shift down in pixels: (count, 4)."""
        angle_deg = draw_uniform(-self.max_angle_deg, self.max_angle_deg, (count, 1), generator)
        scale = self.draw_scale(count, generator)
        if self.max_shift_px is None:
            room_px = ((self.canvas_px - SIDE * scale) / 2).clamp(min=0)  # (count, 1)
            shift_px = room_px * draw_uniform(-1, 1, (count, 2), generator)
        else:
            reach_px = self.max_shift_px
            shift_px = draw_uniform(-reach_px, reach_px, (count, 2), generator)
        return torch.cat([angle_deg, scale, shift_px], dim=1)

    def sweep(self, count: int) -> Tensor:
        """All angles, there and back, in changing sizes and places."""
        parameters = super().sweep(count)
        parameters[:, 0] = swing(self.max_angle_deg, count)
        return parameters

    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """See `Distortion.map_points`."""
        angle_deg, scale, shift_px = parameters[:, 0], parameters[:, 1], parameters[:, 2:]
        return affine_map(similarity(angle_deg, scale, shift_px * PIXEL), points)


class Projection(ScaledDistortion):
    """P: scaled, then seen in perspective: each image corner is displaced (section 4.1)."""

    corner_std_px: Pixels = 5 / math.sqrt(2)
    """Standard deviation of each corner's displacement, right and down. Here 5 px, the paper's
    number, is the deviation of the displacement's length; 5 px each way leave many digits
    unreadable. docs/calibration.md has the readings that were tried."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Scale, then the four corners' (x, y) displacements in pixels: (count, 9).

        Corners in the order top left, top right, bottom right, bottom left.
        """
        scale = self.draw_scale(count, generator)
        return torch.cat([scale, draw_normal(self.corner_std_px, (count, 8), generator)], dim=1)

    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """See `Distortion.map_points`."""
        scale, shifts_px = parameters[:, 0], parameters[:, 1:].reshape(-1, 4, 2)
        edge = self.canvas_px / SIDE
        square = unit_square(points.device)  # (4, 2)
        to_quad = square_to_quad(square * edge + shifts_px * PIXEL)  # (B, 3, 3)
        to_digit = inverse_3x3(to_quad)
        to_digit[:, :2] *= (edge / scale)[:, None, None]
        return projective_map(to_digit, points)


class Elastic(ScaledDistortion):
    """E: scaled, then bent by a thin plate spline with displaced control points (section 4.1)."""

    control_std_px: Pixels = 1.5
    """Standard deviation of each control point's displacement, right and down; 1.5 in the paper."""
    control_side: Annotated[int, Field(ge=2, le=16)] = 4
    """Control points a side, on a regular grid; 4 in the paper."""
    control_span: Annotated[float, Field(ge=0.1, le=2)] = 0.75
    """Side of the square that the control grid spans, as a share of the canvas: 1 from edge to
    edge; 0.75 puts 4 x 4 points at the centres of 4 x 4 fields. Not stated in the paper:
    docs/calibration.md has the readings that were tried."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Scale, then each control point's (x, y) displacement in pixels, row by row."""
        scale = self.draw_scale(count, generator)
        shifts_px = draw_normal(self.control_std_px, (count, 2 * self.control_side**2), generator)
        return torch.cat([scale, shifts_px], dim=1)  # (count, 1 + 2 * control_side**2)

    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """See `Distortion.map_points`.

        The spline is the map from output to input itself, so that it passes exactly through
        the displaced control points.
        """
        scale, shifts_px = parameters[:, 0], parameters[:, 1:].reshape(-1, self.control_side**2, 2)
        reach = self.control_span * self.canvas_px / SIDE
        control, solver = elastic_system(self.control_side, points.device)
        basis = thin_plate_basis(points / reach, control, solver)  # (N, K)
        read_from = (control * reach + shifts_px * PIXEL) / scale[:, None, None]  # (B, K, 2)
        return combine(read_from.mT, basis).mT  # (B, N, 2)


@functools.cache
def unit_square(device: torch.device) -> Tensor:
    """The corners of [-1, 1]^2: top left, top right, bottom right, bottom left (4, 2)."""
    return torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], device=device)


@functools.cache
def elastic_system(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Control points (K, 2) over [-1, 1]^2 and their spline's solver (K + 3, K), solved once."""
    control = control_grid(side)
    solver = thin_plate_solver(control)
    return control.float().to(device), solver.float().to(device)


def similarity(angle_deg: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The matrices (B, 2, 3) that undo a similarity.

    The similarity: rotate by angle_deg (B,) counter-clockwise, scale by scale (B,), then move
    by shift (B, 2).
    """
    angle = torch.deg2rad(angle_deg)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # y points down, so this is the clockwise rotation on the screen.
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)  # (B, 2, 2)
    return torch.cat([linear, -linear @ shift[:, :, None]], dim=2)  # (B, 2, 3)


def inverse_3x3(matrices: Tensor) -> Tensor:
    """Inverses of (B, 3, 3) in closed form; unlike `torch.linalg.inv` it never waits for a GPU."""
    a, b, c = matrices.unbind(2)  # the columns, each (B, 3)
    adjugate = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1
    )  # (B, 3, 3)
    determinant = (a * adjugate[:, 0]).sum(-1)  # (B,)
    return adjugate / determinant[:, None, None]


DISTORTIONS: dict[str, type[Distortion]] = {
    "R": Rotation,
    "RTS": RotationScaleTranslation,
    "P": Projection,
    "E": Elastic,
    "none": Undistorted,
}
"""What `distortion` in a config can be."""
