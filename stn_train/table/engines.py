"""Engines: what trains the runs of a table, one after another here or many at once on Ray.

An engine takes jobs and reports, event by event, what happens to them. With either engine a run
leaves the same directory, and ends with the same bits as a run alone with as many threads.
"""

import gc
import importlib.util
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from typing_extensions import override

from stn_train.errors import ConfigError, InUseError, StnError
from stn_train.runs.directory import RunDirectory
from stn_train.runs.machine import choose_device, keep_freed_memory
from stn_train.runs.result import Result
from stn_train.runs.signals import StoppedError
from stn_train.table.paper import published_for
from stn_train.table.plan import Job, finished
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer, Start

EXTRA = "pip install 'stn_train[ray]'"

RAY_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""Ray sends no usage statistics, and does not build an environment anew on each node."""

SECONDS_BETWEEN_REPORTS = 10


class Progressed(NamedTuple):
    """A run has begun, or has got this far."""

    job: Job
    share: float
    """Fraction of its steps, from 0 to 1."""


class Warned(NamedTuple):
    """Something about a run may be wrong; it continues."""

    job: Job
    message: str


class Outcome(NamedTuple):
    """How a run ended: with a result, or with a problem."""

    job: Job
    result: Result | None
    problem: str
    """Empty if there is a result."""
    exit_code: int
    """The exit code of a command that trains this run alone."""
    elsewhere: bool = False
    """Another process is training it."""

    def __str__(self) -> str:
        """One line: 0.82 % (paper 0.5) in 534 s."""
        if self.result is None:
            return f"failed: {self.problem}"
        result, published = self.result, published_for(self.result)
        unit = result.measure.unit
        beside = "" if published is None else f" (paper {published})"
        parts = [f"{result.test_percent:.2f} {unit}{beside}"]
        if result.validation_percent is not None:
            parts.append(f"validation {result.validation_percent:.2f} {unit}")
        return f"{', '.join(parts)} in {result.total_seconds:.0f} s"


Event = Progressed | Warned | Outcome
Tell = Callable[[Event], None]


class Work(NamedTuple):
    """What the runs of a table have in common."""

    folder: Path
    """A run directory is a subfolder, named after its job."""
    device: str
    """As on the command line: ``auto`` is decided where the run runs."""
    data_dir: Path | None


class Engine(ABC):
    """Trains runs."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many runs it trains at a time."""

    @abstractmethod
    def run(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Train runs, each from its newest checkpoint; returns when all have ended.

        Every job has one Outcome, whatever happens to it. A signal ends all runs, after they have
        saved their state: StoppedError, KeyboardInterrupt or Terminated.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""


def engine_for(work: Work, at_once: int | None, address: str | None) -> Engine:
    """Ray, where it is installed and more than one run at a time is wanted; else this process.

    at_once: the most runs at a time, None for as many as there is room for. address: of a Ray
    cluster. Raises ConfigError if it is given and Ray is not installed.
    """
    if at_once == 1 and address is None:
        return InThisProcess(work)
    if importlib.util.find_spec("ray") is None:
        if address is not None:
            raise ConfigError([f"--address {address} needs Ray: {EXTRA}"])
        return InThisProcess(work)
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    if address in (None, "local"):  # on this machine alone: no port is open to the network
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from stn_train.table.cluster import OnRay  # reads these variables when it is imported

    return OnRay(work, at_once, address)


class InThisProcess(Engine):
    """Trains one run after another.

    Several such processes can share a folder: what another one is training is tried again after
    all other runs.
    """

    at_once = 1

    def __init__(self, work: Work) -> None:
        self.work = work

    @override
    def run(self, jobs: Sequence[Job], tell: Tell) -> None:
        keep_freed_memory()
        left = []
        for job in jobs:
            outcome = self.train(job, tell)
            if outcome.elsewhere:
                left.append(job)
            else:
                tell(outcome)
        for job in left:
            tell(self.train(job, tell))

    def train(self, job: Job, tell: Tell) -> Outcome:
        """Train one run."""
        return run_job(job, self.work, EventObserver(job, tell))

    @override
    def close(self) -> None:
        """Nothing is held."""


class EventObserver(Observer):
    """Makes events of what happens in a run."""

    def __init__(self, job: Job, tell: Tell) -> None:
        self.job, self.tell = job, tell

    @override
    def started(self, start: Start) -> None:
        self.steps = start.steps
        self.report(start.step)

    @override
    def stepped(self, step: int) -> None:
        if time.perf_counter() - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.report(step)

    @override
    def warned(self, message: str) -> None:
        self.tell(Warned(self.job, message))

    def report(self, step: int) -> None:
        """Tell how far the run is."""
        self.reported = time.perf_counter()
        self.tell(Progressed(self.job, step / self.steps))


def run_job(job: Job, work: Work, observer: Observer | None = None) -> Outcome:
    """Train one run in this process, unless another process has finished it in the meantime.

    Raises StoppedError if a signal asked for an end.
    """
    try:
        with RunDirectory.claim_or_reopen(work.folder / job.name) as run:
            if not finished(job, work.folder):
                device = choose_device(work.device)
                splits = job.config.load_splits(work.data_dir)
                train(job.config, splits, run, device, observer)
            return Outcome(job, Result.read(run.result), "", 0)
    except StoppedError:
        raise
    except InUseError as error:
        return Outcome(job, None, str(error), error.exit_code, elsewhere=True)
    except StnError as error:
        return Outcome(job, None, str(error), error.exit_code)
    except OSError as error:
        return Outcome(job, None, str(error), StnError.exit_code)
    except Exception as error:  # a bug of ours must not end the other runs
        return Outcome(job, None, f"{type(error).__name__}: {error}", StnError.exit_code)
    finally:
        # A schedule and its optimiser refer to each other: left to Python, their tensors would
        # stay for many runs.
        gc.collect()
