"""Speed beside other libraries, and the time to the paper's error."""

import json
import math
from statistics import mean, median
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from document_tables.errors import unmeasured
from document_tables.results import MNIST, RESULTS, collected
from document_tables.text import mean_and_error, with_notes
from stn_train.cell import Cell
from stn_train.table.rows import markdown_lines
from stn_train.visualiser.style import GREY


def speed_table() -> str:
    """The benchmark's rows, in Markdown, with the circumstances."""
    measured = json.loads((RESULTS / "speed.json").read_text())
    rows = measured["rows"]
    distortions = [["distortion", "images/s", "torchvision, 2 workers", "kornia"]]
    steps = [["training step", "images/s", *STEP_PEERS.values(), "of the matrix rate"]]
    parts = [["training step", "ms", "distortion", "looks", "classifier", "backward", "optimiser"]]
    others = []
    for row in rows:
        kind, _, what = row["what"].partition(" ")
        rate, shares = f"{row['ours']:,.0f}", row["shares"]
        if kind == "distortion":
            times = [faster(row, peer) for peer in ("torchvision", "kornia")]
            distortions.append([what, rate, *times])
        elif kind == "step,":
            times = [faster(row, peer) for peer in STEP_PEERS]
            steps.append([what, rate, *times, percent(shares, "of the matrix rate")])
            each = [percent(shares, f"of the step: {part}") for part in parts[0][2:]]
            parts.append([what, f"{1000 * STEP_DIGITS / row['ours']:.1f}", *each])
        else:
            value = f"{row['ours']:{',.0f' if row['ours'] > 100 else '.3g'}} {row['unit']}"
            peers = ", ".join(f"{faster(row, peer)} {peer}" for peer in row["peers"])
            others.append(f"- {row['what']}: {value}{', ' if peers else ''}{peers}")
    tables = [markdown_lines(lines) for lines in (distortions, steps, parts)]
    return "\n".join([*tables, *others, f"\n{machine(measured['environment'])}\n"])


STEP_PEERS = {"float32": "plain", "autocast": "plain, autocast", "tutorial": "tutorial's loop"}
"""Peers of a training step in the benchmark -> what the table calls them."""

STEP_DIGITS = 256
"""Digits in a step of the benchmark."""


def percent(shares: dict[str, float], key: str) -> str:
    """A share in %; nothing where it was not measured."""
    return f"{100 * shares[key]:.0f} %" if key in shares else ""


def faster(row: dict[str, Any], peer: str) -> str:
    """How many times as fast as a peer."""
    return f"{row['ours'] / row['peers'][peer]:.1f} x" if peer in row["peers"] else ""


def machine(*environments: dict[str, Any]) -> str:
    """The circumstances of measurements on one machine, in a sentence, with every commit."""
    first = environments[0]
    count = first["threads"]
    threads = "One thread" if count == 1 else f"{count} threads"
    versions = f"torch {first['torch']}, torchvision {first['torchvision']}"
    commits = ", ".join(dict.fromkeys(each["commit"][:9] for each in environments))
    return f"{threads} of an {first['hardware']}, {versions}, commit {commits}."


def time_to_result() -> list[dict[str, Any]]:
    """What scripts/time_to_result.py measured, in the order of the table."""
    order = list(MNIST.values)
    return sorted(collected("time_to_result"), key=lambda line: order.index(Cell.read(line)))


def time_table() -> str:
    """The seconds to the paper's error, cell by cell, in Markdown."""
    rows = [("model", "on", "paper", "passes", "seconds to it", "lowest measured")]
    measured, hours = time_to_result(), 0.0
    for line in measured:
        seconds, cell = line["curve"][-1][0], Cell.read(line)
        hours += seconds / 3600
        reached = f"{seconds:.0f}" if line["reached"] else f"not in {seconds:.0f}"
        lowest = min(error for _, error in line["curve"])
        passes = str(len(line["curve"]))
        paper = str(line["paper"])
        rows.append((cell.model, cell.distortion, paper, passes, reached, f"{lowest:.2f}"))
    count = sum(line["reached"] for line in measured)
    summary = (
        f"{count} of {len(MNIST.cells)} cells reached the paper's error; all measured runs "
        f"together took {hours:.2f} hours of one thread."
    )
    missing = unmeasured([Cell.read(line) for line in measured], MNIST)
    told = machine(*(line["environment"] for line in measured))
    return with_notes(markdown_lines(rows), summary, missing, told)


def time_chart() -> Figure:
    """Validation error, as a multiple of the paper's, over the seconds of training."""
    measured = time_to_result()
    columns = [name for name in MNIST.columns if name in {line["distortion"] for line in measured}]
    rows = math.ceil(len(columns) / 2)
    figure = Figure(figsize=(9, 3.2 * rows), dpi=130, layout="constrained")
    axes = [*figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat]
    panels = dict(zip(columns, axes, strict=False))
    for index in range(len(columns), len(axes)):
        axes[index].set_axis_off()
        axes[index - 2].tick_params(labelbottom=True)  # nothing below has the labels
    colours = dict(zip(MNIST.rows, matplotlib.color_sequences["tab10"], strict=False))
    for line in measured:
        cell = Cell.read(line)
        seconds, errors = zip(*line["curve"], strict=True)
        ratios = [error / line["paper"] for error in errors]
        colour = colours[cell.backbone, cell.transform]
        axis = panels[cell.distortion]
        axis.plot(seconds, ratios, color=colour, label=cell.model, linewidth=1)
        if line["reached"]:
            axis.plot(seconds[-1], ratios[-1], "o", color=colour, markersize=4)
    for name, axis in panels.items():
        axis.axhline(1, color=GREY, linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=name)
        axis.grid(alpha=0.3)
    drawn = {line.get_label(): line for axis in panels.values() for line in axis.get_lines()}
    named = {cell.model: drawn[cell.model] for cell in map(Cell.read, measured)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4, fontsize=8)
    figure.supxlabel("seconds of training", fontsize=10)
    figure.supylabel("validation error / the paper's test error", fontsize=10)
    return figure


def numerics_table() -> str:
    """Validation errors by the former and the present numerics, in Markdown."""
    runs = collected("numerics")
    versions = sorted({run["numerics"] for run in runs})
    rows = [("model", "on", "seed", *(f"numerics {version}" for version in versions))]
    means: dict[tuple[Cell, int], dict[int, str]] = {}
    for run in runs:
        draws = run["draws_percent"]
        means.setdefault((Cell.read(run), run["seed"]), {})[run["numerics"]] = mean_and_error(draws)
    for (cell, seed), texts in means.items():
        shown = [texts.get(version, "") for version in versions]
        rows.append((cell.model, cell.distortion, str(seed), *shown))
    all_draws = {  # in the same order of runs
        version: [mean(run["draws_percent"]) for run in runs if run["numerics"] == version]
        for version in versions
    }
    rows.append(("mean", "", "", *(f"{mean(errors):.3f}" for errors in all_draws.values())))
    first, last = all_draws.values()
    differences = [after - before for before, after in zip(first, last, strict=True)]
    told = f"{mean_and_error(differences, '+')} (mean and standard error over the runs)"
    return f"{markdown_lines(rows)}\nDifference: {told}.\n"


def waiting_table() -> str:
    """What waiting threads cost beside a busy program, in Markdown."""
    turns = collected("waiting")
    rates: dict[tuple[str, bool], dict[str, list[float]]] = {}
    for turn in turns:
        beside = rates.setdefault((turn["backbone"], turn["beside"]), {})
        beside.setdefault(turn["waits"], []).append(turn["images_per_second"])
    waits = list(next(iter(rates.values())))
    rows = [("a run of", "beside", *(f"threads {wait}, images/s" for wait in waits))]
    for (backbone, beside), found in rates.items():
        shown = [f"{median(found[wait]):,.0f}" for wait in waits]
        rows.append((f"ST-{backbone} Aff on R", "a busy program" if beside else "nothing", *shown))
    where = turns[0]
    told = f"{where['cores']} cores ({where['hardware']}), a thread each; torch {where['torch']}"
    return f"{markdown_lines(rows)}\nMedian of {turns[-1]['turn'] + 1} turns; {told}.\n"
