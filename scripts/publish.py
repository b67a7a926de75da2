"""Write what was measured into the repository: no result is typed in by hand.

python scripts/publish.py collect NAME RUN...   runs, or folders of runs -> stn_train/results
python scripts/publish.py write                 stn_train/results -> tables in README and docs,
                                                heads of the configs

stn_train/results/speed.json is the output of scripts/benchmark.py --json.
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from stn_train.config_file import load_config
from stn_train.published import TABLE_1, model_name
from stn_train.table import (
    Cell,
    cell_name,
    cell_of,
    circumstances,
    markdown,
    measured,
    table,
)

ROOT = Path(__file__).parent.parent
RESULTS, CONFIGS = ROOT / "stn_train" / "results", ROOT / "configs"
BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"

DESCRIPTIONS = {
    "R": "digits rotated by up to 90 degrees",
    "RTS": "digits rotated, scaled and placed at random on 42 x 42 px",
    "P": "digits scaled and seen in perspective",
    "E": "digits scaled and bent elastically",
}

KINDS = ("default", "paper", "calibration", "validation")
"""default, paper: the table by that recipe. calibration: baselines under the readings of the paper
that were tried. validation: recipes that were tried, measured on validation digits."""


def collect(name: str, runs: list[Path]) -> None:
    """Gather the results of runs, one line each; of a run that is there already, the new one."""
    if name not in KINDS:
        sys.exit(f"{name}: can be {', '.join(KINDS)}")
    known = {identity(result): result for result in published(name) if of_its_kind(name, result)}
    for path in [found for run in runs for found in results_below(run)]:
        result = json.loads(path.read_text())
        if not of_its_kind(name, result):
            sys.exit(f"{path}: not a run of the shipped config")
        if str(result["environment"]["commit"]).endswith("-dirty"):
            sys.exit(f"{path}: the code was not committed")
        del result["environment"]["command"]  # the config says it, without anybody's folders
        known[identity(result)] = result
    order = list(TABLE_1)
    ordered = sorted(known, key=lambda key: (order.index(cell_of(known[key])), key))
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(known[key]) + "\n" for key in ordered)
    (RESULTS / f"{name}.jsonl").write_text(text)


def of_its_kind(name: str, result: dict[str, Any]) -> bool:
    """Whether a result of the table is one of the shipped config; results of a former recipe go."""
    if name not in ("default", "paper"):
        return True
    shipped = load_config(f"{cell_name(cell_of(result))}.yaml", [f"recipe={name}"]).as_dict()
    return bool(result["config"] == shipped | {"seed": result["seed"]})


def results_below(run: Path) -> list[Path]:
    """The result of a run, or of each finished run in a folder."""
    return [run / "result.json"] if (run / "result.json").exists() else [*run.glob("*/result.json")]


def identity(result: dict[str, Any]) -> str:
    """What tells one run from another: its config, seed included."""
    return f"{result['seed']:09} {json.dumps(result['config'], sort_keys=True)}"


def published(name: str) -> list[dict[str, Any]]:
    """The results gathered under a name."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def head(cell: Cell) -> str:
    """The comment that a cell's config opens with."""
    distortion, *model = cell
    lines = [
        f"{model_name(*model)} on {distortion}: {DESCRIPTIONS[distortion]}.",
        f"Paper (Table 1): {TABLE_1[cell]} % test error.",
    ]
    runs = [result for result in published("default") if cell_of(result) == cell]
    if runs:
        (row,), environment = table(runs), runs[0]["environment"]
        minutes = mean(run["train_seconds"] for run in runs) / 60
        seeds = ", ".join(str(run["seed"]) for run in runs)
        lines.append(
            f"Expect: {measured(row)} % after {row['passes']:g} passes ({minutes:.1f} min on an "
            f"{environment['hardware']}, threads: {environment['threads']}; seeds: {seeds})."
        )
    lines.append(f"Command: stn-train --config {cell_name(cell)}.yaml")
    return "".join(f"# {line}\n" for line in lines)


def error_table() -> str:
    """The paper's table with our numbers, in Markdown, and how they came about."""
    results = published("default")
    return f"{markdown(table(results))}\n{circumstances(results)}\n"


def cells_table() -> str:
    """Every cell of the default recipe, in Markdown."""
    columns = "error | paper | mean of ten draws | seeds | parameters | passes | minutes a run"
    lines = [f"| model | on | {columns} |", "|---" * 9 + "|"]
    results = published("default")
    for row in table(results):
        cell = row["distortion"], row["backbone"], row["transform"]
        runs = [result for result in results if cell_of(result) == cell]
        minutes = mean(run["train_seconds"] for run in runs) / 60
        values = [
            model_name(*cell[1:]),
            cell[0],
            measured(row),
            row["paper"],
            f"{row['draws_mean']:.2f}",
            " ".join(map(str, row["seeds"])),
            f"{runs[0]['parameters']:,}",
            f"{row['passes']:g}",
            f"{minutes:.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines) + f"\n\n{circumstances(results)}\n"


def calibration_table() -> str:
    """The readings of the paper that were tried on the baselines, in Markdown."""
    lines = [
        "| model | on | reading | steps | error | mean of ten draws | paper |",
        "|---" * 7 + "|",
    ]
    results = published("calibration")
    for result in results:
        cell, config = cell_of(result), result["config"]
        reading = ", ".join(
            f"{key} {'null' if value is None else format(value, '.4g')}"
            for key, value in config["distort"].items()
            if key in OPEN
        )
        values = [
            model_name(*cell[1:]),
            cell[0],
            reading,
            f"{result['steps']:,}",
            f"{result['test_error_percent']:.2f}",
            f"{result['draws_mean_percent']:.2f}",
            TABLE_1[cell],
        ]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines) + f"\n\n{circumstances(results)}\n"


OPEN = ("corner_std_px", "control_std_px", "control_span", "max_shift_px")
"""Settings of distortions that the paper leaves open."""


def validation_table() -> str:
    """The recipes that were tried, in Markdown: what each changes, and its validation error."""
    lines = ["| model | on | passes | changed | validation error | seeds |", "|---" * 6 + "|"]
    rows: list[tuple[Cell, float, list[str], str]] = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in published("validation"):
        seedless = json.dumps(result["config"] | {"seed": None}, sort_keys=True)
        groups.setdefault(seedless, []).append(result)
    for runs in groups.values():
        cell, config = cell_of(runs[0]), runs[0]["config"]
        recipe = load_config(f"{cell_name(cell)}.yaml").as_dict()
        changed = [
            f"{key} {value}"
            for section in ("model", "train")
            for key, value in config[section].items()
            if value != recipe[section][key] and key not in ("epochs", "validate_every")
        ]
        values = [
            model_name(*cell[1:]),
            cell[0],
            f"{runs[0]['passes']:g}",
            ", ".join(changed) or "nothing",
            f"{mean(run['validation_error_percent'] for run in runs):.2f}",
            " ".join(str(run["seed"]) for run in runs),
        ]
        rows.append((cell, runs[0]["passes"], changed, f"| {' | '.join(values)} |"))
    lines += [line for *_, line in sorted(rows)]  # of each cell, the recipe as it is first
    return "\n".join(lines) + f"\n\n{circumstances(published('validation'))}\n"


def speed_table() -> str:
    """The benchmark's rows, in Markdown, with the circumstances."""
    measured = json.loads((RESULTS / "speed.json").read_text())
    rows, where = measured["rows"], measured["environment"]
    lines = ["| distortion | images/s | torchvision, 2 workers | kornia |", "|---|---|---|---|"]
    for row in rows:
        if row["what"].startswith("distortion"):
            times = [faster(row, peer) for peer in ("torchvision", "kornia")]
            lines.append(f"| {row['what'].split()[1]} | {row['ours']:,.0f} | {' | '.join(times)} |")
    lines += [
        "\n| training step | images/s | plain PyTorch | tutorial's loop | of the matrix rate |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        share = [row["shares"][key] for key in row["shares"] if "matrix product" in key]
        if share:
            times = [faster(row, peer) for peer in ("plain", "tutorial")]
            cells = [row["what"], f"{row['ours']:,.0f}", *times, f"{100 * share[0]:.0f} %"]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for row in rows:
        if not row["shares"] and not row["what"].startswith("distortion"):
            value = f"{row['ours']:{',.0f' if row['ours'] > 100 else '.3g'}} {row['unit']}"
            peers = ", ".join(f"{faster(row, peer)} {peer}" for peer in row["peers"])
            lines.append(f"- {row['what']}: {value}{', ' if peers else ''}{peers}")
    lines.append(
        f"\n{where['threads']} threads of an {where['hardware']}, torch {where['torch']}, "
        f"torchvision {where['torchvision']}, commit {where['commit'][:9]}."
    )
    return "\n".join(lines) + "\n"


def faster(row: dict[str, Any], peer: str) -> str:
    """How many times as fast as a peer."""
    return f"{row['ours'] / row['peers'][peer]:.1f} x" if peer in row["peers"] else ""


TABLES = {
    "results": ("README.md", error_table),
    "speed": ("README.md", speed_table),
    "cells": ("docs/results.md", cells_table),
    "calibration": ("docs/calibration.md", calibration_table),
    "validation": ("docs/recipe.md", validation_table),
}
"""The parts of documents that are written here: name -> (document, what stands there)."""


def write() -> None:
    """Write the heads of the 32 cells' configs and the documents' tables."""
    for cell in TABLE_1:
        keys = zip(("distortion", "backbone", "transform"), cell, strict=True)
        body = "".join(f"{key}: {value}\n" for key, value in keys)
        path = CONFIGS / f"{cell_name(cell)}.yaml"
        path.write_text(f"{head(cell)}\n{body}")
        load_config(str(path))
    for name, (document, part) in TABLES.items():
        path = ROOT / document
        text, begin, end = path.read_text(), BEGIN.format(name), END.format(name)
        path.write_text(text.split(begin)[0] + begin + part() + end + text.split(end)[1])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["collect", name, *runs]:
            collect(name, [Path(run) for run in runs])
        case ["write"]:
            write()
        case _:
            sys.exit(__doc__)
