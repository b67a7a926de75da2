"""Observers of a run: for a person at a terminal, and for one who reads its log."""

import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from tqdm import tqdm
from typing_extensions import override

from stn_train.config import Config
from stn_train.models.network import Network, parameter_count


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
    """Receives the events of a run and ignores them: override what matters."""

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


SECONDS_BETWEEN_LINES = 10
"""Of `ProgressLines`."""


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


def tell(line: str) -> None:
    """Print a line on standard error, at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
