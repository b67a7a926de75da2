"""The tables of README and docs, written from the committed results."""

import json
import math
from enum import StrEnum
from pathlib import Path
from statistics import mean
from typing import Any

from typer.main import get_command

from stn_train.cli_model import run_eval, run_export, run_visualize
from stn_train.cli_table import run_table
from stn_train.cli_train import run_train
from stn_train.config import SECTIONS, Config
from stn_train.config_file import load_config
from stn_train.distortions import DISTORTIONS
from stn_train.grid import cell_name
from stn_train.published import TABLE_1, Cell, cell_title, model_name
from stn_train.result import cell_of
from stn_train.settings import Settings
from stn_train.table import circumstances, details, markdown, markdown_lines, table, verdict

RESULTS = Path(__file__).parent.parent / "stn_train" / "results"


def results_file(name: str) -> Path:
    """Where the results gathered under a name are kept, one a line."""
    return RESULTS / f"{name}.jsonl"


def collected(name: str) -> list[dict[str, Any]]:
    """The results gathered under a name."""
    path = results_file(name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def error_table() -> str:
    """The paper's table with our numbers, in Markdown, and how they came about."""
    results = collected("default")
    rows = table(results)
    return f"{markdown(rows)}\n{above_the_paper(rows)}\n\n{circumstances(results)}\n"


def above_the_paper(rows: list[dict[str, Any]]) -> str:
    """Which cells' means are above the published values, in a sentence."""
    above = [row for row in rows if row["mean"] > row["paper"]]
    names = ", ".join(
        cell_title(cell_of(row)) + " (by less than the paper rounds)" * (verdict(row) == "same")
        for row in above
    )
    return f"Above the paper: {len(above)} of {len(rows)} cells{names and ': '}{names}."


def cells_table() -> str:
    """Every cell of the default recipe, in Markdown."""
    results = collected("default")
    return f"{markdown_lines(details(results))}\n{circumstances(results)}\n"


def calibration_table() -> str:
    """The readings of the paper that were tried on the baselines, in Markdown."""
    lines: list[tuple[str, ...]] = [
        ("model", "on", "reading", "steps", "test error", "mean of ten draws", "paper")
    ]
    results = collected("calibration")
    for result in results:
        cell, config = cell_of(result), result["config"]
        reading = ", ".join(
            f"{key} {'null' if value is None else format(value, '.4g')}"
            for key, value in config["distort"].items()
            if key in OPEN
        )
        lines.append(
            (
                model_name(*cell[1:]),
                cell[0],
                reading,
                f"{result['steps']:,}",
                f"{result['test_error_percent']:.2f}",
                f"{result['draws_mean_percent']:.2f}",
                str(TABLE_1[cell]),
            )
        )
    return f"{markdown_lines(lines)}\n{circumstances(results)}\n"


OPEN = ("corner_std_px", "control_std_px", "control_span", "max_shift_px")
"""Settings of distortions that the paper leaves open."""


def validation_table() -> str:
    """The recipes that were tried, in Markdown: what each changes, and its validation error."""
    head = ("model", "on", "passes", "changed", "validation error", "seeds")
    rows: list[tuple[Cell, float, list[str], tuple[str, ...]]] = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in collected("validation"):
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
        line = (
            model_name(*cell[1:]),
            cell[0],
            f"{runs[0]['passes']:g}",
            ", ".join(changed) or "nothing",
            f"{mean(run['validation_error_percent'] for run in runs):.2f}",
            " ".join(str(run["seed"]) for run in runs),
        )
        rows.append((cell, runs[0]["passes"], changed, line))
    lines = [head, *(line for *_, line in sorted(rows))]  # of each cell, the recipe as it is first
    return f"{markdown_lines(lines)}\n{circumstances(collected('validation'))}\n"


def speed_table() -> str:
    """The benchmark's rows, in Markdown, with the circumstances."""
    measured = json.loads((RESULTS / "speed.json").read_text())
    rows, where = measured["rows"], measured["environment"]
    distortions = [["distortion", "images/s", "torchvision, 2 workers", "kornia"]]
    for row in rows:
        if row["what"].startswith("distortion"):
            times = [faster(row, peer) for peer in ("torchvision", "kornia")]
            distortions.append([row["what"].split()[1], f"{row['ours']:,.0f}", *times])
    head = ["training step", "images/s", "plain PyTorch", "tutorial's loop", "of the matrix rate"]
    steps = [head]
    for row in rows:
        share = [row["shares"][key] for key in row["shares"] if "matrix product" in key]
        if share:
            times = [faster(row, peer) for peer in ("plain", "tutorial")]
            steps.append([row["what"], f"{row['ours']:,.0f}", *times, f"{100 * share[0]:.0f} %"])
    lines = [markdown_lines(distortions), markdown_lines(steps)]
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


def flags_table() -> str:
    """The commands with their arguments and flags, in Markdown, as --help tells them."""
    parts = []
    for name, command in commands().items():
        lines = [("flag", "meaning"), *map(flag_line, command.params)]
        flags = markdown_lines([line for line in lines if "completion" not in line[0]])
        parts.append(f"### {name}\n\n{command.help}\n\n{flags}")
    return "\n".join(parts)


def flag_line(parameter: Any) -> tuple[str, str]:
    """An argument or a flag of a command, and what it is for."""
    flags = [flag for flag in parameter.opts if flag.startswith("-")]
    text = " ".join(parameter.help.split()).replace("<", "\\<").replace("|", "\\|")
    if isinstance(parameter.default, StrEnum):
        text += f" One of {', '.join(f'`{each}`' for each in type(parameter.default))}."
    return ", ".join(f"`{flag}`" for flag in flags or [parameter.metavar or parameter.name]), text


def settings_table() -> str:
    """Every key of a config with what it is by default and what it means, in Markdown."""
    choices = ({"backbone": "FCN"}, {"backbone": "CNN"}, {"backbone": "CNN", "recipe": "paper"})
    configs = [Config.model_validate(choice) for choice in choices]
    own = [name for name in Config.model_fields if name not in (*SECTIONS, "distort", "backbone")]
    lines = [("key", "FCN", "CNN", "paper", "allowed", "meaning")]
    lines += [setting_line("", name, *configs) for name in ("backbone", *own)]
    for section, kind in SECTIONS.items():
        values = [getattr(config, section) for config in configs]
        lines += [setting_line(f"{section}.", name, *values) for name in kind.model_fields]
    parts = [markdown_lines(lines)]
    for name, distortion in DISTORTIONS.items():
        if name != "none":
            literal = distortion()
            lines = [("key", "default", "allowed", "meaning")]
            lines += [setting_line("distort.", field, literal) for field in distortion.model_fields]
            parts.append(f"With `distortion: {name}`:\n\n{markdown_lines(lines)}")
    return "\n".join(parts)


def setting_line(prefix: str, name: str, *settings: Settings) -> tuple[str, ...]:
    """A key, its value in each of these settings, what it can be, and its documentation."""
    text = " ".join((type(settings[0]).model_fields[name].description or "").split())
    shown = [written(each.model_dump(mode="json")[name]) for each in settings]
    can_be = allowed(type(settings[0]).model_json_schema()["properties"][name])
    return f"`{prefix}{name}`", *shown, can_be, text.replace("|", "\\|")


def allowed(schema: dict[str, Any]) -> str:
    """What a setting can be, by its JSON schema, where that says more than the kind of value."""
    kind = schema.get("anyOf", [schema])[0]  # the other is null
    if kind.get("type") == "boolean":
        return "true, false"
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
    high, below = kind.get("maximum", math.inf), kind.get("exclusiveMaximum", math.inf)
    if above is not None:
        return f"above {above}"
    if low is None:
        return ""
    if high < WITHOUT_BOUND:
        return f"{low} to {high}"
    return f"{low} to below {below}" if below < WITHOUT_BOUND else f"from {low}"


WITHOUT_BOUND = 1e18
"""Larger bounds are what a number can hold."""


def written(value: Any) -> str:
    """A setting's value as it is written in a config, floats shortened."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def commands() -> dict[str, Any]:
    """Every command by the name it is called with; click's object of each."""
    single = {
        "stn-train": run_train,
        "stn-eval": run_eval,
        "stn-visualize": run_visualize,
        "stn-export": run_export,
    }
    found = {name: get_command(app) for name, app in single.items()}
    below = get_command(run_table).commands
    return found | {f"stn-table {name}": command for name, command in below.items()}


TABLES = {
    "results": ("README.md", error_table),
    "speed": ("docs/speed.md", speed_table),
    "flags": ("docs/reference.md", flags_table),
    "settings": ("docs/reference.md", settings_table),
    "cells": ("docs/results.md", cells_table),
    "calibration": ("docs/calibration.md", calibration_table),
    "validation": ("docs/recipe.md", validation_table),
}
"""The parts of documents that are written here: name -> (document, what stands there)."""
