"""What a run costs beside another busy program, by how its threads wait for each other.

    python scripts/waiting.py > scripts/results/waiting.jsonl

One run takes training steps on all cores, beside nothing and beside a program that keeps one core
busy. Its threads spin while they wait, as OpenMP has them do by default, or they sleep, as the
commands have them do. All take turns; the machine must be idle otherwise.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from benchmark import rate_together

from stn_train.runs.environment import describe_environment

WAITS: dict[str, dict[str, str]] = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # what GCC's OpenMP does if it is told nothing
    "sleeping": {"OMP_WAIT_POLICY": "passive"},
}
"""How threads wait: the variables that OpenMP is given."""


@contextmanager
def busy_program(there: bool) -> Iterator[None]:
    """Another program that keeps one core busy, if it is to be there."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if there else None
    try:
        yield
    finally:
        if program:
            program.kill()
            program.wait()


def main(
    turns: Annotated[int, typer.Option(help="Of each run.")] = 3,
    seconds: Annotated[float, typer.Option(help="Of a turn, in which steps are counted.")] = 12.0,
) -> None:
    """Measure, and print a line for each turn."""
    environment = describe_environment(torch.device("cpu"))
    known = {key: environment[key] for key in ("commit", "torch", "hardware", "cores")}
    for turn in range(turns):
        for backbone in ("FCN", "CNN"):
            for beside in (False, True):
                for waits, variables in WAITS.items():
                    with busy_program(beside):
                        rate = rate_together(backbone, "cpu", seconds, variables=variables)
                    line = {"backbone": backbone, "beside": beside, "waits": waits, "turn": turn}
                    typer.echo(json.dumps(line | {"images_per_second": round(rate)} | known))


if __name__ == "__main__":
    typer.run(main)
