"""Images: what every experiment starts from, held as bytes.

Legend: N images, C channels, H height, W width.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DIGIT_PX = 28
"""Side of MNIST's images. Sizes given in pixels are meant for these."""

SMALLEST_PX, LARGEST_PX = 8, 1024
"""Bounds of the sides of images, and of the canvases that they are distorted on."""

Shape = tuple[int, ...]
"""Channels, height and width of an image; channels, depth, height and width of a volume."""


class ImageFormat(NamedTuple):
    """What the images of a set are like: all that a network needs to know of them."""

    shape: Shape
    """(C, H, W)."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of the labels."""


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    pixels: Tensor
    """uint8 (N, C, H, W), 0 is background. It may be mapped from a file, not be in memory."""
    labels: Tensor
    """int64 (N,), the class of each."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of the labels."""
    around: "Images | None" = None
    """Other images, of which a distortion cuts pieces to put beside these; None for these."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice | Tensor) -> "Images":
        return Images(self.pixels[part], self.labels[part], self.classes, self.around)

    @property
    def cut_from(self) -> Tensor:
        """The pixels (N, C, H, W) of the images that pieces are cut from."""
        return (self if self.around is None else self.around).pixels

    @property
    def format(self) -> ImageFormat:
        """Shape and classes."""
        _, channels, height, width = self.pixels.shape
        return ImageFormat((channels, height, width), self.classes)

    def to(self, device: torch.device) -> "Images":
        """The images on a device."""
        around = None if self.around is None else self.around.to(device)
        return Images(self.pixels.to(device), self.labels.to(device), self.classes, around)

    def sha256(self) -> str:
        """SHA-256 of the pixels' bytes followed by the labels', one byte each up to 256 classes."""
        labels = self.labels.byte() if len(self.classes) <= 256 else self.labels
        # `data`, not `tobytes`: pixels can be gigabytes on the disk.
        digest = hashlib.sha256(self.pixels.cpu().contiguous().numpy().data)
        digest.update(labels.cpu().numpy().tobytes())
        return digest.hexdigest()
