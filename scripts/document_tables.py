"""The tables of README and docs, written from the committed results."""

import heapq
import json
import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, get_args

import matplotlib
from matplotlib.figure import Figure
from pydantic import ValidationError
from torch import Tensor
from typer.main import get_command

from stn_train.cell import Cell
from stn_train.cli.export import run_demo, run_export
from stn_train.cli.model import run_eval, run_visualize
from stn_train.cli.table import run_table
from stn_train.cli.train import run_train
from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.data.clutter import Clutter
from stn_train.data.distortion import Warping
from stn_train.data.distortions import DISTORTIONS, Translation
from stn_train.data.mnist import load_mnist
from stn_train.data.sources import DataSettings, load_splits
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.placements import Placement
from stn_train.recipes import PAPER
from stn_train.runs.result import Result
from stn_train.runs.shipped_models import FOLDER
from stn_train.settings import Choice, Settings, name_and_settings
from stn_train.table.comparison import compare, pair
from stn_train.table.paper import TABLES as PAPER_TABLES
from stn_train.table.paper import PaperTable
from stn_train.table.rows import (
    EFFORT,
    Row,
    circumstances,
    details,
    effort,
    markdown,
    markdown_lines,
    table_rows,
    verdict,
)
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples
from stn_train.visualiser.families import random_maps_page, undoing_page
from stn_train.visualiser.style import GREY, show

ROOT = Path(__file__).parent.parent

SHIPPED = ROOT / "stn_train" / "results"
"""Results that the program reads itself."""

RESULTS = ROOT / "scripts" / "results"
"""All others, and speed.json, the output of scripts/benchmark.py --json."""

MNIST, ADDITION = PAPER_TABLES["mnist"], PAPER_TABLES["addition"]
COLOCALISATION = PAPER_TABLES["colocalisation"]


def results_file(name: str) -> Path:
    """Where the results gathered under a name are kept, one a line."""
    shipped = {table.results for table in PAPER_TABLES.values()}
    return (SHIPPED if name in shipped else RESULTS) / f"{name}.jsonl"


def collected(name: str) -> list[dict[str, Any]]:
    """The results gathered under a name, as their result.json has them."""
    path = results_file(name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results_of(name: str) -> list[Result]:
    """The results gathered under a name; those before mistakes were recorded have none."""
    unrecorded: dict[str, Any] = {"mistaken_digits": [], "mistaken_on_draws": []}
    return [Result.from_dict(unrecorded | data, results_file(name)) for data in collected(name)]


def error_table() -> str:
    """The paper's table with our numbers, in Markdown, and how they came about."""
    results = results_of("default")
    rows = table_rows(results, MNIST)
    missing = unmeasured([row.cell for row in rows], MNIST)
    above = above_the_paper(rows, MNIST)
    return with_notes(markdown(rows, MNIST), above, missing, circumstances(results))


def paper_recipe_table() -> str:
    """The paper's table by the paper's own recipe, in Markdown.

    The baselines that the readings of the distortions were chosen by stand in it too.
    """
    results = paper_recipe_results()
    rows = table_rows(results, MNIST)
    measured = f"Measured: {len(rows)} of {len(MNIST.cells)} cells."
    above = above_the_paper(rows, MNIST)
    return with_notes(markdown(rows, MNIST), measured, above, circumstances(results))


def paper_recipe_results() -> list[Result]:
    """The runs by the paper's recipe, those of the calibration that have its length included."""
    whole = [run for run in results_of("calibration") if run.steps == PAPER["steps"]]
    return [*whole, *results_of("paper")]


def recipes_table() -> str:
    """The default recipe beside the paper's own, paired over the test digits, in Markdown."""
    head = ("model", "on", "default recipe", "paper's recipe", "difference", "95 % interval")
    lines = [(*head, "seeds")]
    for ours, theirs in pair(results_of("default"), paper_recipe_results(), MNIST).matched:
        compared = compare(ours, theirs)
        low, high = compared.interval_95
        lines.append(
            (
                compared.cell_a.model,
                compared.cell_a.distortion,
                f"{compared.error_a:.2f}",
                f"{compared.error_b:.2f}",
                f"{compared.difference:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{len(ours)} and {len(theirs)}",
            )
        )
    return f"{markdown_lines(lines)}\n"


def poses_table() -> str:
    """What averaging over poses brings to the models that ship, in Markdown.

    The two numbers of a model are of the same draws; the difference is paired over them.
    """
    head = ["model", "on", "error", "mean of draws", "poses", "error", "mean of draws"]
    lines = [(*head, "difference of the means")]
    for report in collected("poses"):
        cell = cell_in(report)
        alone = Result.read(FOLDER / cell.file_name / "result.json")
        one, several = alone.draws_percent, report["draws_percent"]
        if alone.draws_sha256 != report["draws_sha256"]:
            raise ValueError(f"{cell}: measured on other draws than the model's own result")
        differences = [after - before for before, after in zip(one, several, strict=True)]
        before, after = ((f"{each[0]:.2f}", f"{mean(each):.3f}") for each in (one, several))
        gain = mean_and_error(differences, "+")
        lines.append((cell.model, cell.distortion, *before, str(report["poses"]), *after, gain))
    return f"{markdown_lines(lines)}\n"


def mean_and_error(values: list[float], sign: str = "") -> str:
    """A mean ± its standard error, in text; with sign "+" a positive mean has one too."""
    return f"{mean(values):{sign}.3f} ± {stdev(values) / len(values) ** 0.5:.3f}"


def with_notes(table: str, *notes: str) -> str:
    """A table in Markdown with paragraphs below it; empty ones are left out."""
    return "\n".join([table, *(f"{note}\n" for note in notes if note)])


def unmeasured(measured: list[Cell], table: PaperTable) -> str:
    """Which cells with a published value are not among those that were measured, in a sentence."""
    missing = [cell.title for cell in table.cells if cell not in measured]
    return f"Not measured yet: {', '.join(missing)}." if missing else ""


def above_the_paper(rows: list[Row], table: PaperTable) -> str:
    """Which cells' means are above the published values, in a sentence."""
    published = sum(row.paper is not None for row in rows)
    above = [row for row in rows if row.difference is not None and row.difference > 0]
    names = ", ".join(
        row.cell.title + " (by less than the paper rounds)" * (verdict(row, table) == "same")
        for row in above
    )
    return f"Above the paper: {len(above)} of {published} cells{names and ': '}{names}."


def above_in_draws(rows: list[Row]) -> str:
    """Which cells' means over the fixed draws are above the published values, in a sentence."""
    published = [(row, row.paper) for row in rows if row.paper is not None]
    above = [row.cell.title for row, paper in published if row.draws_mean > paper]
    names = ": " * bool(above) + ", ".join(above)
    return f"Above the paper in the mean of draws: {len(above)} of {len(published)} cells{names}."


def cells_table() -> str:
    """Every cell of the default recipe, in Markdown."""
    results = results_of("default")
    rows = table_rows(results, MNIST)
    above = above_the_paper(rows, MNIST), above_in_draws(rows)
    cells = markdown_lines(details(results, MNIST))
    return with_notes(cells, *above, circumstances(results))


def addition_table() -> str:
    """Every cell of the addition of two digits, in Markdown."""
    results = results_of(ADDITION.results)
    rows = table_rows(results, ADDITION)
    missing = unmeasured([row.cell for row in rows], ADDITION)
    above = above_the_paper(rows, ADDITION)
    cells = markdown_lines(details(results, ADDITION))
    return with_notes(cells, above, missing, circumstances(results))


def made_birds_table() -> str:
    """Every network on the birds that scripts/made_birds.py draws, in Markdown."""
    return runs_table(results_of("made_birds"), made_birds_name)


def runs_table(
    results: list[Result], name: Callable[[Result], str] = lambda result: result.cell.model
) -> str:
    """Runs of experiments that the paper prints no number for, in Markdown: a line a network."""
    if not results:
        return "Not yet run.\n"
    measure = results[0].measure
    digits = 2 if measure.lower_is_better else 1  # an error is the smaller number
    head = ("network", "on", f"test {measure.name} in {measure.unit}", *EFFORT)
    networks: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        networks.setdefault((name(result), result.cell.distortion), []).append(result)
    lines = [head]
    for network, runs in networks.items():
        measured = [run.test_percent for run in runs]
        spread = f" ± {stdev(measured):.{digits}f}" if len(runs) > 1 else ""
        lines.append((*network, f"{mean(measured):.{digits}f}{spread}", *effort(runs)))
    return f"{markdown_lines(lines)}\n{circumstances(results)}\n"


def layers_table() -> str:
    """Transformers at several layers on R, beside one in front and none, in Markdown."""
    arranged = [run for run in results_of("other") if "@" in str(run.cell.transform)]
    return runs_table(beside_them(arranged) + arranged)


def deformable_table() -> str:
    """Deformable convolutions beside the CNN without and with a transformer, in Markdown."""
    deformable = [run for run in results_of("other") if run.cell.backbone == "DCN"]
    return runs_table(beside_them(deformable) + deformable)


def clutter_table() -> str:
    """Every network on TC, in Markdown."""
    return runs_table([run for run in results_of("default") if run.cell.distortion == "TC"])


def beside_them(results: list[Result]) -> list[Result]:
    """The CNN without and with an affine transformer on the same distortions."""
    cells = [
        Cell(on, "CNN", transform)
        for on in dict.fromkeys(result.cell.distortion for result in results)
        for transform in ("none", "Aff")
    ]
    return [result for result in results_of("default") if result.cell in cells]


def volumes_table() -> str:
    """Every network on digits in space, in Markdown."""
    return runs_table([run for run in results_of("other") if run.task == "extruded"])


def made_birds_name(result: Result) -> str:
    """The network of a run, and what it was given."""
    config, seen = Config.from_run(result.config), result.cell.distortion.removeprefix("crop")
    moves = config.train.localisation_learning_rate_scale
    return result.cell.model + (
        f", {seen} px"
        if config.transform is None
        else ""
        if moves
        else ", windows that do not move"
    )


def colocalisation_table() -> str:
    """The share located, digit by digit, beside the published one, in Markdown."""
    results = results_of(COLOCALISATION.results)
    rows = {row.cell: row for row in table_rows(results, COLOCALISATION)}
    head = ["digit"]
    for column in COLOCALISATION.columns:
        head += [column, f"{column}, each set", f"{column}, paper"]
    lines = [head]
    for model in COLOCALISATION.rows:
        line = [model[-1]]
        for column in COLOCALISATION.columns:
            cell = Cell(column, *model)
            row, paper = rows.get(cell), COLOCALISATION.published(cell)
            runs = sorted((run.seed, run.test_percent) for run in results if run.cell == cell)
            line += ["" if row is None else f"{row.mean:.1f}"]
            line += [" ".join(f"{percent:.0f}" for _, percent in runs), f"{paper:g}"]
        lines.append(line)
    below = [row.cell for row in rows.values() if row.difference is not None and row.difference < 0]
    missing = [cell for cell in COLOCALISATION.cells if cell not in rows]
    names = ", ".join(f"{cell.subject} on {cell.distortion}" for cell in below)
    parts = [markdown_lines(lines), f"Below the paper: {names or 'none'}.\n"]
    if missing:
        names = ", ".join(f"{cell.subject} on {cell.distortion}" for cell in missing)
        parts.append(f"Not measured yet: {names}.\n")
    return "\n".join([*parts, *([f"{circumstances(results)}\n"] if results else [])])


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
    """Changes to the recipe that other work has found useful, in Markdown.

    Each line of levers.jsonl is the output of scripts/validate.py, with the changes in words. The
    difference is from the unchanged recipe after as many passes, with the same seeds and in the
    same precision, if there is one.
    """
    errors: dict[tuple[Cell, int, str, str], dict[int, float]] = {}
    runs = collected("levers")
    for line in runs:
        key = cell_in(line), line["passes"], line["precision"], "; ".join(line["changes"])
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


def machine(*environments: dict[str, Any]) -> str:
    """The circumstances of measurements on one machine, in a sentence, with every commit."""
    first = environments[0]
    count = first["threads"]
    threads = "One thread" if count == 1 else f"{count} threads"
    versions = f"torch {first['torch']}, torchvision {first['torchvision']}"
    commits = ", ".join(dict.fromkeys(each["commit"][:9] for each in environments))
    return f"{threads} of an {first['hardware']}, {versions}, commit {commits}."


def faster(row: dict[str, Any], peer: str) -> str:
    """How many times as fast as a peer."""
    return f"{row['ours'] / row['peers'][peer]:.1f} x" if peer in row["peers"] else ""


def time_to_result() -> list[dict[str, Any]]:
    """What scripts/time_to_result.py measured, in the order of the table."""
    lines = (RESULTS / "time_to_result.jsonl").read_text().splitlines()
    order = list(MNIST.values)
    return sorted(map(json.loads, lines), key=lambda line: order.index(cell_in(line)))


def cell_in(line: dict[str, Any]) -> Cell:
    """The cell of a line of results."""
    return Cell.read(line)


def time_table() -> str:
    """The seconds to the paper's error, cell by cell, in Markdown."""
    rows = [("model", "on", "paper", "passes", "seconds to it", "lowest measured")]
    measured, hours = time_to_result(), 0.0
    for line in measured:
        seconds, cell = line["curve"][-1][0], cell_in(line)
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
    missing = unmeasured([cell_in(line) for line in measured], MNIST)
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
    for unused in axes[len(columns) :]:
        unused.set_axis_off()
    colours = dict(zip(MNIST.rows, matplotlib.color_sequences["tab10"], strict=False))
    for line in measured:
        cell = cell_in(line)
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
    named = {cell.model: drawn[cell.model] for cell in map(cell_in, measured)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4, fontsize=8)
    figure.supxlabel("seconds of training", fontsize=10)
    figure.supylabel("validation error / the paper's test error", fontsize=10)
    return figure


def clutter_samples() -> Figure:
    """Test digits among clutter: a row for each distortion of `CLUTTERED`, on its fixed draw."""
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    test = load_splits(DataSettings()).test
    for axes, (name, distortion) in zip(
        figure.subplots(len(CLUTTERED), SAMPLES), CLUTTERED.items(), strict=True
    ):
        examples = Examples.for_test(Classification().with_distortion(distortion), test, 0)
        for axis, image in zip(axes, examples.batch(slice(SAMPLES)).inputs, strict=True):
            show(axis, image)
        axes[0].set_ylabel(name, fontsize=9)
    return figure


CLUTTERED = {
    "T": Translation(),
    "TC": Clutter(),
    "TC, 84 px,\n16 patches": Clutter(canvas_px=84, patches=16),
}
"""The rows of the picture of cluttered digits."""

SAMPLES = 7
"""Digits in a row of it."""


def numerics_table() -> str:
    """Validation errors by the former and the present numerics, in Markdown."""
    lines = (RESULTS / "numerics.jsonl").read_text().splitlines()
    runs = list(map(json.loads, lines))
    versions = sorted({run["numerics"] for run in runs})
    rows = [("model", "on", "seed", *(f"numerics {version}" for version in versions))]
    means: dict[tuple[Cell, int], dict[int, str]] = {}
    for run in runs:
        draws = run["draws_percent"]
        means.setdefault((cell_in(run), run["seed"]), {})[run["numerics"]] = mean_and_error(draws)
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
    turns = list(map(json.loads, (RESULTS / "waiting.jsonl").read_text().splitlines()))
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


FAMILIES_ON = ("R", "RTS", "E")
"""The distortions that the families of transforms are compared on."""

FAMILIES_SEED = 1


def families_table() -> str:
    """Test errors of the FCN without a transformer and with each family, in Markdown.

    The families of the paper's table were measured for it: the runs of the same seed stand here.
    """
    published = [result for result in results_of("default") if result.seed == FAMILIES_SEED]
    measured = {result.cell: result for result in [*published, *results_of("families")]}
    lines = [("transform", "parameters", *FAMILIES_ON)]
    runs, missing = [], []
    sizes = {name: family().build().parameter_count for name, family in TRANSFORMS.items()}
    for name, parameters in {"none": 0, **sizes}.items():
        found = [measured.get(Cell(distortion, "FCN", name)) for distortion in FAMILIES_ON]
        errors = ["" if run is None else f"{run.test_percent:.2f}" for run in found]
        lines.append((name, str(parameters), *errors))
        runs += [run for run in found if run is not None]
        left = [on for on, run in zip(FAMILIES_ON, found, strict=True) if run is None]
        missing += [f"{name} on {', '.join(left)}"] if left else []
    told = [f"Not measured yet: {'; '.join(missing)}."] if missing else []
    told += [circumstances(runs)] if runs else []
    return "\n".join([markdown_lines(lines), *(f"{text}\n" for text in told)])


def random_maps_chart() -> Figure:
    """A digit under random maps of each family of transforms."""
    return random_maps_page(TRANSFORMS, digit().float() / 255)


def undoing_chart() -> Figure:
    """A digit under each of the paper's distortions, undone as well as each family can."""
    distortions = {name: DISTORTIONS[name]() for name in MNIST.columns}
    warpings = {name: each for name, each in distortions.items() if isinstance(each, Warping)}
    return undoing_page(TRANSFORMS, digit(), warpings)


def digit() -> Tensor:
    """The first 4 of the test set, which looks different from all sides: uint8 (1, H, W)."""
    _, test = load_mnist()
    return test.pixels[test.labels == 4][0]


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
    path = RESULTS / "rates.jsonl"
    measured = list(map(json.loads, path.read_text().splitlines() if path.exists() else []))
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
    """Every key of a config: its default, what it can be and what it means, in Markdown."""
    choices = ({"backbone": "FCN"}, {"backbone": "CNN"}, {"backbone": "CNN", "recipe": "paper"})
    configs = [Config.model_validate(choice) for choice in choices]
    sections = [name for name in own_fields(Config) if is_section(Config, name)]
    others = [name for name in own_fields(Config) if name not in sections]
    others.sort(key=lambda name: choice_of(Config, name) is None)  # what is chosen comes first
    lines = [("key", "FCN", "CNN", "paper", "allowed", "meaning")]
    lines += [setting_line("", Config, name, *configs) for name in others]
    for name in sections:
        values = [getattr(config, name) for config in configs]
        kind = type(values[0])
        lines += [setting_line(f"{name}.", kind, key, *values) for key in kind.model_fields]
    return "\n".join([markdown_lines(lines), *plug_in_tables()])


def plug_in_tables() -> Iterator[str]:
    """For each name that a config can choose, the settings that come with it, in Markdown."""
    for key, choice in choices_in(Config):
        for name, kind in choice.registry.items():
            if not kind.model_fields:
                continue
            default, paper = (chosen_settings(key, name, recipe) for recipe in ("default", "paper"))
            by_recipe = default != paper
            lines = [("key", *(("default", "paper") if by_recipe else ("default",)))]
            lines[0] += ("allowed", "meaning")
            for field in kind.model_fields:
                values = [default, paper] if by_recipe else [default]
                lines.append(setting_line(f"{key}.{name}.", kind, field, *values))
            yield f"With `{yaml_form(key, name)}`:\n\n{markdown_lines(lines)}"
    lines = [("key", "default", "allowed", "meaning")]
    for field in Placement.model_fields:
        lines.append(setting_line("transformers.PLACE.", Placement, field, Placement()))
    yield f"At each place of `transformers: {{PLACE: {{...}}}}`:\n\n{markdown_lines(lines)}"


def own_fields(kind: type[Settings]) -> list[str]:
    """The fields that a user sets; `given` is written by the program."""
    return [name for name in kind.model_fields if name != "given"]


def choice_of(kind: type[Settings], name: str) -> Choice | None:
    """What a field chooses from, if it is a choice, perhaps of null too."""
    field = kind.model_fields[name]
    metadata = list(field.metadata)
    for part in get_args(field.annotation)[:1]:
        metadata += getattr(part, "__metadata__", ())
    return next((each for each in metadata if isinstance(each, Choice)), None)


def is_section(kind: type[Settings], name: str) -> bool:
    """Whether a field is a section of settings."""
    annotation = kind.model_fields[name].annotation
    is_settings = isinstance(annotation, type) and issubclass(annotation, Settings)
    return is_settings and choice_of(kind, name) is None


def choices_in(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, Choice]]:
    """The keys under which a plug-in is chosen, and what each can be."""
    for name in own_fields(kind):
        choice = choice_of(kind, name)
        if choice is not None:
            yield f"{prefix}{name}", choice
        elif is_section(kind, name):
            section: Any = kind.model_fields[name].annotation
            yield from choices_in(section, f"{prefix}{name}.")


def chosen_settings(key: str, name: str, recipe: str) -> Settings | None:
    """The settings of a plug-in by a recipe; None if it has some without a default."""
    data: Any = name
    for part in reversed(key.split(".")):
        data = {part: data}
    try:
        settings: Any = Config.model_validate({**data, "recipe": recipe})
    except ValidationError:
        return None
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def yaml_form(key: str, name: str) -> str:
    """How a config says which settings of a plug-in it wants."""
    *sections, last = key.split(".")
    text = f"{last}: {{{name}: {{...}}}}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    return text


def setting_line(
    prefix: str, kind: type[Settings], name: str, *settings: Settings | None
) -> tuple[str, ...]:
    """A key, its value in each of these settings, what it can be, and its documentation.

    Where there are no settings to show, the value is the field's default.
    """
    field, choice = kind.model_fields[name], choice_of(kind, name)
    text = " ".join((field.description or "").split())
    shown = []
    for each in settings:
        if each is None:
            shown.append("required" if field.is_required() else written(field.default))
        else:
            value = each.model_dump(mode="json")[name]
            if choice is not None and value is not None:
                value = name_and_settings(value)[0]
            shown.append(written(value))
    if choice is not None:
        can_be = ", ".join(choice.names())
    else:
        can_be = allowed(kind.model_json_schema()["properties"][name])
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
        ends = {", below": below, ", at most": high}
        return f"above {above}" + "".join(
            f"{text} {end}" for text, end in ends.items() if end < WITHOUT_BOUND
        )
    if low is None:
        return ""
    if high < WITHOUT_BOUND:
        return f"{low} to {high}"
    return f"{low} to below {below}" if below < WITHOUT_BOUND else f"from {low}"


WITHOUT_BOUND = 1e18
"""Larger bounds are what a number can hold."""


def written(value: Any) -> str:
    """A setting's value as a config has it: floats shortened, null left out of sections."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        given = (f"{key}: {written(each)}" for key, each in value.items() if each is not None)
        return f"{{{', '.join(given)}}}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def commands() -> dict[str, Any]:
    """Every command by the name it is called with; click's object of each."""
    single = {
        "stn-train": run_train,
        "stn-eval": run_eval,
        "stn-visualize": run_visualize,
        "stn-export": run_export,
        "stn-demo": run_demo,
    }
    found = {name: get_command(app) for name, app in single.items()}
    below = get_command(run_table).commands
    return found | {f"stn-table {name}": command for name, command in below.items()}


TABLES = {
    "results": ("README.md", error_table),
    "speed": ("docs/speed.md", speed_table),
    "time": ("docs/speed.md", time_table),
    "numerics": ("docs/speed.md", numerics_table),
    "waiting": ("docs/speed.md", waiting_table),
    "flags": ("docs/reference.md", flags_table),
    "settings": ("docs/reference.md", settings_table),
    "cells": ("docs/results.md", cells_table),
    "paper recipe": ("docs/results.md", paper_recipe_table),
    "recipes": ("docs/results.md", recipes_table),
    "poses": ("docs/results.md", poses_table),
    "addition": ("docs/experiments.md", addition_table),
    "clutter": ("docs/clutter.md", clutter_table),
    "made birds": ("docs/experiments.md", made_birds_table),
    "colocalisation": ("docs/experiments.md", colocalisation_table),
    "layers": ("docs/experiments.md", layers_table),
    "volumes": ("docs/experiments.md", volumes_table),
    "deformable": ("docs/experiments.md", deformable_table),
    "calibration": ("docs/calibration.md", calibration_table),
    "validation": ("docs/recipe.md", validation_table),
    "levers": ("docs/recipe.md", levers_table),
    "families": ("docs/transforms.md", families_table),
    "grid": ("docs/cluster.md", grid_table),
    "ray": ("docs/cluster.md", ray_table),
}
"""The parts of documents that are written here: name -> (document, what stands there)."""

CHARTS: dict[str, Callable[[], Figure]] = {
    "docs/time_to_result.png": time_chart,
    "docs/random_maps.png": random_maps_chart,
    "docs/undoing.png": undoing_chart,
    "docs/clutter.png": clutter_samples,
}
"""The pictures that are drawn here."""
