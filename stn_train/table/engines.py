"""Several runs at once, each in a process of its own.

`run_jobs` is all that the command line knows: jobs go in, events come out. On a CPU each process
has its share of the cores: runs with one core each get through more images than one run on all
cores, because the small layers do not parallelise well (`scripts/benchmark.py` measures it). On a
GPU the processes take turns: one computes while another draws or validates.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import torch
from typing_extensions import override

from stn_train.errors import InUseError, StnError
from stn_train.runs.directory import RunDirectory
from stn_train.runs.machine import cores, keep_freed_memory
from stn_train.runs.result import Result
from stn_train.table.paper import published_for
from stn_train.table.plan import Job, finished
from stn_train.trainer import train
from stn_train.trainer.observers import Observer, Start

SECONDS_BETWEEN_REPORTS = 10

TRAINING_IMAGES = 60_000
"""MNIST's, to estimate how many passes a number of steps is."""

CNN_COST = 10.0
"""A pass of a CNN takes about so many times as long as one of an FCN."""


class Progressed(NamedTuple):
    """A run has got this far."""

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


def run_jobs(
    jobs: Sequence[Job], folder: Path, workers: int, device: torch.device, data_dir: Path | None
) -> Iterator[Event]:
    """Train runs, ``workers`` at a time, in subfolders of ``folder``; yields events as they happen.

    A run that was interrupted is resumed from its newest checkpoint. When this iterator is closed
    or an exception is raised in it, the running processes are terminated; they save a checkpoint
    first.
    """
    threads = max(1, cores() // workers)
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    running: dict[Connection, tuple[Job, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                here, there = context.Pipe(duplex=False)
                work = (job, folder, device, data_dir, threads, there)
                process = context.Process(target=run_in_process, args=work, daemon=True)
                process.start()
                there.close()  # only the process holds it now: `here` ends when the process does
                running[here] = job, process
            ready = wait(running)
            for here in [each for each in running if each in ready]:
                job, process = running[here]
                try:
                    event: Event = here.recv()
                except EOFError:
                    problem = "killed, perhaps out of memory (try fewer --jobs)"
                    event = Outcome(job, None, problem, StnError.exit_code)
                if isinstance(event, Outcome):
                    process.join()
                    del running[here]
                yield event
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def run_in_process(
    job: Job,
    folder: Path,
    device: torch.device,
    data_dir: Path | None,
    threads: int,
    events: Connection,
) -> None:
    """Train one run with this process's share of the cores; its events go through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which terminates us
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    events.send(run_job(job, folder, device, data_dir, Reporter(job, events)))


class Reporter(Observer):
    """Sends warnings and, every few seconds, the progress of a run to the parent process."""

    def __init__(self, job: Job, events: Connection) -> None:
        self.job, self.events = job, events

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
        self.events.send(Warned(self.job, message))

    def report(self, step: int) -> None:
        """Send how far the run is."""
        self.reported = time.perf_counter()
        self.events.send(Progressed(self.job, step / self.steps))


def end_with_parent() -> None:
    """End this process when its parent was killed and could not end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_job(
    job: Job,
    folder: Path,
    device: torch.device,
    data_dir: Path | None,
    observer: Observer | None = None,
) -> Outcome:
    """Train one run in this process, unless another process has finished it in the meantime."""
    try:
        with RunDirectory.claim_or_reopen(folder / job.name) as run:
            if not finished(job, folder):
                splits = job.config.load_splits(data_dir)
                train(job.config, splits, run, device, observer)
            return Outcome(job, Result.read(run.result), "", 0)
    except InUseError as error:
        return Outcome(job, None, str(error), error.exit_code, elsewhere=True)
    except StnError as error:
        return Outcome(job, None, str(error), error.exit_code)
    except OSError as error:
        return Outcome(job, None, str(error), StnError.exit_code)
    except Exception as error:  # a bug of ours must not end the other runs
        return Outcome(job, None, f"{type(error).__name__}: {error}", StnError.exit_code)


class TimeLeft:
    """Estimates the time that is left from the speed so far."""

    def __init__(self, jobs: Sequence[Job]) -> None:
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
            case Outcome(job):
                self.reached[job.name] = 1.0

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


def cost(job: Job) -> float:
    """The rough cost of a run, in passes of an FCN."""
    settings = job.config.train
    passes = settings.epochs or (settings.steps or 1) * settings.batch_size / TRAINING_IMAGES
    return passes * (1.0 if job.config.cell.backbone == "FCN" else CNN_COST)
