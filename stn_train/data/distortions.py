"""The distortions that make images hard: draw parameters for each image, then warp all at once.

Legend: N images, B batch, K parameters, P points, H height, W width, S canvas side in pixels.

Convention: as in `stn_train.geometry.plane`, in image coordinates: [-1, 1] spans the undistorted
    image, and the S x S canvas reaches beyond it where it is larger. Output to input.

Parameters are drawn on the CPU from an explicit generator and are the same bits on every
machine; applying them is pure and runs on any device. Scale and warp are one map, so an image
is interpolated once; clutter lies at whole pixels and is not interpolated at all.

To add one: write a `Warping`, or a `Distortion` where it is not a map of the plane, and name it
in DISTORTIONS. Its fields become config keys.
"""

import functools
import math
from abc import ABC, abstractmethod
from typing import Annotated, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.draws import Draws, draw_normal, draw_uniform, draw_whole
from stn_train.data.images import Images
from stn_train.geometry.matrices import (
    affine_map,
    combine,
    inverse_3x3,
    inverse_similarity,
    projective_map,
    square_to_quad,
)
from stn_train.geometry.plane import pixel_centres, sample, unit_square
from stn_train.geometry.splines import control_grid, thin_plate_basis, thin_plate_solver
from stn_train.settings import Settings

DIGIT_PX = 28
"""Side of MNIST's images. Sizes given in pixels are meant for these."""

SMALLEST_PX, LARGEST_PX = 8, 1024
"""Bounds of the sides of images and canvases."""

SWEEP_DRAWS = 6
"""How many draws `Warping.sweep` passes through."""

CanvasSide = Annotated[int, Field(ge=SMALLEST_PX, le=LARGEST_PX)]
Scale = Annotated[float, Field(ge=0.1, le=4)]
Pixels = Annotated[float, Field(ge=0, le=1024)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class Distortion(Settings, ABC):
    """One way to make images hard; its fields are what the paper leaves open or a user may vary."""

    canvas_px: CanvasSide = DIGIT_PX
    """Side of the distorted image in pixels; the image starts in its middle. Unless given, it
    grows or shrinks with the images of a source that are not 28 px wide."""

    _image_px: int = PrivateAttr(default=DIGIT_PX)

    @property
    def image_px(self) -> int:
        """Side of the undistorted images in pixels."""
        return self._image_px

    def fitted(self, image_px: int) -> Self:
        """The same distortion for images of another side.

        Raises ValueError if they are larger than a canvas that was given, or theirs too large.
        """
        given, canvas_px = "canvas_px" in self.model_fields_set, self.canvas_px
        if not given:
            canvas_px = round(canvas_px * image_px / self._image_px)
        if not image_px <= canvas_px <= LARGEST_PX:
            allowed = f"for images of {image_px} px it must be {image_px} to {LARGEST_PX}"
            raise ValueError(f"canvas_px is {canvas_px}; {allowed}")
        return self.resized(canvas_px, image_px)

    def resized(self, canvas_px: int, image_px: int) -> Self:
        """The same distortion with another canvas, for images of another side."""
        copy = self.model_copy(update={"canvas_px": canvas_px})
        copy._image_px = image_px
        if "canvas_px" not in self.model_fields_set:  # model_copy counts as given what it updates
            copy.model_fields_set.discard("canvas_px")
        return copy

    def for_measuring(self) -> Self:
        """How validation and test images are distorted: the same way.

        Another way where the distortion is there to vary the training images alone.
        """
        return self

    def label(self, name: str) -> str:
        """What tables call it, by its name in DISTORTIONS: just that, unless sizes matter."""
        return name

    @abstractmethod
    def draws(self, images: Images, generator: Generator) -> Draws:
        """Random choices for each of N images, on the CPU: tensors (N, ...)."""

    @abstractmethod
    def apply(self, images: Images, index: Tensor | slice, draws: Draws) -> Tensor:
        """The images of an index (B,) distorted by their draws (B, ...): float (B, C, S, S).

        In [0, 1], on the images' device. Other images of the set may be used, as for clutter.
        """


class Warping(Distortion):
    """A distortion that is a map of the plane: every canvas point is read from one image point."""

    @abstractmethod
    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw the parameters of ``count`` images on the CPU: float32 (count, K)."""

    @abstractmethod
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """Where canvas points are read from in the image, under parameters (B, K).

        points: (P, 2), the same for all, or (B, P, 2), in image coordinates. Returns (B, P, 2).
        """

    @override
    def draws(self, images: Images, generator: Generator) -> Draws:
        return (self.draw(len(images), generator),)

    @override
    def apply(self, images: Images, index: Tensor | slice, draws: Draws) -> Tensor:
        (parameters,) = draws
        return distort(images.pixels[index], self, parameters)

    def sweep(self, count: int) -> Tensor:
        """Parameters (count, K) for showing the distortion: from draw to draw, and back again."""
        draws = self.draw(SWEEP_DRAWS, Generator().manual_seed(0))  # (SWEEP_DRAWS, K)
        time = SWEEP_DRAWS * torch.arange(count) / count  # (count,)
        first = time.long()
        share = (0.5 - 0.5 * torch.cos(math.pi * (time - first)))[:, None]  # slow at each draw
        return torch.lerp(draws[first], draws[(first + 1) % SWEEP_DRAWS], share)

    def grid(self, parameters: Tensor) -> Tensor:
        """The sampling grid (B, S, S, 2) of parameters (B, K)."""
        canvas = (self.canvas_px, self.canvas_px)
        reach = self.canvas_px / self.image_px
        points = pixel_centres(canvas, parameters.device) * reach  # (S*S, 2)
        return self.map_points(parameters, points).reshape(-1, *canvas, 2)  # (B, S, S, 2)

    @property
    def pixel(self) -> float:
        """One pixel in image coordinates."""
        return 2 / self.image_px


def distort(pixels: Tensor, distortion: Warping, parameters: Tensor) -> Tensor:
    """Distort images with parameters from ``distortion.draw``, in one bilinear interpolation.

    pixels uint8 (B, H, W) or (B, C, H, W), as large as the distortion is fitted to; parameters
    (B, K) on any device -> float (B, C, S, S) in [0, 1] on the images' device; zero outside the
    image. Raises ValueError for other images.
    """
    if pixels.ndim == 3:
        pixels = pixels[:, None]  # (B, 1, H, W)
    refuse_other_pixels(pixels, distortion.image_px)
    return sample(pixels.float().div_(255), distortion.grid(parameters.to(pixels.device)))


def refuse_other_pixels(pixels: Tensor, side: int) -> None:
    """Raise ValueError unless pixels are uint8 (B, C, side, side)."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[2:] != (side, side):
        found = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise ValueError(f"images must be torch.uint8 (B, C, {side}, {side}), got {found}")


def swing(reach: float, count: int) -> Tensor:
    """From 0 to ``reach``, to minus that, and back towards 0, smoothly: (count,)."""
    return reach * torch.sin(2 * math.pi * torch.arange(count) / count)


class Placing(Distortion):
    """A distortion that puts each image at a place of the canvas, and does nothing else to it."""

    @abstractmethod
    def places(self, draws: Draws) -> Tensor:
        """(x, y) of each image's top left corner on the canvas in pixels, by its draws: (B, 2)."""


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
    """See min_scale."""
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
        return draw_whole(room_px + 1, (count, 2), generator) - room_px / 2

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        return points - (parameters * self.pixel)[:, None]

    @override
    def places(self, draws: Draws) -> Tensor:
        (shift_px,) = draws
        return shift_px + (self.canvas_px - self.image_px) / 2


class Crop(Warping):
    """crop: for training a random square of the image, mirrored half of the time; else its middle.

    The usual augmentation of photographs. All lies at whole pixels: nothing is interpolated.
    """

    canvas_px: CanvasSide = 26
    """Side of the square in pixels. Unless given, seven eighths of the images' own, or one or two
    more for an even number: 224 px of 256 px. A square larger than the image has black around it.
    """
    mirror: bool = True
    """Mirror training images left to right, half of the time."""
    centred: bool = False
    """Always the middle, never mirrored, in training too."""

    @override
    def fitted(self, image_px: int) -> Self:
        given = "canvas_px" in self.model_fields_set
        canvas_px = self.canvas_px if given else 2 * math.ceil(image_px * 7 / 16)
        return self.resized(canvas_px, image_px)

    @override
    def for_measuring(self) -> Self:
        return self.model_copy(update={"mirror": False, "centred": True})

    @override
    def label(self, name: str) -> str:
        return f"{name}{self.canvas_px}"

    @override
    def draw(self, count: int, generator: Generator) -> Tensor:
        # The (x, y) of the square's top left pixel in the image, then 1 if it is mirrored:
        # (count, 3), or nothing where it is always the middle.
        if self.centred:
            return torch.empty(count, 0)
        room_px = self.image_px - self.canvas_px
        corner = draw_whole(abs(room_px) + 1, (count, 2), generator) + min(room_px, 0)
        mirrored = draw_whole(1 + self.mirror, (count, 1), generator)
        return torch.cat([corner, mirrored], dim=1).float()

    @override
    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        count, room_px = len(parameters), self.image_px - self.canvas_px
        if self.centred:
            return (points + (room_px // 2 - room_px / 2) * self.pixel).expand(count, -1, -1)
        corner, mirrored = parameters[:, :2], parameters[:, 2:]
        x, y = points.unbind(-1)  # each (P,) or (B, P)
        square = torch.stack([x * (1 - 2 * mirrored), y.expand(count, -1)], dim=2)  # (B, P, 2)
        return square + ((corner - room_px / 2) * self.pixel)[:, None]


class Clutter(Placing):
    """TC: put at a random place of a 60 x 60 image, among pieces of other digits (section 4.1).

    Every piece is a square of a random image, as a rule of the same set, and lies wholly on the
    canvas. Image and pieces are added and clipped at 1; all lie at whole pixels, so nothing is
    interpolated. docs/clutter.md tells what of this the paper leaves open.
    """

    canvas_px: CanvasSide = 60
    """Side of the distorted image in pixels; 60 in section 4.1, 84 in A.2. Unless given, it grows
    or shrinks with the images of a source that are not 28 px wide."""
    patches: Annotated[int, Field(ge=0, le=256)] = 6
    """How many pieces of other images are added; 16 in A.2."""
    patch_px: Annotated[int, Field(ge=1, le=LARGEST_PX)] = 6
    """Side of a piece in pixels."""

    @override
    def fitted(self, image_px: int) -> Self:
        """As for every distortion; raises ValueError also if a piece is larger than an image."""
        if self.patch_px > image_px:
            allowed = f"for images of {image_px} px it must be 1 to {image_px}"
            raise ValueError(f"patch_px is {self.patch_px}; {allowed}")
        return super().fitted(image_px)

    @override
    def draws(self, images: Images, generator: Generator) -> Draws:
        # Places are (x, y) of a square's top left pixel: of the image on the canvas (N, 2); of
        # each piece in the image that it is cut from, and on the canvas (N, patches, 2).
        count, patches = len(images), (len(images), self.patches)
        room_px = self.canvas_px - self.image_px
        place = draw_whole(room_px + 1, (count, 2), generator)
        sources = draw_whole(len(images.cut_from), patches, generator)
        cut = draw_whole(self.image_px - self.patch_px + 1, (*patches, 2), generator)
        put = draw_whole(self.canvas_px - self.patch_px + 1, (*patches, 2), generator)
        return place, sources, cut, put

    @override
    def apply(self, images: Images, index: Tensor | slice, draws: Draws) -> Tensor:
        place, sources, cut, put = draws
        refuse_other_pixels(images.pixels, self.image_px)
        shown = images.pixels[index].flatten(2)  # (B, C, H * W)
        count, channels, _ = shown.shape
        pixels = square(cut, self.patch_px, self.image_px)  # (B, patches, patch_px**2)
        pieces = images.cut_from.flatten(2)[sources[..., None], :, pixels]  # (B, ..., C)
        pieces = pieces.movedim(-1, 1).flatten(2)  # (B, C, patches * patch_px**2)
        canvas = shown.new_zeros(count, channels, self.canvas_px**2, dtype=torch.float32)
        # Sums of bytes are whole numbers: the same in whatever order a device adds.
        for values, corners, side_px in (
            (pieces, put, self.patch_px),
            (shown, place[:, None], self.image_px),
        ):
            where = square(corners, side_px, self.canvas_px).flatten(1)[:, None]
            canvas.scatter_add_(2, where.expand_as(values), values.float())
        return canvas.clamp_(max=255).div_(255).view(count, channels, *[self.canvas_px] * 2)

    @override
    def places(self, draws: Draws) -> Tensor:
        place, *_ = draws
        return place.float()


def square(corners: Tensor, side_px: int, width_px: int) -> Tensor:
    """The pixels of squares in images of a width, row by row, as indices into the flat image.

    corners (..., 2): (x, y) of each square's top left pixel. Returns int64 (..., side_px**2).
    """
    steps = torch.arange(side_px, device=corners.device)
    pixels = (steps[:, None] * width_px + steps).flatten()  # (side_px**2,)
    x, y = corners[..., :1], corners[..., 1:]
    return y * width_px + x + pixels


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
