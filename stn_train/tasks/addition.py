"""Addition of two distorted digits: the paper's appendix A.1.

Legend: N images, B batch, C channels, S side.
"""

import torch
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.draws import Draws
from stn_train.data.images import ImageFormat, Images, Shape
from stn_train.tasks.base import Batch
from stn_train.tasks.classification import Classification


class Addition(Classification):
    """What is the sum of two digits, each distorted by itself, in channels of their own?

    Every image is shown once in a pass, in the first channel; which image of the same set stands in
    the second is drawn with the distortions. Classes other than digits count from 0.
    """

    @override
    def shape(self, images: ImageFormat) -> Shape:
        channels, height, width = super().shape(images)
        return 2 * channels, height, width

    @override
    def classes(self, images: ImageFormat) -> tuple[str, ...]:
        return tuple(map(str, range(2 * len(images.classes) - 1)))

    @override
    def draw(self, images: Images, generator: Generator) -> Draws:
        first = self.distortion.draws(images, generator)
        partners = torch.randint(len(images), (len(images),), generator=generator)
        # Drawn for the partners themselves: a distortion may depend on the image.
        second = self.distortion.draws(images[partners.to(images.labels.device)], generator)
        return *first, *second, partners

    @override
    def batch(self, images: Images, index: Tensor | slice, draws: Draws) -> Batch:
        *distorted, partners = draws
        if isinstance(index, slice):
            index = torch.arange(len(images), device=partners.device)[index]
        both = torch.cat([index, partners])  # (2B,)
        half = len(distorted) // 2
        pairs = zip(distorted[:half], distorted[half:], strict=True)
        shown = self.distortion.apply(images, both, tuple(map(torch.cat, pairs)))  # (2B, C, S, S)
        labels = images.labels[both]
        return Batch(torch.cat(shown.chunk(2), dim=1), torch.stack(labels.chunk(2)).sum(0))

    @override
    def identity(self) -> list[str]:
        return [type(self).__name__, *super().identity()]
