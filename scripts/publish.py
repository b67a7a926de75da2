"""Write what was measured into the repository: no result is typed in by hand.

python scripts/publish.py collect NAME RUN...   run directories -> stn_train/results/NAME.jsonl
python scripts/publish.py write                 stn_train/results -> README's tables, configs' heads

stn_train/results/speed.json is the output of scripts/benchmark.py --json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from stn_train.config_file import load_config
from stn_train.published import TABLE_1, model_name
from stn_train.table import Cell, cell_name, cell_of

ROOT = Path(__file__).parent.parent
RESULTS, CONFIGS, README = ROOT / "stn_train" / "results", ROOT / "configs", ROOT / "README.md"
BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"

DESCRIPTIONS = {
    "R": "digits rotated by up to 90 degrees",
    "RTS": "digits rotated, scaled and placed at random on 42 x 42 px",
    "P": "digits scaled and seen in perspective",
    "E": "digits scaled and bent elastically",
}

CHANGES = {"one_pass": ["train.epochs=1"], "default": []}
"""What the runs of each name change in the shipped configs, beside the seed."""


def collect(name: str, runs: list[Path]) -> None:
    """Gather the results of runs, one line each, in the order of the paper's table."""
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    for run, result in zip(runs, results, strict=True):
        shipped = load_config(f"{cell_name(cell_of(result))}.yaml", CHANGES[name]).as_dict()
        if result["config"] != shipped | {"seed": result["seed"]}:
            sys.exit(f"{run}: not a run of the shipped config")
        if result["environment"]["commit"].endswith("-dirty"):
            sys.exit(f"{run}: the code was not committed")
    if len({result["environment"]["source_sha256"] for result in results}) > 1:
        sys.exit("the runs are of different versions of the code")
    results.sort(key=lambda result: (list(TABLE_1).index(cell_of(result)), result["seed"]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(result) + "\n" for result in results)
    (RESULTS / f"{name}.jsonl").write_text(lines)


def published(name: str) -> list[dict[str, Any]]:
    """The results gathered under a name."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def head(cell: Cell) -> str:
    """The comment that a cell's config opens with."""
    distortion, backbone, transform = cell
    lines = [
        f"{model_name(backbone, transform)} on {distortion}: {DESCRIPTIONS[distortion]}.",
        f"Paper (Table 1): {TABLE_1[cell]} % test error.",
    ]
    for name in ("one_pass", "default"):
        for result in published(name):
            if cell_of(result) == cell:
                lines.append(f"Expect: {expectation(result)}")
    lines.append(f"Command: stn-train --config {cell_name(cell)}.yaml")
    return "".join(f"# {line}\n" for line in lines)


def expectation(result: dict[str, Any]) -> str:
    """What a run of the default recipe came to, in a line."""
    seconds, environment = result["train_seconds"], result["environment"]
    how_long = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    count = "1 pass" if result["passes"] == 1 else f"{result['passes']:g} passes"
    return (
        f"{result['draws_mean_percent']:.2f} % after {count} ({how_long} on "
        f"{environment['threads']} threads of an {environment['hardware']}, "
        f"seed {result['seed']})."
    )


def readme_table() -> str:
    """The measured cells beside the paper's numbers, in Markdown, with the circumstances."""
    rows = [
        "| config | paper | test error | mean of 10 draws | parameters | passes | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in published("default"):
        cell, (low, high) = cell_of(result), result["interval_95_percent"]
        rows.append(
            f"| `{cell_name(cell)}` | {TABLE_1[cell]} | {result['test_error_percent']:.2f} "
            f"({low:.2f} to {high:.2f}) | {result['draws_mean_percent']:.2f} "
            f"| {result['parameters']:,} | {result['passes']:g} "
            f"| {result['train_seconds'] / 60:.1f} min |"
        )
    for result in published("default")[:1]:
        where = result["environment"]
        rows.append(
            f"\nSeed {result['seed']}, {result['training_digits']:,} training digits, the weights "
            f"the run ended with; {where['threads']} threads of an {where['hardware']}, torch "
            f"{where['torch']}, commit {where['commit'][:9]}."
        )
    return "\n".join(rows) + "\n"


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


TABLES = {"results": readme_table, "speed": speed_table}
"""The parts of README that are written here."""


def write() -> None:
    """Write the heads of the 32 cells' configs and README's tables."""
    for cell in TABLE_1:
        keys = zip(("distortion", "backbone", "transform"), cell, strict=True)
        body = "".join(f"{key}: {value}\n" for key, value in keys)
        path = CONFIGS / f"{cell_name(cell)}.yaml"
        path.write_text(f"{head(cell)}\n{body}")
        load_config(str(path))
    text = README.read_text()
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        text = text.split(begin)[0] + begin + table() + end + text.split(end)[1]
    README.write_text(text)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["collect", name, *runs]:
            collect(name, [Path(run) for run in runs])
        case ["write"]:
            write()
        case _:
            sys.exit(__doc__)
