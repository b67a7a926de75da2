"""Digits: what every experiment starts from, held in memory as bytes.

Legend: N digits.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 28
"""Height and width of a digit in pixels, as in MNIST."""

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Grey images of digits and which digit each is."""

    images: Tensor
    """uint8 (N, 28, 28), 0 is background."""
    labels: Tensor
    """int64 (N,), 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice | Tensor) -> "Digits":
        return Digits(self.images[part], self.labels[part])

    def to(self, device: torch.device) -> "Digits":
        """The digits on a device."""
        return Digits(self.images.to(device), self.labels.to(device))

    def sha256(self) -> str:
        """SHA-256 of the images' bytes followed by the labels', one byte each."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().byte().numpy().tobytes())
        return digest.hexdigest()
