"""Classification of distorted images: the paper's Table 1."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Generator, Tensor
from typing_extensions import override

from stn_train.data.draws import Draws
from stn_train.data.images import ImageFormat, Images, Shape
from stn_train.tasks.base import Batch, Task


class Classification(Task):
    """Which class is the distorted image of?"""

    @override
    def shape(self, images: ImageFormat) -> Shape:
        return images.shape[0], self.distortion.canvas_px, self.distortion.canvas_px

    @override
    def classes(self, images: ImageFormat) -> tuple[str, ...]:
        return images.classes

    @override
    def outputs(self, images: ImageFormat) -> int:
        return len(self.classes(images))

    @override
    def draw(self, images: Images, generator: Generator) -> Draws:
        return self.distortion.draws(images, generator)

    @override
    def batch(self, images: Images, index: Tensor | slice, draws: Draws) -> Batch:
        return Batch(self.distortion.apply(images, index, draws), images.labels[index])

    @override
    def loss(
        self, network: Callable[[Tensor], Tensor], batch: Batch, label_smoothing: float
    ) -> Tensor:
        logits = network(batch.inputs)  # (B, classes)
        return F.cross_entropy(logits.float(), batch.targets, label_smoothing=label_smoothing)

    @override
    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    @override
    def score(self, answers: Tensor, targets: Tensor) -> Tensor:
        return answers != targets

    @override
    def identity(self) -> list[str]:
        # As in results from before there were tasks: their hashes stay valid.
        return [type(self.distortion).__name__, self.distortion.model_dump_json()]
