"""Several runs at once, each in a process of its own.

On a CPU each process has its share of the cores: runs with a core each get through more digits
than one run on all cores, whose small layers cannot be shared out well (`scripts/benchmark.py`
measures it). On a GPU the processes take turns, and one works while another draws or validates.
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
from typing import Any, NamedTuple

import torch

from stn_train.data import load_splits
from stn_train.device import cores, keep_freed_memory
from stn_train.errors import InUseError, StnError
from stn_train.grid import Job, finished
from stn_train.observer import Observer, Start
from stn_train.published import TABLE_1
from stn_train.result import cell_of, read_result
from stn_train.run_directory import RunDirectory
from stn_train.trainer import train

SECONDS_BETWEEN_REPORTS = 10


class Reached(NamedTuple):
    """How far a run is."""

    job: Job
    share: float
    """Of its steps, from 0 to 1."""


class Warned(NamedTuple):
    """Something about a run is not as it should be; it continues."""

    job: Job
    message: str


class Outcome(NamedTuple):
    """What became of a run: its result, or why there is none."""

    job: Job
    result: dict[str, Any] | None
    problem: str
    """Empty where there is a result."""
    exit_code: int
    """What a command that trained this run alone would end with."""
    elsewhere: bool = False
    """Another process is training it."""

    def __str__(self) -> str:
        """In a line: 0.82 % (paper 0.5) in 534 s."""
        if self.result is None:
            return f"failed: {self.problem}"
        paper = TABLE_1[cell_of(self.result)]
        parts = [f"{self.result['test_error_percent']:.2f} % (paper {paper})"]
        if self.result["validation_error_percent"] is not None:
            parts.append(f"validation {self.result['validation_error_percent']:.2f} %")
        return f"{', '.join(parts)} in {self.result['total_seconds']:.0f} s"


Event = Reached | Warned | Outcome


def run_jobs(
    jobs: Sequence[Job], folder: Path, workers: int, device: torch.device, data_dir: Path | None
) -> Iterator[Event]:
    """Train these runs, ``workers`` at a time; yields what happens to them as it happens.

    A run that was stopped is resumed from its newest checkpoint. Stopped itself, by an exception or
    because the iterator is closed, it stops the runs, which have saved themselves.
    """
    threads = max(1, cores() // workers)
    context = multiprocessing.get_context("spawn")
    left = deque(jobs)
    running: dict[Connection, tuple[Job, SpawnProcess]] = {}
    try:
        while left or running:
            while left and len(running) < workers:
                job = left.popleft()
                here, there = context.Pipe(duplex=False)
                work = (job, folder, device, data_dir, threads, there)
                process = context.Process(target=run_in_process, args=work, daemon=True)
                process.start()
                there.close()  # now the process has the only one: `here` ends if it dies
                running[here] = job, process
            ended = wait(running)
            for here in [each for each in running if each in ended]:
                job, process = running[here]
                try:
                    told: Event = here.recv()
                except EOFError:
                    problem = "killed, perhaps for want of memory (fewer --jobs take less)"
                    told = Outcome(job, None, problem, StnError.exit_code)
                if isinstance(told, Outcome):
                    process.join()
                    del running[here]
                yield told
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
    report: Connection,
) -> None:
    """Train one run with this process's share of the cores, and report how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one hears Ctrl-C
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    report.send(run_job(job, folder, device, data_dir, Reporter(job, report)))


class Reporter(Observer):
    """Reports to the process that started this one: now and then how far a run is, and warnings."""

    def __init__(self, job: Job, report: Connection) -> None:
        self.job, self.report = job, report

    def started(self, start: Start) -> None:
        """The first report."""
        self.steps = start.steps
        self.tell(start.step)

    def stepped(self, step: int) -> None:
        """Another one, if the last is some time ago."""
        if time.perf_counter() - self.told >= SECONDS_BETWEEN_REPORTS:
            self.tell(step)

    def tell(self, step: int) -> None:
        """Report."""
        self.told = time.perf_counter()
        self.report.send(Reached(self.job, step / self.steps))

    def warned(self, message: str) -> None:
        """Pass it on."""
        self.report.send(Warned(self.job, message))


def end_with_parent() -> None:
    """End this process when the one that started it has been killed and cannot end it."""
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
    """Train one run in this process, unless another process has finished it meanwhile."""
    try:
        with RunDirectory.claim_or_reopen(folder / job.name) as run:
            if not finished(job, folder):
                splits = load_splits(job.config.data, data_dir)
                train(job.config, splits, run, device, observer)
            return Outcome(job, read_result(run.result), "", 0)
    except InUseError as error:
        return Outcome(job, None, str(error), error.exit_code, elsewhere=True)
    except StnError as error:
        return Outcome(job, None, str(error), error.exit_code)
    except OSError as error:
        return Outcome(job, None, str(error), StnError.exit_code)
    except Exception as error:  # a fault of the program: the other runs are not lost by it
        return Outcome(job, None, f"{type(error).__name__}: {error}", StnError.exit_code)


class TimeLeft:
    """An estimate from the work that has been done."""

    def __init__(self, missing: Sequence[Job]) -> None:
        self.costs = {job.name: cost(job) for job in missing}
        self.began: dict[str, float] = {}  # the share that a run had done before
        self.reached: dict[str, float] = {}
        self.started = time.perf_counter()

    def note(self, event: Event) -> None:
        """Note how far a run is, or that it has ended; what others train is no work of ours."""
        match event:
            case Reached(job, share):
                self.began.setdefault(job.name, share)
                self.reached[job.name] = share
            case Outcome(job, elsewhere=True):
                del self.costs[job.name]
            case Outcome(job):
                self.reached[job.name] = 1.0

    @property
    def running(self) -> dict[str, float]:
        """The runs that are under way, and the share of their steps that is done."""
        return {name: share for name, share in self.reached.items() if share < 1}

    @property
    def seconds(self) -> float:
        """What is left will take about so long; infinite before anything is done."""
        done = left = 0.0
        for name, whole in self.costs.items():
            share = self.reached.get(name, 0.0)
            done += whole * (share - self.began.get(name, 0.0))
            left += whole * (1 - share)
        taken = time.perf_counter() - self.started
        return left / done * taken if done else float("inf")


def cost(job: Job) -> float:
    """The work of a run, roughly, in passes of an FCN; one of a CNN takes about ten times that."""
    settings = job.config.train
    passes = settings.epochs or (settings.steps or 1) * settings.batch_size / 60_000
    return passes * (1.0 if job.config.backbone == "FCN" else 10.0)
