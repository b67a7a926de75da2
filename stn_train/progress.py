"""How a run goes, for a person watching: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from stn_train.models import parameter_count
from stn_train.observer import Observer, Start

SECONDS_BETWEEN_LINES = 10


def progress(quiet: bool = False) -> Observer:
    """What suits where standard error goes."""
    if quiet:
        return Quiet()
    return ProgressBar() if sys.stderr.isatty() else ProgressLines()


class Quiet(Observer):
    """Says nothing but that something is wrong."""

    def warned(self, message: str) -> None:
        """Say it above a bar, or in a line of its own."""
        tqdm.write(f"warning: {message}", sys.stderr)


class Progress(Quiet):
    """Keeps the newest reading of each kind."""

    def started(self, start: Start) -> None:
        """Say what is trained."""
        self.newest: dict[str, Any] = {}
        self.steps, self.began, self.before = start.steps, time.perf_counter(), start.step
        self.step = start.step
        where = f"{next(start.model.parameters()).device.type}, seed {start.config.seed}"
        size = f"{parameter_count(start.model):,} parameters, {start.steps:,} steps"
        tell(f"{start.config.cell}: {size} on {where}")

    def logged(self, record: dict[str, Any]) -> None:
        """Remember the reading."""
        self.newest |= record
        self.step = record["step"]

    def reading(self) -> str:
        """The newest loss, validation error and speed."""
        parts = {
            "loss": "loss {:.4f}",
            "validation_error_percent": "validation error {:.2f} %",
            "images_per_second": "{:,.0f} images/s",
        }
        shown = [text.format(self.newest[key]) for key, text in parts.items() if key in self.newest]
        return ", ".join(shown)

    def stopped(self) -> None:
        """Say what comes next."""
        if self.step == self.steps:
            tell("testing ...")


class ProgressBar(Progress):
    """A bar with the time left."""

    def started(self, start: Start) -> None:
        """Draw the bar."""
        super().started(start)
        self.bar = tqdm(
            total=start.steps, initial=start.step, unit="step", dynamic_ncols=True, leave=True
        )

    def stepped(self, step: int) -> None:
        """Move the bar."""
        self.bar.update(step - self.bar.n)

    def logged(self, record: dict[str, Any]) -> None:
        """Show the reading behind the bar."""
        super().logged(record)
        self.bar.set_postfix_str(self.reading(), refresh=False)

    def stopped(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
        super().stopped()


class ProgressLines(Progress):
    """A line now and then, with the time left."""

    told, told_reading = 0.0, ""

    def logged(self, record: dict[str, Any]) -> None:
        """Print the reading, if the last line is some time ago."""
        super().logged(record)
        if time.perf_counter() - self.told >= SECONDS_BETWEEN_LINES and record["step"] < self.steps:
            self.tell_reading()

    def stopped(self) -> None:
        """Print the last reading."""
        if self.newest:
            self.tell_reading()
        super().stopped()

    def tell_reading(self) -> None:
        """Where the run is, how it goes, and how long it will take."""
        self.told, done = time.perf_counter(), self.newest["step"]
        taken = done - self.before
        left = (self.told - self.began) / max(taken, 1) * (self.steps - done)
        where = f"step {done:,} of {self.steps:,} (pass {self.newest['pass']:.1f})"
        reading = f"{where}: {self.reading()}"
        if reading != self.told_reading:
            tell(f"{reading}, {left / 60:.1f} min left")
        self.told_reading = reading


def teller(quiet: bool) -> Callable[[str], object]:
    """Who says what a command does: `tell`, or nobody."""
    return (lambda _: None) if quiet else tell


def tell(line: str) -> None:
    """A line on standard error, at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
