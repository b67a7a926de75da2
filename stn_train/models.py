"""The networks of the paper: two backbones, each with or without a spatial transformer.

Legend: B batch, C side of the input image in pixels, S side of the classifier's input. Backbones
    are built for a ``looked_px``, the side of what the localisation network sees, and a
    ``seen_px``, that of what the classifier sees.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from stn_train.config import Config
from stn_train.convolution import SingleChannelConv2d
from stn_train.digits import CLASSES
from stn_train.spatial_transformer import SpatialTransformer, Warp
from stn_train.transforms import TRANSFORMS


class DigitClassifier(nn.Module):
    """Images of a digit (B, 1, C, C) to logits (B, 10), by way of a spatial transformer if any."""

    def __init__(
        self, classifier: nn.Module, transformer: SpatialTransformer | None, pool: int = 1
    ) -> None:
        """Put them together; the transformer's output is average-pooled by ``pool``."""
        super().__init__()
        self.transformer = transformer
        self.pool = pool
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, C, C) -> logits (B, 10)."""
        if self.transformer is not None:
            images = self.shrink(self.transformer(images))  # (B, 1, S, S)
        logits: Tensor = self.classifier(images)
        return logits

    def shrink(self, warped: Tensor) -> Tensor:
        """What the classifier sees of the transformer's output (the paper pools RTS by 2)."""
        return warped if self.pool == 1 else F.avg_pool2d(warped, self.pool)

    def warp(self, images: Tensor) -> Warp:
        """What the spatial transformer does to images (B, 1, C, C), as the classifier sees it."""
        if self.transformer is None:
            raise ValueError("this model has no spatial transformer")
        warp = self.transformer.warp(images)
        return warp._replace(output=self.shrink(warp.output))


class Backbone(NamedTuple):
    """A classifier and the localisation network that belongs to it."""

    classifier: nn.Module
    localisation: nn.Module
    features: int
    """How many features the localisation network ends with."""


def fcn(
    looked_px: int, seen_px: int, hidden: int, localisation_hidden: int, dropout: float
) -> Backbone:
    """FCN: two hidden layers; localisation by three fully connected layers (A.4)."""
    loc = localisation_hidden
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(seen_px**2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, CLASSES),
    )
    localisation = nn.Sequential(
        nn.Flatten(),
        nn.Linear(looked_px**2, loc),
        nn.ReLU(),
        nn.Linear(loc, loc),
        nn.ReLU(),
        nn.Linear(loc, loc),
        nn.ReLU(),
    )
    return Backbone(classifier, localisation, loc)


def cnn(
    looked_px: int,
    seen_px: int,
    filters: tuple[int, int],
    localisation_filters: int,
    localisation_features: int,
    dropout: float,
) -> Backbone:
    """CNN: 9x9 and 7x7 convolutions, each max-pooled by 2; localisation by two of 5x5 (A.4).

    Pooling rounds up, so that the 21 px which average pooling leaves of a 42 px image still
    have a pixel after the second convolution. ReLU follows the pooling: the result is the
    same, on a quarter of the values.
    """
    first, second = filters
    last_px = half_up(half_up(seen_px - 8) - 6)
    classifier = nn.Sequential(
        SingleChannelConv2d(first, 9),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(first, second, 7),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(second * last_px**2, CLASSES),
    )
    width, features = localisation_filters, localisation_features
    loc_px = half_up(looked_px - 4) - 4
    localisation = nn.Sequential(
        SingleChannelConv2d(width, 5),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(width, width, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * loc_px**2, features),
        nn.ReLU(),
    )
    return Backbone(classifier, localisation, features)


def tutorial(looked_px: int, seen_px: int) -> Backbone:
    """The small network of PyTorch's spatial transformer tutorial; its sizes are fixed.

    https://docs.pytorch.org/tutorials/intermediate/spatial_transformer_tutorial.html
    """
    classifier = nn.Sequential(
        SingleChannelConv2d(10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.Dropout2d(),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * (((seen_px - 4) // 2 - 4) // 2) ** 2, 50),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(50, CLASSES),
    )
    localisation = nn.Sequential(
        SingleChannelConv2d(8, 7),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10 * (((looked_px - 6) // 2 - 4) // 2) ** 2, 32),
        nn.ReLU(),
    )
    return Backbone(classifier, localisation, 32)


def half_up(side: int) -> int:
    """Side of an image after pooling by 2 that rounds up."""
    return -(-side // 2)


def build_backbone(config: Config, looked_px: int, seen_px: int) -> Backbone:
    """The backbone that a config names, in the sizes that it gives."""
    sizes = config.model
    match config.backbone:
        case "FCN":
            return fcn(looked_px, seen_px, sizes.hidden, sizes.localisation_hidden, sizes.dropout)
        case "CNN":
            localisation = sizes.localisation_filters, sizes.localisation_features
            return cnn(looked_px, seen_px, sizes.filters, *localisation, sizes.dropout)
        case "tutorial":
            return tutorial(looked_px, seen_px)


def build_model(config: Config) -> DigitClassifier:
    """The model that a config describes, with fresh weights from torch's global generator."""
    image_px, looked_px = config.distort.canvas_px, config.localisation_px
    if config.transform == "none":
        return DigitClassifier(build_backbone(config, looked_px, image_px).classifier, None)
    pool, sampled_px = config.st_pool, config.st_output_px
    backbone = build_backbone(config, looked_px, sampled_px // pool)
    transformer = SpatialTransformer(
        backbone.localisation,
        backbone.features,
        TRANSFORMS[config.transform](),
        (sampled_px, sampled_px),
        config.model.st_iterations,
        config.localisation_pool,
    )
    return DigitClassifier(backbone.classifier, transformer, pool)


def parameter_count(module: nn.Module) -> int:
    """How many numbers of a module are learnt."""
    return sum(parameter.numel() for parameter in module.parameters())
