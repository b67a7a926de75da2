"""A run's curves and some of its digits for TensorBoard.

Legend: N digits, C side of the input in pixels.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_train.data import watched_set
from stn_train.digits import Digits
from stn_train.distortions import Distortion
from stn_train.errors import ConfigError
from stn_train.observer import Observer, Start

SHOWN = 16
"""Digits in a picture."""


class TensorBoard(Observer):
    """Writes event files: every number of metrics.jsonl, and pictures at each validation."""

    def __init__(self, folder: Path, training: Digits, distortion: Distortion) -> None:
        """Raises ConfigError if TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                ["log.tensorboard needs TensorBoard: pip install tensorboard"]
            ) from None
        self.folder, self.open = folder, SummaryWriter
        self.images = watched_set(training, distortion).batch(slice(SHOWN))[0]  # (N, 1, C, C)

    def started(self, start: Start) -> None:
        """Begin, or go on behind what an earlier process wrote up to this step."""
        self.model = start.model
        self.writer = self.open(str(self.folder), purge_step=start.step + 1)

    def logged(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record; beside the transformer's, what it does."""
        kind, step = record["kind"], record["step"]
        for name in record.keys() - {"kind", "step", "pass"}:
            self.writer.add_scalar(f"{kind}/{name}", record[name], step)
        if kind == "transformer":
            self.writer.add_image("digits/before and after", self.page(), step)

    @torch.no_grad()
    def page(self) -> Tensor:
        """Inputs above outputs: (1, 2 C, N C)."""
        images = self.images.to(next(self.model.parameters()).device)
        outputs = F.interpolate(self.model.warp(images).output, images.shape[-2:])
        rows = [torch.cat([*each], dim=-1) for each in (images, outputs)]  # (1, C, N C)
        return torch.cat(rows, dim=1).clamp(0, 1).cpu()

    def stopped(self) -> None:
        """Close the file."""
        self.writer.close()
