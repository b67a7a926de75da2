"""What a grid of runs takes: the rates that docs/cluster.md is computed from, and Ray's own cost.

    python scripts/cluster.py rates [--device cuda]   a step and the test of each cell, here
    python scripts/cluster.py runs [--runs 1000]      many tiny runs through Ray: time and memory
    python scripts/cluster.py jobs [--seeds 313]      10,000 jobs planned, and what is missing found

Each writes into scripts/results: rates.jsonl has a line for each cell and device, cluster.json the
rest. `publish.py write` makes the tables of docs/cluster.md of them.
"""

import json
import os
import platform
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from stn_train.cell import Cell
from stn_train.data.sources import load_splits
from stn_train.runs.environment import describe_environment
from stn_train.runs.files import write_json
from stn_train.runs.machine import choose_device, keep_freed_memory
from stn_train.table.engines import Event, Outcome, Work, engine_for
from stn_train.table.paper import TABLES
from stn_train.table.plan import jobs_for, missing, shipped_config
from stn_train.trainer.rehearsal import rehearse

RESULTS = Path(__file__).parent / "results"
RATES, CLUSTER = RESULTS / "rates.jsonl", RESULTS / "cluster.json"
MNIST = TABLES["mnist"]
CELLS = [cell for cell in MNIST.cells if cell.distortion in ("R", "RTS", "P", "E")]
"""The 32 of the paper's Table 1."""

TINY = [
    "data.training_digits=600",
    "data.test_digits=200",
    "backbone.FCN.hidden=32",
    "train.batch_size=50",
    "train.epochs=1",
    "evaluate.draws=1",
]
"""A run of 12 steps."""

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


def here(device: torch.device) -> dict[str, Any]:
    """The environment of a measurement, without anybody's folders."""
    environment = describe_environment(device)
    del environment["command"]
    return environment


@app.command("rates")
def measure_rates(device: str = "cpu", threads: int = 1) -> None:
    """Measure a step and the test of every cell by the paper's recipe, one run at a time.

    With one thread on a CPU, seconds are those of the processor: other programs add little. Cells
    that have a line for this device are passed over.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    where = choose_device(device)
    alone = where.type == "cpu" and threads == 1
    clock = time.process_time if alone else time.perf_counter
    splits = load_splits(shipped_config(MNIST, CELLS[0]).data)
    lines = [json.loads(line) for line in RATES.read_text().splitlines()] if RATES.exists() else []
    known = {Cell.read(line) for line in lines if line["environment"]["device"] == where.type}
    for cell in CELLS:
        if cell in known:
            continue
        config = shipped_config(MNIST, cell, ["recipe=paper"])
        measured = rehearse(config, splits, where, clock)
        line = {**cell.as_dict(), **measured._asdict(), "environment": here(where)}
        lines.append(line)
        typer.echo(f"{cell.title}: {1000 * measured.step_seconds:.1f} ms a step", err=True)
        RATES.write_text("".join(json.dumps(each) + "\n" for each in lines))


@app.command("runs")
def measure_runs(
    runs: Annotated[int, typer.Option(help="How many.")] = 1000,
    points: Annotated[int, typer.Option(help="How often memory is measured on the way.")] = 20,
) -> None:
    """Train many tiny runs through Ray, and measure time and memory on the way."""
    jobs = jobs_for(MNIST, CELLS[:1], range(1, runs + 1), TINY)
    memory: list[dict[str, Any]] = []
    ended, started = 0, time.perf_counter()
    ends: list[float] = []

    def count(event: Event) -> None:
        nonlocal ended
        if not isinstance(event, Outcome):
            return
        assert event.result is not None, event.problem
        ended += 1
        ends.append(time.perf_counter() - started)
        if ended % (runs // points) == 0 or ended == 4:
            memory.append({"runs": ended, **memory_mb()})
            typer.echo(json.dumps({"seconds": round(ends[-1]), **memory[-1]}), err=True)

    with tempfile.TemporaryDirectory() as folder:
        with closing(engine_for(Work(Path(folder), "cpu", None), None, None)) as engine:
            ready, at_once = time.perf_counter() - started, engine.at_once
            engine.run(jobs, count)
        seconds = time.perf_counter() - started
    write(
        "runs",
        runs=runs,
        steps_each=jobs_steps(),
        at_once=at_once,
        engine_ready_seconds=round(ready, 2),
        first_run_ended_seconds=round(ends[0], 2),
        seconds=round(seconds, 1),
        seconds_a_run=round(seconds / runs, 3),
        memory=memory,
    )


def jobs_steps() -> int:
    """The steps of a tiny run."""
    (job,) = jobs_for(MNIST, CELLS[:1], [1], TINY)
    settings = job.config.train
    return (settings.epochs or 1) * 600 // settings.batch_size


@app.command("jobs")
def measure_jobs(seeds: int = 313) -> None:
    """Plan the cells with many seeds, and find out which have no result yet."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()  # other programs on the machine add little to it
        jobs = jobs_for(MNIST, CELLS, range(1, seeds + 1), [])
        left = missing(jobs, Path(folder))
        seconds = time.process_time() - started
    assert len(left) == len(jobs)
    write("jobs", jobs=len(jobs), seconds=round(seconds, 2))


def write(name: str, **measured: Any) -> None:
    """Write a measurement into cluster.json, and print it."""
    known = json.loads(CLUSTER.read_text()) if CLUSTER.exists() else {}
    known[name] = measured | {"environment": here(torch.device("cpu")) | {"ray": ray_version()}}
    write_json(CLUSTER, known)
    typer.echo(json.dumps(measured))


def ray_version() -> str:
    """The version of Ray."""
    from importlib.metadata import version

    return version("ray")


def memory_mb() -> dict[str, float]:
    """Memory of this process, of Ray's own, and of the largest worker, in MB (proportional)."""
    found: dict[str, list[float]] = defaultdict(list)
    for pid in descendants(os.getpid()):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        kind = "driver" if pid == os.getpid() else kind_of(name)
        found[kind].append(pss / 1024)
    return {
        "driver": round(sum(found["driver"])),
        "ray": round(sum(found["ray"])),
        "board": round(sum(found["board"])),
        "worker": round(max(found["worker"], default=0)),
        "workers": len(found["worker"]),
    }


def kind_of(command: str) -> str:
    """What a process below the driver is, by its command line."""
    if command.startswith("ray::Board"):
        return "board"
    return "worker" if command.startswith(("ray::train_on_node", "ray::IDLE")) else "ray"


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    children: dict[int, list[int]] = defaultdict(list)
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children[parent].append(child)
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children[found[-1]]
    return found


if __name__ == "__main__":
    if platform.system() != "Linux":
        typer.echo("memory is read from /proc: run this on Linux", err=True)
    app()
