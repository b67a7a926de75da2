"""Examples of a task: which images, in which order, with which random choices.

Legend: N images, B batch.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stn_train.data.draws import Draws, stream_generator
from stn_train.data.images import ImageFormat, Images
from stn_train.tasks.base import Batch, Task

FIXED_SEED = 0
"""The seed of the validation and test draws: the same for every run."""

WATCHED = 256
"""Images on which the spatial transformers are watched during training."""

MOST_AT_ONCE, MOST_VALUES_AT_ONCE = 500, 1 << 24
"""At most so many inputs, with so many values, are made at once: they stay in the processor's cache
or, where they are large, in memory (27 of 3 x 448 x 448). Constants, since the last bit of a
network's output can depend on them and the number reported must not."""


@dataclass(frozen=True)
class Examples:
    """Images, each with random choices of its own; made into inputs a batch at a time."""

    task: Task
    images: Images
    draws: Draws
    """Tensors (N, ...) on the images' device."""

    @classmethod
    def for_validation(cls, task: Task, images: Images) -> "Examples":
        """The validation images under their one fixed draw."""
        return cls.drawn(task, images, "validation", 0)

    @classmethod
    def for_test(cls, task: Task, images: Images, draw: int) -> "Examples":
        """The test images under one of the fixed draws."""
        return cls.drawn(task, images, "test", draw)

    @classmethod
    def watched(cls, task: Task, images: Images) -> "Examples":
        """A few training images, always the same, to see what the spatial transformers do."""
        count = min(WATCHED, at_once(task, images.format))
        return cls.drawn(task, images[:count], "watched", 0)

    @classmethod
    def drawn(cls, task: Task, images: Images, purpose: str, number: int) -> "Examples":
        """Images with the ``number``-th of the fixed draws for a purpose."""
        task = task.with_distortion(task.distortion.for_evaluation())
        draws = task.draw(images, stream_generator(FIXED_SEED, purpose, number))
        return cls(task, images, on_device(draws, images))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor | slice) -> Batch:
        """Inputs and targets, on the images' device."""
        return self.task.batch(self.images, index, tuple(draw[index] for draw in self.draws))

    def parts(self) -> Iterator[slice]:
        """The examples in order, as many at a time as may be made at once."""
        size = at_once(self.task, self.images.format)
        return (slice(start, start + size) for start in range(0, len(self), size))

    def sha256(self) -> str:
        """SHA-256 that identifies these images, the task and the draws, on any machine.

        Taken of what goes into the interpolation, since its last bits differ between devices.
        """
        digest = hashlib.sha256(self.images.sha256().encode())
        for part in self.task.identity():
            digest.update(part.encode())
        for draw in self.draws:
            digest.update(draw.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def at_once(task: Task, images: ImageFormat) -> int:
    """How many inputs may be made at once."""
    values = math.prod(task.shape(images))
    return max(1, min(MOST_AT_ONCE, MOST_VALUES_AT_ONCE // values))


class Pass(NamedTuple):
    """What a pass over the training images shows, in order, and each image's random choices."""

    order: Tensor
    """int64 (N,)."""
    draws: Draws

    def batches(self, size: int) -> "list[Pass]":
        """The pass in parts of ``size``; the last may be smaller."""
        split = [self.order.split(size), *(draw.split(size) for draw in self.draws)]
        return [Pass(order, tuple(draws)) for order, *draws in zip(*split, strict=True)]


def draw_pass(task: Task, images: Images, seed: int, passed: int, draw: int) -> Pass:
    """Pass number ``passed`` with the ``draw``-th draws; drawn on the CPU.

    It is brought to the images' device as a whole, so that no step has to wait for its part.
    """
    order = torch.randperm(len(images), generator=stream_generator(seed, "order", passed))
    draws = task.draw(images, stream_generator(seed, "training", draw))
    ordered = tuple(each[order] for each in draws)
    return Pass(order.to(images.labels.device), on_device(ordered, images))


def on_device(draws: Draws, images: Images) -> Draws:
    """Draws on the device of the images."""
    return tuple(draw.to(images.labels.device) for draw in draws)
