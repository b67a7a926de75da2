"""Classification of volumes: digits given a thickness, turned in space and placed in a cube.

Legend: B batch, N images, C channels, H height, W width, S side in voxels, V voxels.

Convention: as in `stn_train.geometry.plane`. A volume is (C, S, S, S), depth first, and lengths
    are in voxels, from the middle of the cube.
"""

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.distortion import Degrees
from stn_train.data.draws import Draws, draw_uniform
from stn_train.data.images import ImageFormat, Images, Shape
from stn_train.geometry.matrices import combine, homogeneous, rotations
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.tasks.base import Batch, Task
from stn_train.tasks.classification import Classification

POSE = 6
"""Numbers that place an image in a cube: three angles, three shares of the room to move."""


class Extruded(Classification):
    """extruded: which class is the image of that was extruded, turned and placed in a cube? (A.3).

    The image is distorted first; `distortion: none` leaves it to the cube.
    """

    side_voxels: Annotated[int, Field(ge=8, le=96)] = 32
    """Side of the cube; 60 in the paper."""
    digit_voxels: Annotated[float, Field(ge=4, le=96)] = 20.0
    """Side of the undistorted image in the cube, its margin included; not stated in the paper."""
    thickness_voxels: Annotated[float, Field(ge=1, le=96)] = 4.0
    """How thick the image is extruded; not stated in the paper."""
    max_tilt_deg: Degrees = 45.0
    """The tilts about the horizontal and about the vertical axis are each uniform between minus
    this and this."""
    max_turn_deg: Degrees = 45.0
    """The image is turned in its plane, before it is tilted, by an angle uniform between minus this
    and this."""

    @model_validator(mode="after")
    def _fits_the_cube(self) -> Self:
        for name in ("digit_voxels", "thickness_voxels"):
            if getattr(self, name) > self.side_voxels:
                raise PydanticCustomError(
                    "order",
                    "{name} {length} is larger than side_voxels {side}",
                    {"name": name, "length": getattr(self, name), "side": self.side_voxels},
                )
        return self

    @override
    def shape(self, images: ImageFormat) -> Shape:
        return images.shape[0], self.side_voxels, self.side_voxels, self.side_voxels

    @override
    def draw(self, images: Images, generator: Generator) -> Draws:
        return *self.distortion.draws(images, generator), self.draw_pose(len(images), generator)

    def draw_pose(self, count: int, generator: Generator) -> Tensor:
        """Draw where images are in their cubes: (count, POSE).

        The angles as `rotations` takes them, then how far the image is moved right, down and away
        from the viewer, as shares of the room it has.
        """
        tilt_deg, turn_deg = self.max_tilt_deg, self.max_turn_deg
        tilts = draw_uniform(-tilt_deg, tilt_deg, (count, 2), generator)
        turns = draw_uniform(-turn_deg, turn_deg, (count, 1), generator)
        return torch.cat([tilts, turns, draw_uniform(-1, 1, (count, 3), generator)], dim=1)

    @override
    def batch(self, images: Images, index: Tensor | slice, draws: Draws) -> Batch:
        *distorted, pose = draws
        flat = self.distortion.apply(images, index, tuple(distorted))  # (B, C, H, W)
        return Batch(self.extrude(flat, pose), images.labels[index])

    def extrude(self, flat: Tensor, pose: Tensor) -> Tensor:
        """Images (B, C, H, W) in cubes (B, C, S, S, S), by poses (B, POSE).

        An image is the same all through its thickness: a voxel is read from it at (x, y), and
        fades out over the last voxel along z. One bilinear interpolation for all voxels.
        """
        side, thickness = self.side_voxels, self.thickness_voxels
        reach = self.image_voxels / 2
        to_image = inverse_placement(pose, reach, thickness / 2, side / 2)  # (B, 3, 4)
        to_image[:, :2] /= reach  # x and y normalised, z in voxels
        voxels = pixel_centres((side, side, side), pose.device) * (side / 2)  # (V, 3)
        points = combine(to_image, homogeneous(voxels))  # (B, 3, V)
        grid = points[:, :2].unflatten(2, (side * side, side)).permute(0, 2, 3, 1)
        volumes = sample(flat, grid).view(*flat.shape[:2], side, side, side)
        from_middle = points[:, 2].abs().view(-1, 1, side, side, side)
        slab = from_middle.neg_().add_(thickness / 2 + 0.5).clamp_(0, 1)  # (B, 1, S, S, S)
        return volumes.mul_(slab)

    @property
    def image_voxels(self) -> float:
        """Side of the distorted image in the cube."""
        return self.digit_voxels * self.distortion.canvas_px / self.distortion.image_px

    @override
    def identity(self) -> list[str]:
        return Task.identity(self)  # a classification's own leaves the task out


def inverse_placement(pose: Tensor, reach: float, thickness: float, room: float) -> Tensor:
    """The affine maps (B, 3, 4) from points of the cube to points of the image placed in it.

    pose (B, POSE). All lengths are half ones: reach of the image's side, thickness of its own,
    room of the cube's side. A turned image that is too large for the cube stays in its middle.
    """
    turned = rotations(pose[:, :3])  # (B, 3, 3)
    x, y, z = turned.abs().unbind(2)  # each (B, 3): what an axis of the image adds to each side
    box = reach * (x + y) + thickness * z  # (B, 3): around the turned image
    shift = pose[:, 3:] * (room - box).clamp(min=0)
    back = turned.mT
    return torch.cat([back, -back @ shift[:, :, None]], dim=2)
