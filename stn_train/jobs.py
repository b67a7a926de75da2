"""Several runs at once, each in a process of its own.

On a CPU each process has its share of the cores: runs with a core each get through more digits
than one run on all cores, whose small layers cannot be shared out well (`scripts/benchmark.py`
measures it). On a GPU the processes take turns, and one works while another draws or validates.
"""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stn_train.config import DataSettings
from stn_train.data import Splits, load_splits
from stn_train.device import keep_freed_memory
from stn_train.errors import ConfigError, StnError
from stn_train.run_directory import RunDirectory
from stn_train.table import Job, read_result
from stn_train.trainer import changed_settings, train


class Outcome(NamedTuple):
    """What became of a run: its result, or why there is none."""

    job: Job
    result: dict[str, Any] | None
    problem: str
    exit_code: int


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    workers: int,
    device: torch.device,
    data_dir: Path | None,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Train these runs, ``workers`` at a time; ``tell`` is called as each ends.

    A run that was stopped goes on from its newest checkpoint. Raises StnError if a process dies.
    """
    outcomes = []
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(threads,))
    with pool:
        futures: dict[Future[tuple[str, int]], Job] = {
            pool.submit(run_job, job, folder, device, data_dir): job for job in jobs
        }
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    job, (problem, exit_code) = futures[future], future.result()
                    result = RunDirectory(folder / job.name).result
                    found = None if problem else read_result(result)
                    outcomes.append(Outcome(job, found, problem, exit_code))
                    tell(outcomes[-1])
        except BrokenProcessPool:
            raise StnError(
                "the process of a run was killed, perhaps for want of memory (fewer --jobs take "
                "less); run the command again to go on"
            ) from None
        except BaseException:
            # Not only what waits: what runs has saved itself, and would go on for minutes.
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Those runs that are not finished; raises ConfigError if one is of another config."""
    return [job for job in jobs if not finished(job, folder)]


def finished(job: Job, folder: Path) -> bool:
    """Whether a run is complete; raises ConfigError if it is of another config."""
    path = RunDirectory(folder / job.name).result
    if not path.exists():
        return False
    differences = changed_settings(read_result(path)["config"], job.config.as_dict())
    if differences:
        raise ConfigError([f"{path.parent} is a run of another config:", *differences])
    return True


def start_worker(threads: int) -> None:
    """Prepare a process: its share of the cores; the one that started it hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    keep_freed_memory()


def run_job(job: Job, folder: Path, device: torch.device, data_dir: Path | None) -> tuple[str, int]:
    """Train one run in this process; returns the problem, if any, and its exit code."""
    try:
        splits = splits_here(job.config.data, data_dir)
        train(job.config, splits, RunDirectory.claim_or_reopen(folder / job.name), device)
    except StnError as error:
        return str(error), error.exit_code
    except OSError as error:
        return str(error), StnError.exit_code
    return "", 0


@functools.cache
def splits_here(settings: DataSettings, data_dir: Path | None) -> Splits:
    """The digits, loaded once in each process."""
    return load_splits(settings, data_dir)


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
    """The work of a run, roughly: a pass of a CNN takes about eight times that of an FCN."""
    settings = job.config.train
    weight = 1.0 if job.config.backbone == "FCN" else 8.0
    return weight * (settings.steps or 215 * (settings.epochs or 1))
