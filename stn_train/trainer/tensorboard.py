"""TensorBoard: curves and pictures of a run.

Legend: N images, C channels, H height, W width.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.tasks.base import Task
from stn_train.tasks.examples import Examples
from stn_train.trainer.observers import Observer, Start

SHOWN = 16
"""Images in a picture."""


class TensorBoard(Observer):
    """Writes event files: every number of metrics.jsonl, and pictures at each validation."""

    def __init__(self, folder: Path, task: Task, training: Images) -> None:
        """Raises ConfigError if TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                ["log.tensorboard needs TensorBoard: pip install tensorboard"]
            ) from None
        self.folder, self.open = folder, SummaryWriter
        self.inputs = Examples.watched(task, training).batch(slice(SHOWN)).inputs  # (N, C, H, W)

    @override
    def started(self, start: Start) -> None:
        # Goes on behind what an earlier process wrote up to this step.
        self.model = start.model
        self.writer = self.open(str(self.folder), purge_step=start.step + 1)

    @override
    def logged(self, record: dict[str, Any]) -> None:
        kind, step = record["kind"], record["step"]
        for name in record.keys() - {"kind", "step", "pass"}:
            self.writer.add_scalar(f"{kind}/{name}", record[name], step)
        if kind == "transformer":
            self.writer.add_image("digits/before and after", self.page(), step)

    @torch.no_grad()
    def page(self) -> Tensor:
        """Inputs, below them what each transformer returned: (1 or 3, rows * H, N * W)."""
        self.model.eval()
        inputs = self.inputs.to(next(self.model.parameters()).device)
        maps = [self.model.projected(inputs)]
        for name, warp in self.model.trace(inputs).warps.items():
            in_front = not name.startswith("classifier.")
            maps.append(self.model.shown(warp.output) if in_front else warp.output)
        pictures = [F.interpolate(picture(each), inputs.shape[-2:]) for each in maps]
        channels = max(each.shape[1] for each in pictures)
        rows = [torch.cat([*each.expand(-1, channels, -1, -1)], dim=-1) for each in pictures]
        return torch.cat(rows, dim=1).clamp(0, 1).cpu()

    @override
    def stopped(self) -> None:
        self.writer.close()


def picture(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as grey or coloured images: of feature maps, the mean over channels."""
    return maps if maps.shape[1] in (1, 3) else maps.mean(dim=1, keepdim=True)
