"""The backbones by name: each a classifier, and the localisation network that belongs to it.

To add one: write a `Backbone` and name it in BACKBONES. Its fields become config keys.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn
from typing_extensions import override

from stn_train.data.images import Shape
from stn_train.models import inception
from stn_train.models.backbone import (
    Backbone,
    Fraction,
    Stage,
    StagedBackbone,
    Width,
    hidden_layers,
    pixels_of,
)
from stn_train.models.convolution import Convolution, MaxPooling
from stn_train.models.spatial_transformer import OutputLayer


class FullyConnected(Backbone):
    """FCN: two hidden layers; localisation by three fully connected layers (A.4)."""

    localises_volumes: ClassVar[bool] = True

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
            *hidden_layers(pixels_of(shape), self.hidden, 2),
            nn.Dropout(self.dropout),
            OutputLayer(self.hidden, outputs),
        )

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        width = self.localisation_hidden
        return nn.Sequential(nn.Flatten(), *hidden_layers(pixels_of(shape), width, 3)), width


class Convolutional(StagedBackbone):
    """CNN: 9x9 and 7x7 convolutions, each max-pooled by 2; localisation by two of 5x5 (A.4).

    Pooling rounds up, so that the 21 px which average pooling leaves of a 42 px image still
    have a pixel after the second convolution.
    """

    smallest_input: ClassVar[int] = 21
    smallest_localisation_input: ClassVar[int] = 13
    default_localisation_pool: ClassVar[int] = 2  # A.4: "the input downsampled by 2"
    localises_volumes: ClassVar[bool] = True  # by convolutions in three dimensions

    filters: Annotated[tuple[Width, Width], Field(strict=False)] = (64, 64)
    """Filters of the two convolutions (32 to 64 in the paper)."""
    features: Width | None = None
    """Units in a fully connected layer before the output layer; null for none, as in Table 1."""
    dropout: Fraction = 0.0
    """Dropout probability before the classifier's output layer."""
    localisation_filters: Width = 20
    """Filters of the two convolutions of the localisation network (A.4)."""
    localisation_features: Width = 20
    """Units in the fully connected layer of the localisation network (A.4)."""

    @property
    @override
    def stages(self) -> Sequence[Stage]:
        first, second = self.filters
        return Stage(first, 9), Stage(second, 7)

    @override
    def head(self, shape: Shape, outputs: int) -> list[nn.Module]:
        count, layers = pixels_of(shape), []
        if self.features is not None:
            layers = [nn.Linear(count, self.features), nn.ReLU()]
            count = self.features
        return [nn.Flatten(), *layers, nn.Dropout(self.dropout), OutputLayer(count, outputs)]

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        channels, *sides = shape
        width, features = self.localisation_filters, self.localisation_features
        positions = pixels_of(tuple(half_up(side - 4) - 4 for side in sides))
        flat = len(sides) == 2
        layers = nn.Sequential(
            Convolution(channels, width, 5) if flat else nn.Conv3d(channels, width, 5),
            MaxPooling() if flat else nn.MaxPool3d(2, ceil_mode=True),
            nn.ReLU(),
            Convolution(width, width, 5) if flat else nn.Conv3d(width, width, 5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * positions, features),
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

    @property
    @override
    def stages(self) -> Sequence[Stage]:
        first, second = self.filters
        deformable = Stage(second, 3, deformable=True)
        return Stage(first, 9), deformable, deformable


class Strided(Convolutional):
    """strided: the CNN, with the localisation network of the paper's co-localisation (A.2).

    A convolution of 8 filters 9x9 with stride 4, max pooling by 2, and two fully connected layers
    of 8 units: small for large images. Weights of the classifier are those of the CNN.
    """

    smallest_localisation_input: ClassVar[int] = 13
    default_localisation_pool: ClassVar[int] = 1
    localises_volumes: ClassVar[bool] = False

    localisation_filters: Width = 8
    """Filters of the convolution of the localisation network (A.2)."""
    localisation_features: Width = 8
    """Units in each of the two fully connected layers of the localisation network (A.2)."""

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        channels, *sides = shape
        width, features = self.localisation_filters, self.localisation_features
        positions = pixels_of(tuple(((side - 9) // 4 + 1) // 2 for side in sides))
        layers = nn.Sequential(
            nn.Conv2d(channels, width, 9, stride=4),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            *hidden_layers(width * positions, features, 2),
        )
        return layers, features


class Tutorial(StagedBackbone):
    """tutorial: the small network of PyTorch's spatial transformer tutorial; its sizes are fixed.

    https://docs.pytorch.org/tutorials/intermediate/spatial_transformer_tutorial.html
    """

    smallest_input: ClassVar[int] = 16
    smallest_localisation_input: ClassVar[int] = 18

    @property
    @override
    def stages(self) -> Sequence[Stage]:
        return Stage(10, 5, rounds_up=False), Stage(20, 5, rounds_up=False, dropout=True)

    @override
    def head(self, shape: Shape, outputs: int) -> list[nn.Module]:
        return [
            nn.Flatten(),
            nn.Linear(pixels_of(shape), 50),
            nn.ReLU(),
            nn.Dropout(),
            OutputLayer(50, outputs),
        ]

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


class Inception(Backbone):
    """Inception: GoogLeNet with batch normalisation, one for each crop (the paper's birds, 4.3).

    The features of all crops are concatenated. The localisation network is one more without its
    last pooling, then a 1x1 convolution and a fully connected layer.
    """

    smallest_input: ClassVar[int] = inception.SMALLEST_PX
    smallest_localisation_input: ClassVar[int] = inception.SMALLEST_PX

    pretrained: bool = False
    """Start from the weights that torchvision trained on ImageNet. They are downloaded where there
    is a network, and are for images in colour and width 1."""
    dropout: Fraction = 0.7
    """Dropout probability before the classifier's output layer; 0.7 in the paper."""
    blocks: Annotated[int, Field(ge=1, le=len(inception.BLOCKS))] = len(inception.BLOCKS)
    """Keep only the first so many of the nine inception blocks."""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Filters of every inception layer, as a multiple of GoogLeNet's."""
    localisation_filters: Width = 128
    """Filters of the localisation network's 1x1 convolution (A.6)."""
    localisation_features: Width = 128
    """Units of the localisation network's fully connected layer (A.6)."""

    @property
    def trunk_size(self) -> inception.TrunkSize:
        """How much of GoogLeNet there is in each."""
        return inception.TrunkSize(self.blocks, self.width)

    @override
    def classifier(self, shape: Shape, outputs: int) -> nn.Module:
        return self.classifier_of_crops(shape, 1, outputs)

    @override
    def classifier_of_crops(self, shape: Shape, crops: int, outputs: int) -> nn.Module:
        features, *_ = self.trunk_size.output(shape)
        return nn.Sequential(
            inception.CropDescriptors(crops, shape[0] // crops, self.trunk_size),
            nn.Dropout(self.dropout),
            OutputLayer(crops * features, outputs),
        )

    @override
    def localisation(self, shape: Shape) -> tuple[nn.Module, int]:
        maps, height, width = self.trunk_size.output(shape)
        filters, features = self.localisation_filters, self.localisation_features
        layers = nn.Sequential(
            inception.Trunk(shape[0], self.trunk_size),
            nn.Conv2d(maps, filters, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(filters * height * width, features),
            nn.ReLU(),
        )
        return layers, features

    @override
    def load_pretrained(self, network: nn.Module) -> None:
        if self.pretrained:
            inception.load_pretrained(network)


def half_up(side: int) -> int:
    """Side of an image after pooling by 2 that rounds up."""
    return -(-side // 2)


BACKBONES: dict[str, type[Backbone]] = {
    "FCN": FullyConnected,
    "CNN": Convolutional,
    "tutorial": Tutorial,
    "DCN": Deformable,
    "Inception": Inception,
    "strided": Strided,
}
"""What `backbone` in a config can be."""
