"""The meter of a run: what its log says of loss and speed."""

import time

import torch
from torch import Tensor


class Meter:
    """Mean loss and speed between logging points, without waiting for the device in between."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def begin(self) -> None:
        """Start the clock."""
        self.images = 0
        self.started = time.perf_counter()

    def add(self, loss: Tensor, images: int) -> None:
        """Count a step."""
        self.losses.append(loss)
        self.images += images

    def read(self) -> dict[str, float]:
        """The means since the last reading; starts anew."""
        loss = float(torch.stack(self.losses).mean())
        speed = self.images / (time.perf_counter() - self.started)
        self.losses = []
        self.begin()
        return {"loss": loss, "images_per_second": speed}

    def pause(self) -> None:
        """Stop the clock: validation is not training."""
        self.paused = time.perf_counter()

    def resume(self) -> None:
        """Start the clock again."""
        self.started += time.perf_counter() - self.paused
