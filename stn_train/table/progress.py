"""How far the runs of a table are, and how long they will still take."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stn_train.config import Config
from stn_train.runs.directory import RunDirectory, is_record
from stn_train.table.engines import Event, Outcome, Progressed, Warned
from stn_train.table.plan import Job
from stn_train.trainer.observers import tell

SECONDS_BETWEEN_LINES = 60

TRAINING_IMAGES = 60_000
"""MNIST's, to estimate how many passes a number of steps is."""

CNN_COST = 10.0
"""A pass of a CNN takes about so many times as long as one of an FCN."""

LAST_BYTES = 4096
"""Enough of the end of metrics.jsonl for a whole line."""


class Progress:
    """Reports runs on standard error, and keeps what the command needs to know at the end.

    An engine calls it with each event.
    """

    def __init__(self, planned: Sequence[Job], left: Sequence[Job], folder: Path, quiet: bool):
        """planned: all runs that were asked for; left: those that have no result yet."""
        self.planned, self.left, self.quiet = len(planned), left, quiet
        self.finished = len(planned) - len(left)
        """How many runs have a result."""
        self.failed: list[Outcome] = []
        self.elsewhere = 0
        """How many runs other processes train."""
        self.time_left, self.told = TimeLeft(left, folder), time.perf_counter()

    def begin(self, how: str = "") -> None:
        """Tell what there is to do."""
        self.note(f"{self.planned} runs, {self.finished} of them finished already{how}")

    def note(self, line: str) -> None:
        """Tell something that is neither a warning nor a failure."""
        if not self.quiet:
            tell(line)

    def __call__(self, event: Event) -> None:
        """Take an event into account, and tell it; now and then, how far all are."""
        self.time_left.update(event)
        match event:
            case Outcome():
                self.end(event)
            case Warned(job, message):
                tell(f"warning: {job.name}: {message}")
            case Progressed() if time.perf_counter() - self.told >= SECONDS_BETWEEN_LINES:
                self.told = time.perf_counter()
                self.time_left.look()
                running = self.time_left.running.items()
                shares = ", ".join(f"{name} {share:.0%}" for name, share in running)
                self.note(f"{shares}; {self.time_left.minutes}")

    def end(self, outcome: Outcome) -> None:
        """Count a run that has ended, and tell how."""
        name = outcome.job.name
        if outcome.elsewhere:
            self.elsewhere += 1
            tell(f"{name} is left out: {outcome.problem}")
            return
        if outcome.result:
            self.finished += 1
        else:
            self.failed.append(outcome)
        line = f"{self.finished + len(self.failed)} of {self.planned}: {name} {outcome}"
        if outcome.result:
            self.note(f"{line}, {self.time_left.minutes}")
        else:
            tell(line)


class TimeLeft:
    """Estimates the time that is left from the speed so far.

    A run's directory shows how far it is. Where it does not yet, since a network file system
    shows files late, the engine's last report counts.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path) -> None:
        self.folder = folder
        self.jobs = {job.name: job for job in jobs}
        self.costs = {job.name: cost(job) for job in jobs}
        self.began: dict[str, float] = {}
        """Share of each run that was done before we started."""
        self.reached: dict[str, float] = {}
        self.started = time.perf_counter()

    def update(self, event: Event) -> None:
        """Take an event into account; a run that another process trains is not ours to wait for."""
        match event:
            case Progressed(job, share):
                self.began.setdefault(job.name, share)
                self.reached[job.name] = share
            case Outcome(job, elsewhere=True):
                del self.costs[job.name]
                self.reached.pop(job.name, None)
            case Outcome(job):
                self.reached[job.name] = 1.0

    def look(self) -> None:
        """Read how far the running runs are."""
        for name, share in self.running.items():
            read = share_done(RunDirectory(self.folder / name), self.jobs[name].config)
            self.reached[name] = max(share, read)

    @property
    def running(self) -> dict[str, float]:
        """The unfinished runs that have started, and the share of their steps that is done."""
        return {name: share for name, share in self.reached.items() if share < 1}

    @property
    def seconds(self) -> float:
        """Estimated seconds left; infinite before any progress."""
        done = left = 0.0
        for name, whole in self.costs.items():
            share = self.reached.get(name, 0.0)
            done += whole * (share - self.began.get(name, 0.0))
            left += whole * (1 - share)
        elapsed = time.perf_counter() - self.started
        return left / done * elapsed if done else float("inf")

    @property
    def minutes(self) -> str:
        """The same for a person."""
        return f"{self.seconds / 60:.0f} min left"


def share_done(run: RunDirectory, config: Config) -> float:
    """The fraction of its steps that a run has taken, by the last line of its metrics.jsonl."""
    record = last_record(run.metrics)
    if record is None:
        return 0.0
    settings = config.train
    if settings.epochs is not None:
        return float(record["pass"]) / settings.epochs
    return float(record["step"]) / (settings.steps or 1)


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole line of metrics.jsonl; None where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - LAST_BYTES))
            lines = stream.read().split(b"\n")[:-1]  # the last is empty, or half a line
        record = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return None
    return record if is_record(record) else None


def cost(job: Job) -> float:
    """The rough cost of a run, in passes of an FCN."""
    settings = job.config.train
    passes = settings.epochs or (settings.steps or 1) * settings.batch_size / TRAINING_IMAGES
    return passes * (1.0 if job.config.cell.backbone == "FCN" else CNN_COST)
