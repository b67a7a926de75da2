"""The data of a run: which digits train, validate and test, and how each is distorted.

Legend: N digits, B batch, K parameters of the distortion, C canvas side in pixels.

All randomness is a function of a seed and of what it is for, never of what was drawn before:
at any step, a repeated run sees the same digits in the same distortions.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stn_train.config import DataSettings
from stn_train.digits import Digits
from stn_train.distortions import Distortion, distort, draws_sha256
from stn_train.errors import ConfigError
from stn_train.font_digits import render_font_digits
from stn_train.mnist import find_raw, load_mnist

FIXED_SEED = 0
"""The seed of the validation and test distortions: the same for every run."""

EMBEDDED_TRAINING, EMBEDDED_TEST = 8000, 2000

WATCHED = 256
"""Digits on which the spatial transformer is watched during training."""


class Splits(NamedTuple):
    """The digits of a run, by what they are for."""

    training: Digits
    validation: Digits
    test: Digits
    origin: str
    """Where they come from, in words."""

    def to(self, device: torch.device) -> "Splits":
        """The digits on a device."""
        return Splits(
            self.training.to(device), self.validation.to(device), self.test.to(device), self.origin
        )


@dataclass(frozen=True)
class DistortedDigits:
    """Digits, each with the parameters of its own distortion; interpolated a batch at a time."""

    digits: Digits
    distortion: Distortion
    parameters: Tensor
    """float32 (N, K) on the CPU."""

    @classmethod
    def drawn(
        cls, digits: Digits, distortion: Distortion, seed: int, purpose: str, number: int
    ) -> "DistortedDigits":
        """Digits with fresh draws: the ``number``-th for this seed and purpose."""
        generator = torch.Generator().manual_seed(stream_seed(seed, purpose, number))
        return cls(digits, distortion, distortion.draw(len(digits), generator))

    def __len__(self) -> int:
        return len(self.digits)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Distorted images (B, 1, C, C) in [0, 1] and labels (B,), on the digits' device."""
        images = self.digits.images[index]
        return distort(images, self.distortion, self.parameters[index]), self.digits.labels[index]

    def sha256(self) -> str:
        """Identifies these digits under these distortions, on any machine."""
        return draws_sha256(self.digits, self.distortion, self.parameters)


class Plan(NamedTuple):
    """What a pass shows, in order: which digits, and each one's distortion."""

    order: Tensor
    """int64 (N,)."""
    parameters: Tensor
    """float32 (N, K)."""

    def batches(self, size: int) -> "list[Plan]":
        """The plan in parts of ``size``; the last may be smaller."""
        parts = zip(self.order.split(size), self.parameters.split(size), strict=True)
        return [Plan(*part) for part in parts]


def draw_plan(digits: Digits, distortion: Distortion, seed: int, passed: int, draw: int) -> Plan:
    """The plan of pass ``passed`` with the ``draw``-th distortions; drawn on the CPU.

    It is brought to the digits' device as a whole, so that no step has to wait for its part.
    """
    count, device = len(digits), digits.labels.device
    shuffle = torch.Generator().manual_seed(stream_seed(seed, "order", passed))
    order = torch.randperm(count, generator=shuffle)
    generator = torch.Generator().manual_seed(stream_seed(seed, "training", draw))
    parameters = distortion.draw(count, generator)[order]
    return Plan(order.to(device), parameters.to(device))


def load_splits(settings: DataSettings, data_dir: Path | None = None) -> Splits:
    """The digits that the settings ask for.

    Raises DataError where they are unavailable, ConfigError where there are fewer than asked
    for, or validation takes them all.
    """
    if settings.source == "mnist":
        training, test = load_mnist(data_dir)
        origin = f"MNIST from {find_raw(data_dir)}"
    else:
        training, test = render_font_digits(EMBEDDED_TRAINING, EMBEDDED_TEST, FIXED_SEED)
        origin = "embedded: rendered from matplotlib's fonts"
    for key, digits in (("training_digits", training), ("test_digits", test)):
        wanted = getattr(settings, key)
        if wanted is not None and wanted > len(digits):
            raise ConfigError(
                [f"data.{key} is {wanted}; {settings.source} has {len(digits)}, null takes all"]
            )
    training, test = training[: settings.training_digits], test[: settings.test_digits]
    kept = len(training) - settings.validation
    if kept < 1:
        raise ConfigError(
            [
                f"data.validation is {settings.validation}, but there are only {len(training)} "
                "training digits: set it lower, or data.training_digits higher"
            ]
        )
    return Splits(training[:kept], training[kept:], test, origin)


def stream_seed(seed: int, purpose: str, number: int) -> int:
    """A generator's seed for one purpose, independent of those for other purposes and numbers."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def validation_set(digits: Digits, distortion: Distortion) -> DistortedDigits:
    """The validation digits under their one fixed draw."""
    return DistortedDigits.drawn(digits, distortion, FIXED_SEED, "validation", 0)


def watched_set(digits: Digits, distortion: Distortion) -> DistortedDigits:
    """A few training digits, always the same, to see what the spatial transformer does."""
    return DistortedDigits.drawn(digits[:WATCHED], distortion, FIXED_SEED, "watched", 0)


def test_set(digits: Digits, distortion: Distortion, draw: int) -> DistortedDigits:
    """The test digits under one of the fixed draws."""
    return DistortedDigits.drawn(digits, distortion, FIXED_SEED, "test", draw)
