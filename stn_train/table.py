"""The paper's table: which runs it takes, and what they come to.

A cell is (distortion, backbone, transform), as in `stn_train.published.TABLE_1`.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from statistics import mean, stdev
from types import UnionType
from typing import Any, Literal, NamedTuple

from stn_train.config import Config, changed_settings, completed, refuse_other_config
from stn_train.config_file import load_config
from stn_train.errors import CheckpointError, ConfigError
from stn_train.published import COLUMNS, ROUNDING, TABLE_1, model_name
from stn_train.run_directory import RunDirectory
from stn_train.shipped import shipped_directory

Cell = tuple[str, str, str]

FIELDS = ["distortion", "backbone", "transform", "paper"]
FIELDS += ["mean", "std", "seeds", "passes", "draws_mean"]
"""The keys of a row, in order."""

RESULT: dict[str, type | UnionType] = {
    **dict.fromkeys(("distortion", "backbone", "transform", "recipe", "data"), str),
    **dict.fromkeys(("seed", "parameters", "training_digits", "test_digits"), int),
    **dict.fromkeys(("test_error_percent", "draws_mean_percent"), int | float),
    **dict.fromkeys(("passes", "train_seconds", "total_seconds"), int | float),
    **dict.fromkeys(("config", "environment"), dict),
    **dict.fromkeys(("draws_sha256", "draws_percent"), list),
    **dict.fromkeys(("mistaken_digits", "mistaken_on_draws"), list),
    "test_sha256": str,
    "validation_error_percent": int | float | None,
}
"""What is read of a result.json, and of which kind it must be."""

NAMES = {"Aff": "affine", "Proj": "projective", "TPS": "tps"}


class Job(NamedTuple):
    """A run of the grid."""

    name: str
    """Of its folder: the cell's config and the seed."""
    config: Config


def cell_name(cell: Cell) -> str:
    """The name of a cell's config: rts_affine, rts_affine_fcn, rts_cnn."""
    distortion, backbone, transform = cell
    if transform == "none":
        return f"{distortion}_{backbone}".lower()
    return f"{distortion.lower()}_{NAMES[transform]}" + ("_fcn" if backbone == "FCN" else "")


def cells_like(patterns: Sequence[str]) -> list[Cell]:
    """The cells that patterns such as RTS:*, *:FCN:none or E:CNN:TPS name; all if there are none.

    Raises ConfigError for a pattern that names none.
    """
    found: set[Cell] = set()
    for pattern in patterns or ["*"]:
        named = {cell for cell in TABLE_1 if fnmatchcase(":".join(cell), pattern)}
        if not named:
            example = "R:FCN:none, RTS:CNN:Aff; RTS:* is all of a distortion"
            raise ConfigError([f"--cells {pattern!r} names no cell; a cell is like {example}"])
        found |= named
    return [cell for cell in TABLE_1 if cell in found]


def jobs_for(cells: Sequence[Cell], seeds: Sequence[int], overrides: Sequence[str]) -> list[Job]:
    """The runs of these cells and seeds, the cheap ones first.

    Raises ConfigError for an override of what names a run.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in ("distortion", "backbone", "transform", "seed"):
            raise ConfigError([f"--set {override}: --cells and --seeds say that here"])
    jobs = [
        Job(
            f"{cell_name(cell)}-seed{seed}",
            load_config(
                str(shipped_directory() / f"{cell_name(cell)}.yaml"), [*overrides, f"seed={seed}"]
            ),
        )
        for seed in seeds
        for cell in cells
    ]
    return sorted(jobs, key=lambda job: job.config.backbone != "FCN")  # stable: seed by seed


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Those runs that are not finished; raises ConfigError if one is of another config."""
    return [job for job in jobs if not finished(job, folder)]


def finished(job: Job, folder: Path) -> bool:
    """Whether a run is complete; raises ConfigError if it is of another config."""
    path = RunDirectory(folder / job.name).result
    if not path.exists():
        return False
    refuse_other_config(path.parent, read_result(path)["config"], job.config.as_dict())
    return True


def results_in(folder: Path) -> list[dict[str, Any]]:
    """The result.json of each finished run in a folder, or of the one run whose folder it is.

    Raises CheckpointError if there is none, or one cannot be read.
    """
    return [read_result(run.result) for run in finished_runs(folder)]


def finished_runs(folder: Path) -> list[RunDirectory]:
    """The finished runs in a folder, or the one run whose folder it is.

    Raises CheckpointError if there is none.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist")
    own = folder / "result.json"
    paths = [own] if own.exists() else sorted(folder.glob("*/result.json"))
    if not paths:
        raise CheckpointError(f"{folder} holds no finished run")
    return [RunDirectory(path.parent) for path in paths]


def read_result(path: Path) -> dict[str, Any]:
    """A run's result; raises CheckpointError if it cannot be read."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(result, dict):
        raise CheckpointError(f"{path} cannot be read: it is not the result of a run")
    for key, kind in RESULT.items():
        if not isinstance(result.get(key), kind):
            raise CheckpointError(f"{path} cannot be read: {key} is missing or of another kind")
    return result


def reference_results() -> list[dict[str, Any]]:
    """Our own measured results, which ship with the package."""
    text = resources.files("stn_train").joinpath("results/default.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def cell_of(result: dict[str, Any]) -> Cell:
    """Which cell a result belongs to."""
    return result["distortion"], result["backbone"], result["transform"]


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell of the paper's that has results, in the paper's order.

    mean, std: of the test error on the first draw over seeds, in %; std is None for one seed.
    draws_mean: the same for the mean over the fixed draws.
    Raises ConfigError if runs of a cell differ in more than their seed.
    """
    rows = []
    for cell, paper in TABLE_1.items():
        runs = [result for result in results if cell_of(result) == cell]
        if not runs:
            continue
        refuse_unlike(cell, runs)
        errors = [run["test_error_percent"] for run in runs]
        row = [
            *cell,
            paper,
            mean(errors),
            stdev(errors) if len(errors) > 1 else None,
            sorted(run["seed"] for run in runs),
            max(run["passes"] for run in runs),
            mean(run["draws_mean_percent"] for run in runs),
        ]
        rows.append(dict(zip(FIELDS, row, strict=True)))
    return rows


def refuse_unlike(cell: Cell, runs: Sequence[dict[str, Any]]) -> None:
    """Raise ConfigError unless runs of a cell differ in their seed alone."""
    first, *others = (completed(run["config"] | {"seed": 0}) for run in runs)
    for other in others:
        changes = changed_settings(first, other)
        if changes:
            unlike = [f"{each.key} is {each.old} in one, {each.new} in another" for each in changes]
            told = f"{':'.join(cell)}: runs of different settings do not go into one cell:"
            raise ConfigError([told, *unlike])
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError([f"{':'.join(cell)}: two runs have the same seed"])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The paper's layout: a line for each model, a column for each distortion."""
    lines = [["model", *COLUMNS]]
    for model, cells in by_model(rows).items():
        lines.append([model, *("" if row is None else beside_paper(row) for row in cells)])
    return markdown_lines(lines)


def by_model(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any] | None]]:
    """The rows of each model of the paper's, one for each of COLUMNS; None where there is none."""
    by_cell = {cell_of(row): row for row in rows}
    models = dict.fromkeys(cell[1:] for cell in TABLE_1)
    return {
        model_name(*model): [by_cell.get((column, *model)) for column in COLUMNS]
        for model in models
    }


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them the head, as a Markdown table."""
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]]) + "\n"


def details(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each cell, below a head: what it came to, its size and its time."""
    head = "model,on,error,paper,mean of draws,seeds,parameters,passes,minutes a run"
    lines = [tuple(head.split(","))]
    for row in table(results):
        runs = [result for result in results if cell_of(result) == cell_of(row)]
        lines.append(
            (
                *name_and_errors(row),
                f"{row['draws_mean']:.2f}",
                " ".join(map(str, row["seeds"])),
                f"{runs[0]['parameters']:,}",
                f"{row['passes']:g}",
                f"{mean(run['train_seconds'] for run in runs) / 60:.1f}",
            )
        )
    return lines


def beside_paper(row: dict[str, Any]) -> str:
    """A cell: mean and standard deviation, the published value, the difference."""
    return f"{measured(row)} ({row['paper']}, {row['mean'] - row['paper']:+.2f})"


def verdict(row: dict[str, Any]) -> Literal["below", "same", "above"]:
    """How a cell's mean lies to the published value; same: its rounding may hide the difference."""
    difference = row["mean"] - row["paper"]
    if abs(difference) < ROUNDING:
        return "same"
    return "below" if difference < 0 else "above"


def measured(row: dict[str, Any]) -> str:
    """Mean and standard deviation of a cell."""
    return f"{row['mean']:.2f}" + ("" if row["std"] is None else f" ± {row['std']:.2f}")


def name_and_errors(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a line of a table begins with: model, distortion, measured and published error."""
    name = model_name(row["backbone"], row["transform"])
    return name, row["distortion"], measured(row), str(row["paper"])


def plain(rows: list[dict[str, Any]]) -> str:
    """A line for each cell, in columns."""
    lines = [("model", "on", "error in %", "paper", "minus paper", "all draws", "seeds", "passes")]
    for row in rows:
        lines.append(
            (
                *name_and_errors(row),
                f"{row['mean'] - row['paper']:+.2f}",
                f"{row['draws_mean']:.2f}",
                " ".join(map(str, row["seeds"])),
                f"{row['passes']:g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV; seeds are separated by blanks."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"seeds": " ".join(map(str, row["seeds"]))} for row in rows)
    return stream.getvalue()


def circumstances(results: list[dict[str, Any]]) -> str:
    """How results came about, in a sentence: seeds, digits, hardware, versions, commits."""

    def each(values: Iterable[Any]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    def environment(key: str) -> str:
        return each(result["environment"].get(key) for result in results)

    commits = (str(result["environment"].get("commit"))[:9] for result in results)
    return (
        f"Seeds: {each(sorted(result['seed'] for result in results))}; "
        f"training digits: {each(result['training_digits'] for result in results)} "
        f"({each(result['data'] for result in results)}); "
        f"{environment('hardware')}, threads: {environment('threads')}; "
        f"torch {environment('torch')}; commit: {each(commits)}."
    )
