"""Eight processes at once on the runs of one table and on one run directory; see test_races.

python races.py WHAT FOLDER prints what came of it as JSON. Children are forked: torch is imported
once.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kills import CONFIG, in_child, random_splits

from stn_train.data import sources
from stn_train.errors import RunDirectoryError
from stn_train.runs.directory import RunDirectory
from stn_train.table import engines
from stn_train.table.plan import Job

PROCESSES = 8


def race(work: Any) -> list[int]:
    """Have eight children do it from the same moment on; returns their exit codes."""
    begin = time.time() + 0.3

    def at_once() -> None:
        time.sleep(max(0.0, begin - time.time()))
        work()

    children = [in_child(at_once) for _ in range(PROCESSES)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def note(path: Path, line: str) -> None:
    """Append a line; so short a one is written whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def table(folder: Path) -> dict[str, Any]:
    """Each goes through the same four runs of a table."""
    chosen = [Job(f"run-{seed}", CONFIG.model_copy(update={"seed": seed})) for seed in (1, 2, 3, 4)]
    splits, train = random_splits(), engines.train

    def noted(config: Any, *args: Any) -> Any:
        note(folder / "log", f"trained {config.seed}")
        return train(config, *args)

    mock.patch.object(sources, "load_splits", return_value=splits).start()
    mock.patch.object(engines, "train", noted).start()

    def work() -> None:
        for job in chosen:
            outcome = engines.run_job(job, engines.Work(folder, "cpu", None))
            note(folder / "log", "elsewhere" if outcome.elsewhere else f"has {job.config.seed}")
            assert outcome.elsewhere or outcome.result is not None, outcome.problem

    codes = race(work)
    results = [json.loads((folder / job.name / "result.json").read_text()) for job in chosen]
    return {
        "codes": codes,
        "log": (folder / "log").read_text().splitlines(),
        "seeds": [result["seed"] for result in results],
    }


def directory(folder: Path) -> dict[str, Any]:
    """Each claims the same folder for a run, twenty times over."""
    winners = []
    for number in range(20):
        path, log = folder / str(number), folder / f"log-{number}"

        def work(path: Path = path, log: Path = log) -> None:
            try:
                with RunDirectory.claim(path) as run:
                    note(log, "mine")
                    time.sleep(0.02)
                    run.config.write_text("taken")
            except RunDirectoryError:
                pass

        assert race(work) == [0] * PROCESSES
        winners.append(len(log.read_text().splitlines()))
    return {"winners": winners}


if __name__ == "__main__":
    torch.set_num_threads(1)
    races = {"table": table, "directory": directory}
    sys.stdout.write(json.dumps(races[sys.argv[1]](Path(sys.argv[2]))))
