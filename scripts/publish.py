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

from document_tables import TABLES, collected, results_file

from stn_train.config import changed_settings, completed
from stn_train.config_file import load_config
from stn_train.grid import cell_name
from stn_train.published import TABLE_1, Cell, cell_title
from stn_train.result import cell_of, finished_runs
from stn_train.table import measured, table

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
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
    known = {identity(result): result for result in collected(name) if of_its_kind(name, result)}
    for path in [found.result for run in runs for found in finished_runs(run)]:
        result = json.loads(path.read_text())
        if not of_its_kind(name, result):
            sys.exit(f"{path}: not a run of the shipped config")
        if result.get("changes"):
            sys.exit(f"{path}: settings were changed on the way")
        if str(result["environment"]["commit"]).endswith("-dirty"):
            sys.exit(f"{path}: the code was not committed")
        del result["environment"]["command"]  # the config says it, without anybody's folders
        known[identity(result)] = result
    order = list(TABLE_1)
    ordered = sorted(known, key=lambda key: (order.index(cell_of(known[key])), key))
    path = results_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(known[key]) + "\n" for key in ordered))


def of_its_kind(name: str, result: dict[str, Any]) -> bool:
    """Whether a result of the table is one of the shipped config; results of a former recipe go.

    A setting that came later has the value, in an older result, that it has by default.
    """
    if name not in ("default", "paper"):
        return True
    overrides = [f"recipe={name}", f"seed={result['seed']}"]
    shipped = load_config(f"{cell_name(cell_of(result))}.yaml", overrides)
    return not changed_settings(completed(result["config"]), shipped.as_dict())


def identity(result: dict[str, Any]) -> str:
    """What tells one run from another: its config, seed included."""
    config = {key: value for key, value in completed(result["config"]).items() if key != "log"}
    return f"{result['seed']:09} {json.dumps(config, sort_keys=True)}"


def head(cell: Cell) -> str:
    """The comment that a cell's config opens with."""
    distortion = cell[0]
    lines = [
        f"{cell_title(cell)}: {DESCRIPTIONS[distortion]}.",
        f"Paper (Table 1): {TABLE_1[cell]} % test error"
        + ("." if distortion == "R" else f"; it does not define {distortion} in full."),
    ]
    runs = [result for result in collected("default") if cell_of(result) == cell]
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
