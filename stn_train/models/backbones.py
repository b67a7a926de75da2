"""Backbones: a classifier, and the localisation network that belongs to it.

Legend: B batch, C channels, H height, W width, F filters, K kernel side.

To add one: write a `Backbone` and name it in BACKBONES. Its fields become config keys.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from typing_extensions import override

from stn_train.data.images import Shape
from stn_train.models.convolution import Convolution, DeformableConvolution, MaxPooling
from stn_train.models.spatial_transformer import OutputLayer
from stn_train.settings import Settings

Width = Annotated[int, Field(ge=1, le=4096)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Backbone(Settings, ABC):
    """Builds a classifier, and a localisation network for a spatial transformer in front of it."""

    smallest_input: ClassVar[int] = 1
    """The smallest side in pixels that leaves the classifier's last layer a pixel to see."""
    smallest_localisation_input: ClassVar[int] = 1
    """The same for the localisation network."""
    default_localisation_pool: ClassVar[int] = 1
    """How far the localisation network's input is average-pooled unless the config says so."""

    @abstractmethod
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        """Images (B, C, H, W) of this shape to outputs (B, outputs), by an `OutputLayer`."""

    @abstractmethod
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        """A network from maps of this shape to features (B, features), and how many these are."""


class FullyConnected(Backbone):
    """FCN: two hidden layers; localisation by three fully connected layers (A.4)."""

    hidden: Width = 256
    """Units in each of the two hidden layers (128 to 256 in the paper)."""
    dropout: Fraction = 0.0
    """Dropout probability before the classifier's output layer."""
    localisation_hidden: Width = 32
    """Units in each of the three layers of the localisation network (A.4)."""

    @override
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels_of(shape), self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            OutputLayer(self.hidden, outputs),
        )

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        width = self.localisation_hidden
        layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels_of(shape), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        return layers, width


class Convolutional(Backbone):
    """CNN: 9x9 and 7x7 convolutions, each max-pooled by 2; localisation by two of 5x5 (A.4).

    Pooling rounds up, so that the 21 px which average pooling leaves of a 42 px image still
    have a pixel after the second convolution. ReLU follows the pooling: the result is the
    same, on a quarter of the values.
    """

    smallest_input: ClassVar[int] = 21
    smallest_localisation_input: ClassVar[int] = 13
    default_localisation_pool: ClassVar[int] = 2  # A.4: "the input downsampled by 2"

    filters: Annotated[tuple[Width, Width], Field(strict=False)] = (64, 64)
    """Filters of the two convolutions (32 to 64 in the paper)."""
    dropout: Fraction = 0.0
    """Dropout probability before the classifier's output layer."""
    localisation_filters: Width = 20
    """Filters of the two convolutions of the localisation network (A.4)."""
    localisation_features: Width = 20
    """Units in the fully connected layer of the localisation network (A.4)."""

    @override
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        channels, *sides = shape
        first, second = self.filters
        rows, columns = (half_up(half_up(side - 8) - 6) for side in sides)
        return nn.Sequential(
            Convolution(channels, first, 9),
            MaxPooling(),
            nn.ReLU(),
            Convolution(first, second, 7),
            MaxPooling(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            OutputLayer(second * rows * columns, outputs),
        )

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        channels, *sides = shape
        width, features = self.localisation_filters, self.localisation_features
        rows, columns = (half_up(side - 4) - 4 for side in sides)
        layers = nn.Sequential(
            Convolution(channels, width, 5),
            MaxPooling(),
            nn.ReLU(),
            Convolution(width, width, 5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * rows * columns, features),
            nn.ReLU(),
        )
        return layers, features


class Deformable(Convolutional):
    """DCN: a 9x9 convolution and two deformable 3x3 ones (Dai et al. 2017, arXiv 1703.06211).

    A baseline to set beside spatial transformers: it bends the places that each filter looks at,
    where a transformer warps the image. Each layer is followed by max pooling by 2 that rounds up.
    The localisation network is the CNN's.
    """

    filters: Annotated[tuple[Width, Width], Field(strict=False)] = (48, 96)
    """Filters of the 9x9 convolution, and of each deformable one."""

    @override
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        channels, *sides = shape
        first, second = self.filters
        rows, columns = (half_up(half_up(half_up(side - 8) - 2) - 2) for side in sides)
        return nn.Sequential(
            Convolution(channels, first, 9),
            MaxPooling(),
            nn.ReLU(),
            DeformableConvolution(first, second, 3),
            MaxPooling(),
            nn.ReLU(),
            DeformableConvolution(second, second, 3),
            MaxPooling(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            OutputLayer(second * rows * columns, outputs),
        )


class Tutorial(Backbone):
    """tutorial: the small network of PyTorch's spatial transformer tutorial; its sizes are fixed.

    https://docs.pytorch.org/tutorials/intermediate/spatial_transformer_tutorial.html
    """

    smallest_input: ClassVar[int] = 16
    smallest_localisation_input: ClassVar[int] = 18

    @override
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        channels, *sides = shape
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in sides)
        return nn.Sequential(
            Convolution(channels, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            Convolution(10, 20, 5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20 * rows * columns, 50),
            nn.ReLU(),
            nn.Dropout(),
            OutputLayer(50, outputs),
        )

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        channels, *sides = shape
        rows, columns = (((side - 6) // 2 - 4) // 2 for side in sides)
        layers = nn.Sequential(
            Convolution(channels, 8, 7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            Convolution(8, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(10 * rows * columns, 32),
            nn.ReLU(),
        )
        return layers, 32


def pixels_of(shape: Shape) -> int:
    """How many values an image of a shape has."""
    return torch.Size(shape).numel()


def half_up(side: int) -> int:
    """Side of an image after pooling by 2 that rounds up."""
    return -(-side // 2)


BACKBONES: dict[str, type[Backbone]] = {
    "FCN": FullyConnected,
    "CNN": Convolutional,
    "tutorial": Tutorial,
    "DCN": Deformable,
}
"""What `backbone` in a config can be."""
