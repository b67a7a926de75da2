"""Eight processes at once on one grid, one run directory and one data directory; see test_races.

python races.py WHAT FOLDER prints what came of it as JSON. Children are forked: torch is imported
once.
"""

import gzip
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from conftest import CPU
from kills import CONFIG, in_child, random_splits

from stn_train import jobs, mnist
from stn_train.errors import RunDirectoryError
from stn_train.grid import Job
from stn_train.run_directory import RunDirectory

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


def grid(folder: Path) -> dict[str, Any]:
    """Each goes through the same four runs of a grid."""
    chosen = [Job(f"run-{seed}", CONFIG.model_copy(update={"seed": seed})) for seed in (1, 2, 3, 4)]
    splits, train = random_splits(), jobs.train

    def noted(config: Any, *args: Any) -> Any:
        note(folder / "log", f"trained {config.seed}")
        return train(config, *args)

    for name, stand_in in {"load_splits": lambda *_: splits, "train": noted}.items():
        setattr(jobs, name, stand_in)

    def work() -> None:
        for job in chosen:
            outcome = jobs.run_job(job, folder, CPU, None)
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


def data(folder: Path) -> dict[str, Any]:
    """Each downloads MNIST into the same empty folder, from files at hand."""
    source = Path(os.environ[mnist.ENVIRONMENT_VARIABLE])
    raw = source / "MNIST" / "raw" if (source / "MNIST").is_dir() else source
    served, target = folder / "served", folder / "data"
    served.mkdir()
    for file in mnist.FILES:
        found = mnist.present(raw, file)
        assert found is not None
        content = found.read_bytes() if found.suffix else gzip.compress(found.read_bytes(), 1)
        (served / f"{file.name}.gz").write_bytes(content)

    def fetch(_: str, path: Path, __: int) -> None:
        note(folder / "log", path.name)
        shutil.copy(served / path.name, path)

    mnist.fetch = fetch
    os.environ.pop(mnist.ENVIRONMENT_VARIABLE)

    def work() -> None:
        training, test = mnist.load_mnist(target)
        assert (len(training), len(test)) == (60_000, 10_000)

    codes = race(work)
    names = sorted(path.name for path in (target / "MNIST" / "raw").iterdir())
    return {"codes": codes, "names": names}


if __name__ == "__main__":
    torch.set_num_threads(1)
    races = {"grid": grid, "directory": directory, "data": data}
    sys.stdout.write(json.dumps(races[sys.argv[1]](Path(sys.argv[2]))))
