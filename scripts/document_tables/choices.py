"""What was tried: readings of the paper, recipes, and ideas from elsewhere."""

import json
from statistics import mean
from typing import Any

from document_tables.results import MNIST, collected, results_of
from document_tables.text import with_notes
from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.config_changes import changed_settings
from stn_train.config_file import load_config
from stn_train.runs.result import Result
from stn_train.table.rows import circumstances, markdown_lines


def calibration_table() -> str:
    """The readings of the paper that were tried on the baselines, in Markdown."""
    lines: list[tuple[str, ...]] = [
        ("model", "on", "reading", "steps", "test error", "mean of ten draws", "paper")
    ]
    results = results_of("calibration")
    for result in results:
        distortion = Config.from_run(result.config).distortion
        reading = ", ".join(
            f"{key} {'null' if value is None else format(value, '.4g')}"
            for key, value in distortion.model_dump(mode="json").items()
            if key in OPEN
        )
        lines.append(
            (
                result.cell.model,
                result.cell.distortion,
                reading,
                f"{result.steps:,}",
                f"{result.test_percent:.2f}",
                f"{result.draws_mean_percent:.2f}",
                str(MNIST.published(result.cell)),
            )
        )
    return f"{markdown_lines(lines)}\n{circumstances(results)}\n"


OPEN = ("corner_std_px", "control_std_px", "control_span", "max_shift_px")
"""Settings of distortions that the paper leaves open."""


def readings_table() -> str:
    """Cells by the paper's recipe, as it ships and under other readings, in Markdown."""
    head = ("model", "on", "reading", "test error", "mean of ten draws", "paper", "seed")
    lines, results = [head], results_of("readings")
    by_paper = {(run.cell, run.seed): run for run in results_of("paper")}
    for result in results:
        shipped = by_paper[result.cell, result.seed]
        changes = changed_settings(shipped.config, result.config)
        for run, value in ((shipped, "old"), (result, "new")):
            reading = ", ".join(f"{each.key} {getattr(each, value)}" for each in changes)
            errors = f"{run.test_percent:.2f}", f"{run.draws_mean_percent:.2f}"
            place = run.cell.model, run.cell.distortion, reading
            lines.append((*place, *errors, str(MNIST.published(run.cell)), str(run.seed)))
    return f"{markdown_lines(lines)}\n{circumstances(results)}\n"


def validation_table() -> str:
    """The recipes that were tried, in Markdown: what each changes, and its validation error."""
    head = ("model", "on", "passes", "changed", "validation error", "seeds")
    rows: list[tuple[Cell, float, list[str], tuple[str, ...]]] = []
    groups: dict[str, list[Result]] = {}
    for result in results_of("validation"):
        seedless = json.dumps(result.config | {"seed": None}, sort_keys=True)
        groups.setdefault(seedless, []).append(result)
    for runs in groups.values():
        cell = runs[0].cell
        recipe = tried_settings(load_config(f"{cell.file_name}.yaml"))
        changed = [
            f"{key} {value}"
            for key, value in tried_settings(Config.from_run(runs[0].config)).items()
            if value != recipe[key] and key not in ("epochs", "validate_every")
        ]
        errors = [run.validation_percent for run in runs if run.validation_percent is not None]
        line = (
            cell.model,
            cell.distortion,
            f"{runs[0].passes:g}",
            ", ".join(changed) or "nothing",
            f"{mean(errors):.2f}",
            " ".join(str(run.seed) for run in runs),
        )
        rows.append((cell, runs[0].passes, changed, line))
    lines = [head, *(line for *_, line in sorted(rows))]  # of each cell, the recipe as it is first
    return f"{markdown_lines(lines)}\n{circumstances(results_of('validation'))}\n"


def levers_table() -> str:
    """Changes to the default recipe that other work has found useful, in Markdown.

    In levers.jsonl each change is described in words.
    """
    return changes_table("levers")


def short_readings_table() -> str:
    """Other readings of the paper's recipe, judged on validation digits, in Markdown."""
    return changes_table("short_readings", "recipe=paper")


def changes_table(name: str, *common: str) -> str:
    """What scripts/validate.py measured with changes to a recipe, in Markdown.

    The difference is from the recipe without the change, after as many passes, with the same seeds
    and in the same precision, if that was measured. name: of the results. common: changes that all
    lines share; they are left out.
    """
    errors: dict[tuple[Cell, int, str, str], dict[int, float]] = {}
    runs = collected(name)
    for line in runs:
        changed = "; ".join(each for each in line["changes"] if each not in common)
        key = Cell.read(line), line["passes"], line["precision"], changed
        errors.setdefault(key, {})[line["seed"]] = mean(line["draws_percent"])
    columns = "model", "on", "passes", "precision", "changed"
    lines = [(*columns, "validation error", "difference", "seeds")]
    for (cell, passes, precision, changed), by_seed in sorted(errors.items()):
        plain = errors.get((cell, passes, precision, ""), {})
        differences = [error - plain[seed] for seed, error in by_seed.items() if seed in plain]
        difference = f"{mean(differences):+.2f}" if changed and differences else ""
        seeds = " ".join(map(str, sorted(by_seed)))
        error = f"{mean(by_seed.values()):.2f}"
        place = cell.model, cell.distortion, str(passes), precision
        lines.append((*place, changed or "nothing", error, difference, seeds))
    commits = ", ".join(sorted({run["commit"][:9] for run in runs}))
    told = f"Training digits: 50000 (mnist); threads: 1; commit: {commits}."
    return with_notes(markdown_lines(lines), told)


def tried_settings(config: Config) -> dict[str, Any]:
    """The settings of network and training, by the last part of their keys."""
    found: dict[str, Any] = {}
    for section in (config.backbone, config.model, config.train):
        found |= section.model_dump(mode="json")
    return found
