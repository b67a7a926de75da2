"""How long training takes until the validation error is at or below the paper's, cell by cell.

    python scripts/time_to_result.py [CELL...] [--jobs 2] [--out FILE]

Every cell is trained by its shipped config on 50,000 digits, with one thread, and validated on the
other 10,000 after each pass; it stops where the paper's error is reached. Seconds are those that
the processor worked on it, validation included, so that other programs on the machine add little.
Each cell adds a line to the results. One that is there already is passed over, so that the script
can be stopped and called again. The test digits are not touched.
"""

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typing_extensions import override

from stn_train.cell import Cell
from stn_train.config_file import load_config
from stn_train.runs.directory import RunDirectory
from stn_train.runs.environment import describe_environment
from stn_train.runs.machine import keep_freed_memory
from stn_train.runs.result import NUMERICS
from stn_train.table.paper import TABLES
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer, Start

OUT = Path(__file__).parent / "results" / "time_to_result.jsonl"
MNIST = TABLES["mnist"]
CPU = torch.device("cpu")
VALIDATION = ("data.validation=10000", "train.validate_every=1")


class ReachedError(Exception):
    """The validation error is at or below the paper's."""


class Curve(Observer):
    """Notes the validation errors, and ends the training at the first that is low enough."""

    def __init__(self, enough_percent: float) -> None:
        self.enough_percent, self.begun = enough_percent, 0.0
        self.points: list[tuple[float, float]] = []
        """(seconds, validation error in %)."""

    @override
    def started(self, start: Start) -> None:
        self.begun = time.process_time()

    @override
    def logged(self, record: dict[str, Any]) -> None:
        if record["kind"] == "validation":
            error = record["validation_error_percent"]
            self.points.append((round(time.process_time() - self.begun, 2), error))
            if error <= self.enough_percent:
                raise ReachedError


def measure(name: str) -> dict[str, Any]:
    """The line of a cell, by the name of its config."""
    torch.set_num_threads(1)
    keep_freed_memory()
    config = load_config(f"{name}.yaml", VALIDATION)
    paper = MNIST.published(config.cell)
    curve = Curve(paper)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.claim(Path(folder) / "run")
        try:
            train(config, config.load_splits(), run, CPU, curve)
            reached = False
        except ReachedError:
            reached = True
    environment = describe_environment(CPU)
    del environment["command"]  # the folders of a machine do not belong into a result
    return {
        **config.cell.as_dict(),
        "recipe": config.recipe,
        "seed": config.seed,
        "numerics": NUMERICS,
        "paper": paper,
        "reached": reached,
        "curve": curve.points,
        "environment": environment,
    }


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[CELL]...")] = None,
    jobs: Annotated[int, typer.Option(help="Cells at once, each with one thread.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the lines are added.")] = OUT,
) -> None:
    """Measure the time to the paper's error, cell by cell."""
    lines = out.read_text().splitlines() if out.exists() else []
    done = {Cell.read(line) for line in map(json.loads, lines)}
    wanted = names or [cell.file_name for cell in MNIST.cells if cell not in done]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for future in as_completed([pool.submit(measure, name) for name in wanted]):
            line = future.result()
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            seconds, error = line["curve"][-1]
            cell = Cell.read(line)
            verb = "reached" if line["reached"] else "not reached"
            what = f"{cell.title:20} {error:5.2f} % after {seconds:6.1f} s: {line['paper']} {verb}"
            typer.echo(f"{time.strftime('%H:%M:%S')} {what}")


if __name__ == "__main__":
    typer.run(main)
