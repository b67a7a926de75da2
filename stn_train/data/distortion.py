"""What a distortion is: it draws parameters for each image, then warps all images at once.

Legend: N images, B batch, K parameters, P points, H height, W width, S canvas side in pixels.

Convention: as in `stn_train.geometry.plane`, in image coordinates: [-1, 1] spans the undistorted
    image, and the S x S canvas reaches beyond it where it is larger. Output to input.

Parameters are drawn on the CPU from an explicit generator and are the same bits on every
machine; applying them is pure and runs on any device.

To add one: write a `Warping`, or a `Distortion` where it is not a map of the plane, and name it
in DISTORTIONS of `stn_train.data.distortions`. Its fields become config keys.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Self

import torch
from pydantic import Field, PrivateAttr
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.draws import Draws
from stn_train.data.images import DIGIT_PX, LARGEST_PX, SMALLEST_PX, Images
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.settings import Settings

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

        A canvas that was not given is scaled with them. Raises ValueError if it would be larger
        than LARGEST_PX, or if they are larger than a canvas that was given.
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

    def for_evaluation(self) -> Self:
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


class Placing(Distortion):
    """A distortion that puts each image at a place of the canvas, and does nothing else to it."""

    @abstractmethod
    def places(self, draws: Draws) -> Tensor:
        """(x, y) of each image's top left corner on the canvas in pixels, by its draws: (B, 2)."""


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
