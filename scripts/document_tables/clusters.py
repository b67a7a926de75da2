"""How long the whole grid takes, and what Ray costs."""

import heapq
import json
from statistics import mean
from typing import Any

from document_tables.results import RESULTS, collected
from stn_train.table.rows import markdown_lines

CELLS_OF_THE_PLAN, SEEDS_OF_THE_PLAN = 32, 10


PLACES = (
    ("2 cores", "cpu", 2),
    ("64 cores", "cpu", 64),
    ("1 GPU", "cuda", 1),
    ("8 GPUs", "cuda", 8),
)
"""Where the plan is computed for: name, device, and how many of it, each with a run at a time."""


def grid_table() -> str:
    """How long the paper's recipe takes for all cells, by the rates measured, in Markdown."""
    measured = collected("rates")
    lines = [("on", "a step of an FCN", "a step of a CNN", "core or GPU hours", "done after")]
    notes = []
    for place, device, count in PLACES:
        rates = [line for line in measured if line["environment"]["device"] == device]
        if len(rates) < CELLS_OF_THE_PLAN:
            how = f"`python scripts/cluster.py rates --device {device}`"
            lines.append((place, "", "", "not measured", f"{how} measures it"))
            continue
        seconds = [line["total_seconds"] for line in in_order(rates) * SEEDS_OF_THE_PLAN]
        steps = [
            1000 * mean(each["step_seconds"] for each in rates if each["backbone"] == backbone)
            for backbone in ("FCN", "CNN")
        ]
        shown = [f"{each:.1f} ms" for each in steps]
        total, ends = sum(seconds) / 3600, makespan(seconds, count) / 3600
        lines.append((place, *shown, f"{total:,.0f}", days_and_hours(ends)))
        first = rates[0]["environment"]
        what = first["hardware"] + (f", threads: {first['threads']}" if device == "cpu" else "")
        notes.append(f"{what}; torch {first['torch']}")
    told = f"Measured one run at a time on {'; '.join(dict.fromkeys(notes))}.\n" if notes else ""
    return f"{markdown_lines(lines)}\n{told}"


def in_order(rates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates in the order that a plan trains cells in: those of the FCN first."""
    return sorted(rates, key=lambda line: str(line["backbone"]) != "FCN")


def makespan(seconds: list[float], places: int) -> float:
    """When the last of some runs has ended, each given to the place that is free first."""
    free = [0.0] * places
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def days_and_hours(hours: float) -> str:
    """A time that a person waits."""
    return f"{hours / 24:.0f} days" if hours >= 72 else f"{hours:.0f} hours"


def ray_table() -> str:
    """What many tiny runs through Ray take, in Markdown."""
    path = RESULTS / "cluster.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    lines = []
    if "jobs" in found:
        jobs = found["jobs"]
        lines.append(("jobs planned, and filtered by what is finished", f"{jobs['jobs']:,}"))
        lines.append(("seconds for that", f"{jobs['seconds']:.1f}"))
    if "runs" in found:
        runs = found["runs"]
        points = [runs["memory"][index] for index in (0, 1, -1)]
        lines += [
            (
                f"runs of {runs['steps_each']} steps, {runs['at_once']} at a time",
                f"{runs['runs']:,}",
            ),
            ("seconds until Ray is ready", f"{runs['engine_ready_seconds']:.1f}"),
            ("seconds until the first run has ended", f"{runs['first_run_ended_seconds']:.1f}"),
            ("seconds a run, all of them", f"{runs['seconds_a_run']:.2f}"),
        ]
        what = {
            "driver": "the command's process",
            "ray": "Ray's own processes",
            "worker": "the largest worker",
        }
        for key, name in what.items():
            when = ", ".join(f"{point['runs']:,}" for point in points)
            memory = ", ".join(f"{point[key]}" for point in points)
            lines.append((f"MB of {name} after {when} runs", memory))
    if not lines:
        return "Not measured yet.\n"
    environment = next(iter(found.values()))["environment"]
    where = f"{environment['hardware']}, {environment['cores']} cores; Ray {environment['ray']}"
    return f"{markdown_lines([('measured', ''), *lines])}\n{where}.\n"
