"""What a backbone is: a classifier, and the localisation network that belongs to it.

Legend: B batch, C channels, H height, W width, F filters.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import nn
from typing_extensions import override

from stn_train.data.images import Shape
from stn_train.models.convolution import Convolution, DeformableConvolution, MaxPooling
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
    localises_volumes: ClassVar[bool] = False
    """Whether the localisation network can see volumes (B, C, D, H, W) too."""

    @abstractmethod
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        """Images (B, C, H, W) of this shape to outputs (B, outputs), by an `OutputLayer`."""

    def classifier_of_crops(
        self,
        shape: Shape,
        crops: int,  # noqa: ARG002
        outputs: int,
    ) -> nn.Module:
        """A classifier of several crops of an image, their channels concatenated: (B, C, H, W).

        Most see one map with more channels.
        """
        return self.classifier(shape, outputs)

    @abstractmethod
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        """A network from maps of this shape to features (B, features), and how many these are."""

    def load_pretrained(self, network: nn.Module) -> None:
        """Give a fresh network the weights that others trained, where the settings ask for them.

        Raises DataError where they cannot be had.
        """


class Stage(NamedTuple):
    """A convolution of a classifier with its pooling by 2 and its ReLU.

    ReLU follows the pooling: the result is the same, on a quarter of the values.
    """

    filters: int
    kernel: int
    rounds_up: bool = True
    """Whether pooling keeps the last row of an odd number of rows."""
    dropout: bool = False
    """Whether whole maps are dropped before the pooling."""
    deformable: bool = False
    """Whether the convolution predicts where its taps read."""

    def layers(self, channels: int) -> list[nn.Module]:
        """The layers, for maps of so many channels."""
        dropout = [nn.Dropout2d()] if self.dropout else []
        pooling = MaxPooling() if self.rounds_up else nn.MaxPool2d(2)
        kind = DeformableConvolution if self.deformable else Convolution
        return [kind(channels, self.filters, self.kernel), *dropout, pooling, nn.ReLU()]

    def output(self, shape: Shape) -> Shape:
        """The shape of the output, for an input of this shape."""
        height, width = ((side - self.kernel + 1 + self.rounds_up) // 2 for side in shape[1:])
        return self.filters, height, width

    def least_input(self, output: int) -> int:
        """The smallest side of an input that leaves an output of this side."""
        return 2 * output - self.rounds_up + self.kernel - 1


def least_input(stages: Sequence[Stage]) -> int:
    """The smallest side of an input of which stages, one after another, leave a pixel."""
    side = 1
    for stage in reversed(stages):
        side = stage.least_input(side)
    return side


class StagedBackbone(Backbone):
    """A backbone whose classifier begins with convolutional stages.

    A spatial transformer can stand behind each of them, for all that follow see maps.
    """

    stage_localisation_hidden: ClassVar[int] = 32
    """Units in both layers of the localisation network of a transformer behind a stage."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The first layers of the classifier, in order."""

    @abstractmethod
    def head(self, shape: Shape, outputs: int) -> list[nn.Module]:
        """The layers behind the stages, for maps of a shape; the last is an `OutputLayer`."""

    @override
    def classifier(self, shape: Shape, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for stage in self.stages:
            layers += stage.layers(shape[0])
            shape = stage.output(shape)
        return nn.Sequential(*layers, *self.head(shape, outputs))

    def stage_localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        """A network from the maps of a stage to features (B, features), and how many these are.

        Two fully connected layers of 32 units, as between the layers of the paper's network for
        house numbers (section 4.2).
        """
        width = self.stage_localisation_hidden
        return nn.Sequential(nn.Flatten(), *hidden_layers(pixels_of(shape), width, 2)), width


def hidden_layers(inputs: int, units: int, count: int) -> list[nn.Module]:
    """So many fully connected layers of the same width in a row, each with its ReLU."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    return layers


def pixels_of(shape: Shape) -> int:
    """How many values an image or a volume of a shape has."""
    return torch.Size(shape).numel()
