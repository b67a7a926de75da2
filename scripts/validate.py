"""Validation errors of a recipe, of a change to it, or of one version of the numerics.

    python scripts/validate.py CELL... >> scripts/results/numerics.jsonl
    python scripts/validate.py CELL... --set model.st_jitter=0.05

Each cell is trained by its shipped config with the changes, but only for a few passes, on 50,000
digits with one thread, and measured on draws of the other 10,000. The test digits are not touched.
To compare two versions of the numerics, call it at two commits, on one machine.
"""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from stn_train.config_file import load_config
from stn_train.evaluator import score_percent
from stn_train.runs import result
from stn_train.runs.directory import RunDirectory
from stn_train.runs.environment import describe_environment
from stn_train.runs.machine import keep_freed_memory, name_of_precision
from stn_train.runs.signals import StopSignals
from stn_train.tasks.examples import Examples
from stn_train.trainer.loop import take_steps
from stn_train.trainer.state import State

CPU = torch.device("cpu")


def main(
    names: Annotated[list[str], typer.Argument(metavar="CELL...")],
    passes: Annotated[int, typer.Option(help="Over the digits.")] = 8,
    seeds: Annotated[tuple[int, int], typer.Option(help="The first and the last.")] = (1, 2),
    draws: Annotated[int, typer.Option(help="Of the validation digits.")] = 5,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Train, validate, and print a line for each run."""
    torch.set_num_threads(1)
    keep_freed_memory()
    version = getattr(result, "NUMERICS", 1)  # commits before it was recorded had the first
    for name, seed in itertools.product(names, range(seeds[0], seeds[1] + 1)):
        shortened = [f"seed={seed}", f"train.epochs={passes}", "data.validation=10000"]
        config = load_config(f"{name}.yaml", [*shortened, *(changes or [])])
        splits = config.load_splits()
        state = State(config, splits, CPU)
        with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
            run = RunDirectory.claim(Path(folder) / "run")
            take_steps(state, run, [], signals)
        examples = [
            Examples.drawn(config.task, splits.validation, "validation", draw)
            for draw in range(draws)
        ]
        line = {
            **config.cell.as_dict(),
            "seed": seed,
            "passes": passes,
            "changes": changes or [],
            "precision": name_of_precision(state.precision),
            "numerics": version,
            "seconds": round(state.seconds),
            "commit": describe_environment(CPU)["commit"],
            "draws_percent": [score_percent(state.evaluated, each) for each in examples],
        }
        typer.echo(json.dumps(line))


if __name__ == "__main__":
    typer.run(main)
