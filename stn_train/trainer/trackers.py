"""Trackers of experiments: trackio and Weights & Biases get every number of metrics.jsonl."""

import contextlib
import importlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import override

from stn_train.errors import ConfigError
from stn_train.trainer.observers import Observer, Start

PROJECT = "stn_train"
"""The project that runs appear in; their name is that of their directory."""


class Tracker(Observer):
    """Sends every number to a tracker. If the tracker fails, there is one warning, and no more.

    Nothing leaves the machine unless somebody asks for it: trackio keeps its numbers in the user's
    cache, wandb in the run directory until ``wandb sync`` or WANDB_MODE=online.
    """

    def __init__(self, name: str, folder: Path, warn: Callable[[str], object]) -> None:
        """Track the run in a folder; raises ConfigError if the tracker is not installed."""
        try:
            self.package = importlib.import_module(name)
        except ImportError:
            raise ConfigError([f"log.tracker is {name}: pip install {name}"]) from None
        self.name, self.folder, self.warn = name, folder, warn

    @override
    def started(self, start: Start) -> None:
        self.broken = False
        self.attempt(lambda: BEGINNINGS[self.name](self.package, self.folder, start))

    @override
    def logged(self, record: dict[str, Any]) -> None:
        kind, step = record["kind"], record["step"]
        numbers = {
            f"{kind}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step", "pass")
        }
        self.attempt(lambda: self.package.log(numbers, step=step))

    @override
    def stopped(self) -> None:
        self.attempt(lambda: self.package.finish())

    def attempt(self, action: Callable[[], object]) -> None:
        """Do something with the tracker, unless it has failed before; what it prints is dropped."""
        if self.broken:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                action()
        except Exception as error:  # other people's code, and perhaps a network
            self.broken = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self.warn(f"log.tracker: {self.name} failed and is told nothing more: {reason:.300}")


def begin_trackio(package: Any, folder: Path, start: Start) -> None:
    """Begin a run of trackio, or go on with that of an earlier process."""
    # A new run may have the name of an older one elsewhere.
    resume = "allow" if start.step else "never"
    package.init(project=PROJECT, name=folder.name, config=start.config.as_dict(), resume=resume)


def begin_wandb(package: Any, folder: Path, start: Start) -> None:
    """The same with Weights & Biases, offline unless WANDB_MODE says otherwise."""
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode == "offline":  # else it may report on itself all the same
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # wandb/offline-run-<time>-<id>: a resumed run goes on under the same id.
    earlier = sorted((folder / "wandb").glob("*run-*-*")) if start.step else []
    package.init(
        project=PROJECT,
        name=folder.name,
        id=earlier[-1].name.rpartition("-")[2] if earlier else None,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=start.config.as_dict(),
        settings=package.Settings(console="off", silent=True),
    )


BEGINNINGS: dict[str, Callable[[Any, Path, Start], None]] = {
    "trackio": begin_trackio,
    "wandb": begin_wandb,
}
"""What `log.tracker` can be: how a run begins there."""
