"""GoogLeNet's layers (Szegedy et al. 2015) with batch normalisation, as torchvision has them.

Legend: B batch, N crops, C channels, F features, H height, W width.

Convention: images are in [0, 1] here, and normalised by the first layer: the sampler of a spatial
    transformer in front pads with zeros, which must look like the images' own black.
"""

import urllib.error
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from stn_train.data.images import Shape
from stn_train.errors import ConfigError, DataError

BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Name -> filters: 1x1; 3x3, before and in it; the same of 5x5; 1x1 behind the pooling.

As in torchvision, whose pre-trained weights fit, the 5x5 filters have in fact 3x3 pixels.
"""

POOLED = {"4a": ("maxpool3", 3), "5a": ("maxpool4", 2)}
"""The blocks that stand behind max pooling by 2: its name, and its window."""

SMALLEST_PX = 15
"""The smallest side of an image of which every pooling leaves a pixel."""


class TrunkSize(NamedTuple):
    """How much of GoogLeNet a trunk is."""

    blocks: int = len(BLOCKS)
    """How many of its inception blocks."""
    width: float = 1.0
    """Filters of each layer, as a multiple of GoogLeNet's."""

    def filters(self, count: int) -> int:
        """A number of GoogLeNet's filters, scaled by the width."""
        return max(1, round(self.width * count))

    def output(self, shape: Shape) -> Shape:
        """The shape of a trunk's maps, for images of this shape."""
        *_, (name, filters) = [*BLOCKS.items()][: self.blocks]
        one, _, three, _, five, pooled = map(self.filters, filters)
        height, width = (self.side(side, name) for side in shape[1:])
        return one + three + five + pooled, height, width

    def side(self, side: int, last: str) -> int:
        """The side of the maps behind a block, for images of this side.

        last: the block.
        """
        side = (side + 1) // 2  # conv1
        windows = [3, 3, *(window for name, (_, window) in POOLED.items() if name <= last)]
        for window in windows:
            side = -(-(side - window) // 2) + 1
        return side


class Trunk(nn.Sequential):
    """The layers up to an inception block: images (B, C, H, W) in [0, 1] to maps (B, F, H', W').

    The whole of it makes 1024 x 7 x 7 of 224 x 224 px. Layers have torchvision's names.
    """

    def __init__(self, channels: int, size: TrunkSize) -> None:
        from torchvision.models.googlenet import BasicConv2d, Inception

        super().__init__()
        first, second = size.filters(64), size.filters(192)
        self.add_module("conv1", BasicConv2d(channels, first, kernel_size=7, stride=2, padding=3))
        self.add_module("maxpool1", nn.MaxPool2d(3, 2, ceil_mode=True))
        self.add_module("conv2", BasicConv2d(first, first, kernel_size=1))
        self.add_module("conv3", BasicConv2d(first, second, kernel_size=3, padding=1))
        self.add_module("maxpool2", nn.MaxPool2d(3, 2, ceil_mode=True))
        maps = second
        for name, filters in [*BLOCKS.items()][: size.blocks]:
            if name in POOLED:
                pooling, window = POOLED[name]
                self.add_module(pooling, nn.MaxPool2d(window, 2, ceil_mode=True))
            own = [*map(size.filters, filters)]
            self.add_module(f"inception{name}", Inception(maps, *own))
            maps = own[0] + own[2] + own[4] + own[5]

    @override
    def forward(self, images: Tensor) -> Tensor:
        # What torchvision's weights were trained on: values from -1 to 1.
        maps: Tensor = super().forward(2 * images - 1)  # type: ignore[no-untyped-call]
        return maps


class CropDescriptors(nn.Module):
    """Describes each of several crops by a trunk of its own: (B, N * C, H, W) -> (B, N * F)."""

    def __init__(self, crops: int, channels: int, size: TrunkSize) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(Trunk(channels, size) for _ in range(crops))

    def forward(self, images: Tensor) -> Tensor:
        """The mean over the positions of each trunk's maps, crop after crop."""
        crops = images.chunk(len(self.trunks), dim=1)
        pairs = zip(self.trunks, crops, strict=True)
        return torch.cat([trunk(crop).mean((2, 3)) for trunk, crop in pairs], dim=1)


def load_pretrained(network: nn.Module) -> None:
    """Give every trunk in a network the weights that torchvision trained on ImageNet.

    They are downloaded the first time. Raises DataError, naming the place for the file, where that
    fails, and ConfigError where a trunk has another size.
    """
    weights = pretrained_weights()
    for trunk in (module for module in network.modules() if isinstance(module, Trunk)):
        own = trunk.state_dict()
        if any(name not in weights or weights[name].shape != own[name].shape for name in own):
            raise ConfigError(
                [
                    "backbone.Inception.pretrained is true, but the weights are for images of "
                    "three channels and width 1"
                ]
            )
        trunk.load_state_dict({name: weights[name] for name in own})


def pretrained_weights() -> dict[str, Tensor]:
    """torchvision's weights of GoogLeNet by name; raises DataError as `load_pretrained`."""
    from torchvision.models import GoogLeNet_Weights

    kind = GoogLeNet_Weights.IMAGENET1K_V1
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(kind.url).name
    try:
        loaded = kind.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return dict(loaded)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"the pre-trained weights of Inception could not be downloaded: {error}\n"
            f"  Put {kind.url}\n  into {place.parent},\n"
            "  or set backbone.Inception.pretrained to false"
        ) from None
    except Exception as error:  # of a damaged file: RuntimeError, UnpicklingError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{place} is damaged: {reason}\n  Delete it; it comes from {kind.url}"
        ) from None
