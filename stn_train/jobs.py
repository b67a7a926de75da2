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
from stn_train.device import keep_freed_memory
from stn_train.errors import InUseError, StnError
from stn_train.published import TABLE_1
from stn_train.run_directory import RunDirectory
from stn_train.table import Job, cell_of, finished, read_result
from stn_train.trainer import train


class Outcome(NamedTuple):
    """What became of a run: its result, or why there is none."""

    job: Job
    result: dict[str, Any] | None
    problem: str
    exit_code: int
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


def run_jobs(
    jobs: Sequence[Job], folder: Path, workers: int, device: torch.device, data_dir: Path | None
) -> Iterator[Outcome]:
    """Train these runs, ``workers`` at a time; yields what became of each as it ends.

    A run that was stopped goes on from its newest checkpoint. Stopped itself, by an exception or
    because the iterator is closed, it stops the runs, which have saved themselves.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
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
                    outcome: Outcome = here.recv()
                except EOFError:
                    problem = "killed, perhaps for want of memory (fewer --jobs take less)"
                    outcome = Outcome(job, None, problem, StnError.exit_code)
                process.join()
                del running[here]
                yield outcome
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
    report.send(run_job(job, folder, device, data_dir))


def end_with_parent() -> None:
    """End this process when the one that started it has been killed and cannot end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_job(job: Job, folder: Path, device: torch.device, data_dir: Path | None) -> Outcome:
    """Train one run in this process, unless another process has finished it meanwhile."""
    try:
        with RunDirectory.claim_or_reopen(folder / job.name) as run:
            if not finished(job, folder):
                train(job.config, load_splits(job.config.data, data_dir), run, device)
            return Outcome(job, read_result(run.result), "", 0)
    except InUseError as error:
        return Outcome(job, None, str(error), error.exit_code, elsewhere=True)
    except StnError as error:
        return Outcome(job, None, str(error), error.exit_code)
    except OSError as error:
        return Outcome(job, None, str(error), StnError.exit_code)


class TimeLeft:
    """An estimate from the work that has been done."""

    def __init__(self, missing: Sequence[Job]) -> None:
        self.done, self.left = 0.0, sum(map(cost, missing))
        self.started = time.perf_counter()

    def ended(self, job: Job) -> float:
        """Note that a run has ended; returns the seconds that the others will take."""
        self.done, self.left = self.done + cost(job), self.left - cost(job)
        return self.left / self.done * (time.perf_counter() - self.started)


def cost(job: Job) -> float:
    """The work of a run, roughly, in passes of an FCN; one of a CNN takes about ten times that."""
    settings = job.config.train
    passes = settings.epochs or (settings.steps or 1) * settings.batch_size / 60_000
    return passes * (1.0 if job.config.backbone == "FCN" else 10.0)
