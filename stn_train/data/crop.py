"""Crops of photographs.

Legend: B batch, P points.
"""

import math
from typing import Self

import torch
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.distortion import CanvasSide, Warping
from stn_train.data.draws import draw_integers


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
    def for_evaluation(self) -> Self:
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
        corner = draw_integers(abs(room_px) + 1, (count, 2), generator) + min(room_px, 0)
        mirrored = draw_integers(1 + self.mirror, (count, 1), generator)
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
