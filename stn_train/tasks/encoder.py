"""The frozen encoder that co-localisation compares windows by.

Legend: B batch, F features, G features of a place, P places, S side.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILE = Path(__file__).parent / "encoder.pt"
"""Its weights, by scripts/train_encoder.py."""

STRIDE_PX = 2
"""How far apart the places of `Encoder.everywhere` are, in pixels."""

SIDE_PX = 28
"""Side of the windows that it sees."""


class Encoder(nn.Module):
    """The CNN of section 4.1, whose layers' activations describe a window.

    Two convolutions, 9x9 and 7x7, each followed by max pooling by 2 and ReLU; a linear layer.
    """

    scales: Tensor
    """(3,): what each layer's activations are multiplied by before windows are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 9)
        self.second = nn.Conv2d(16, 32, 7)
        self.output = nn.Linear(4 * 32, 11)
        self.register_buffer("scales", torch.ones(3))

    def layers(self, windows: Tensor) -> list[Tensor]:
        """The activations of the three layers for windows (B, 1, 28, 28), flat: (B, ...) each."""
        first = F.relu(F.max_pool2d(self.first(windows), 2))  # (B, 16, 10, 10)
        second = F.relu(F.max_pool2d(self.second(first), 2))  # (B, 32, 2, 2)
        return [first.flatten(1), second.flatten(1), self.output(second.flatten(1))]

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (B, 1, 28, 28) to logits (B, 11): the digits, and that it is none of them."""
        return self.layers(windows)[-1]

    def features(self, windows: Tensor) -> Tensor:
        """The activations of all layers, one after another: (B, F)."""
        scaled = zip(self.scales, self.layers(windows), strict=True)
        return torch.cat([scale * layer for scale, layer in scaled], dim=1)

    def everywhere(self, images: Tensor) -> Tensor:
        """The features of the last two layers for every window 2 px apart: (B, P, G).

        images (B, 1, S, S); the places stand row by row. The first layer is left out: it would take
        a hundred times the memory.
        """
        first = F.relu(F.max_pool2d(self.first(images), 2))
        second = F.relu(F.max_pool2d(self.second(first), 2, stride=1))
        side = second.shape[-1] - 2
        corners = [
            second[:, :, down : down + side, right : right + side]
            for down in (0, 2)
            for right in (0, 2)
        ]
        flat = torch.stack(corners, dim=2).flatten(3).flatten(1, 2).mT  # (B, P, 128)
        _, scale, last = self.scales
        return torch.cat([scale * flat, last * self.output(flat)], dim=2)


@functools.cache
@torch.inference_mode(False)  # what is cached must serve training, too
def frozen_encoder(device: torch.device) -> Encoder:
    """The encoder that ships with the program, on a device; its weights get no gradient."""
    encoder = Encoder()
    encoder.load_state_dict(torch.load(FILE, weights_only=True))
    return encoder.requires_grad_(False).eval().to(device)
