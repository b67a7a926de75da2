"""Clutter: pieces of other images around each image.

Legend: N images, B batch, C channels, H height, W width. Pieces lie at whole pixels and are not
interpolated.
"""

from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.distortion import CanvasSide, Placing, refuse_other_pixels
from stn_train.data.draws import Draws, draw_integers
from stn_train.data.images import LARGEST_PX, Images


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
        place = draw_integers(room_px + 1, (count, 2), generator)
        sources = draw_integers(len(images.cut_from), patches, generator)
        cut = draw_integers(self.image_px - self.patch_px + 1, (*patches, 2), generator)
        put = draw_integers(self.canvas_px - self.patch_px + 1, (*patches, 2), generator)
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
