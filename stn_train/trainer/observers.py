"""Who is told about a run: a person at a terminal or reading a log, and TensorBoard.

Legend: N images, C channels, H height, W width.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from stn_train.config import Config
from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.models.network import Network, parameter_count
from stn_train.tasks.base import Task
from stn_train.tasks.examples import Examples


class Start(NamedTuple):
    """A run that is about to begin, or to be resumed."""

    config: Config
    model: Network
    """As it is evaluated: averaged, where the run averages."""
    step: int
    """Steps that are done already."""
    steps: int
    """Steps of the whole run."""


class Observer:
    """Is told how a run goes. Does nothing with it: override what matters."""

    def started(self, start: Start) -> None:
        """The run begins, or is resumed."""

    def stepped(self, step: int) -> None:
        """``step`` steps are done."""

    def logged(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl was written: kind, step, pass and what was measured."""

    def warned(self, message: str) -> None:
        """Something may be wrong; the run continues."""

    def stopped(self) -> None:
        """No more steps will be taken: all are done, or something went wrong."""


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


# For a person.

SECONDS_BETWEEN_LINES = 10


def progress(quiet: bool = False) -> Observer:
    """An observer for standard error: a bar on a terminal, lines in a log; quiet: only warnings."""
    if quiet:
        return Warnings()
    return ProgressBar() if sys.stderr.isatty() else ProgressLines()


class Warnings(Observer):
    """Prints warnings."""

    @override
    def warned(self, message: str) -> None:
        tqdm.write(f"warning: {message}", sys.stderr)  # above a bar, if there is one


class Progress(Warnings):
    """Also keeps the newest reading of each kind, and prints what begins and what comes next."""

    @override
    def started(self, start: Start) -> None:
        self.newest: dict[str, Any] = {}
        self.measure = start.config.task.measure
        self.steps, self.began, self.before = start.steps, time.perf_counter(), start.step
        self.step = start.step
        where = f"{next(start.model.parameters()).device.type}, seed {start.config.seed}"
        size = f"{parameter_count(start.model):,} parameters, {start.steps:,} steps"
        tell(f"{start.config.title}: {size} on {where}")

    @override
    def logged(self, record: dict[str, Any]) -> None:
        self.newest |= record
        self.step = record["step"]

    def reading(self) -> str:
        """The newest loss, validation and speed."""
        key, name, unit, _ = self.measure
        parts = {
            "loss": "loss {:.4f}",
            f"validation_{key}": f"validation {name} {{:.2f}} {unit}",
            "images_per_second": "{:,.0f} images/s",
        }
        shown = [text.format(self.newest[key]) for key, text in parts.items() if key in self.newest]
        return ", ".join(shown)

    @override
    def stopped(self) -> None:
        if self.step == self.steps:
            tell("testing ...")


class ProgressBar(Progress):
    """A bar with the time left."""

    @override
    def started(self, start: Start) -> None:
        super().started(start)
        self.bar = tqdm(
            total=start.steps, initial=start.step, unit="step", dynamic_ncols=True, leave=True
        )

    @override
    def stepped(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    @override
    def logged(self, record: dict[str, Any]) -> None:
        super().logged(record)
        self.bar.set_postfix_str(self.reading(), refresh=False)

    @override
    def stopped(self) -> None:
        self.bar.close()
        super().stopped()


class ProgressLines(Progress):
    """A line every few seconds, with the time left."""

    told, told_reading = 0.0, ""

    @override
    def logged(self, record: dict[str, Any]) -> None:
        super().logged(record)
        if time.perf_counter() - self.told >= SECONDS_BETWEEN_LINES and record["step"] < self.steps:
            self.tell_reading()

    @override
    def stopped(self) -> None:
        if self.newest:
            self.tell_reading()
        super().stopped()

    def tell_reading(self) -> None:
        """Print step, reading and time left, unless it would be the same line again."""
        self.told, done = time.perf_counter(), self.newest["step"]
        taken = done - self.before
        left = (self.told - self.began) / max(taken, 1) * (self.steps - done)
        where = f"step {done:,} of {self.steps:,} (pass {self.newest['pass']:.1f})"
        reading = f"{where}: {self.reading()}"
        if reading != self.told_reading:
            tell(f"{reading}, {left / 60:.1f} min left")
        self.told_reading = reading


def draws_on_a_bar(draws: Iterable[int]) -> Iterable[int]:
    """The draws of a test, one by one. On a terminal a bar counts them, and goes at the end."""
    return tqdm(draws, desc="testing", unit="draw", leave=False, disable=None, dynamic_ncols=True)


def teller(quiet: bool) -> Callable[[str], object]:
    """A function that prints what a command does: `tell`, or one that does nothing."""
    return (lambda _: None) if quiet else tell


def tell(line: str) -> None:
    """Print a line on standard error, at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


# TensorBoard.

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
