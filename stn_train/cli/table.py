"""`stn-table`: train the cells of a published table, show what was measured, and compare."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stn_train.cli.options import (
    EXIT_CODES,
    DataDirOption,
    Device,
    DeviceOption,
    JsonOption,
    QuietOption,
    checked_path,
    guarded,
)
from stn_train.errors import ConfigError, StnError
from stn_train.runs.files import pretty_json, write_bytes

if TYPE_CHECKING:
    from stn_train.runs.result import Result
    from stn_train.table.engines import Work
    from stn_train.table.paper import PaperTable
    from stn_train.table.progress import Progress

TableOption = Annotated[
    str,
    typer.Option(
        "--table", help="Which published table; an unknown name lists them.", metavar="NAME"
    ),
]

run_table = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train the cells of a published table with several seeds, show what was measured, "
    "compare.",
    epilog=EXIT_CODES,
)


@run_table.command(
    "run", epilog=f"Example: stn-table run --cells 'RTS:*' --seeds 3 --jobs 2\n\n{EXIT_CODES}"
)
@guarded
def run_cells(
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help="DISTORTION:BACKBONE:TRANSFORM with *; may be repeated. Default: all that have "
            "a published value."
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds 1 to this, or a range such as 4-6.", metavar="N|N-M")
    ] = "3",
    recipe: Annotated[
        str, typer.Option(help="Settings of networks and training: default or paper.")
    ] = "default",
    jobs: Annotated[
        int | None,
        typer.Option(
            help="At most so many runs at once, which share the cores; 1: in this process. "
            "Default: one a core, or 4 a GPU.",
            min=1,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster to train on. Else $RAY_ADDRESS, else this machine.",
            envvar="RAY_ADDRESS",
            show_envvar=False,
            metavar="HOST:PORT",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting of every run; may be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/table"),
    table_name: TableOption = "mnist",
    device: DeviceOption = Device.auto,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train every run that has no result yet. Interrupted ones are resumed where they were."""
    from stn_train.runs.machine import choose_device
    from stn_train.runs.result import results_in
    from stn_train.runs.signals import stopped_as
    from stn_train.table.engines import Work
    from stn_train.table.paper import table_named
    from stn_train.table.plan import cells_like, jobs_for, missing
    from stn_train.table.progress import Progress
    from stn_train.table.rows import markdown, table_rows
    from stn_train.trainer.observers import tell

    table = table_named(table_name)
    if address is None:
        choose_device(device)  # a missing device is refused before anything begins
    settings = [f"recipe={recipe}", *(overrides or [])]
    planned = jobs_for(table, cells_like(cells or [], table), seeds_named(seeds), settings)
    out.mkdir(parents=True, exist_ok=True)
    left = missing(planned, out)
    progress = Progress(planned, left, out, quiet)
    if left:
        with stopped_as("stopped; run the same command again to go on"):
            train_all(Work(out, device, data_dir), jobs, address, progress)
    else:
        progress.begin()
    if progress.elsewhere:
        others = f"other processes train {progress.elsewhere} runs"
        tell(f"{others}; run this again when they have finished")
    if progress.finished:
        results = results_in(out)
        rows = table_rows(results, table)
        shown = [row.as_dict() for row in rows]
        typer.echo(pretty_json(shown) if as_json else markdown(rows, table).rstrip())
        name_outside(results, table, err=as_json)
    if progress.failed:
        names = ", ".join(sorted(outcome.job.name for outcome in progress.failed))
        count = len(progress.failed)
        error = StnError(f"{count} runs failed: {names}; run the command again to resume")
        error.exit_code = progress.failed[0].exit_code
        raise error


def seeds_named(text: str) -> range:
    """The seeds that 3 (from 1 on) or 4-6 stand for; raises ConfigError for anything else."""
    first, dash, last = text.partition("-")
    if not dash:
        first, last = "1", text
    if first.isdecimal() and last.isdecimal() and 0 <= int(first) <= int(last) < int(first) + 100:
        return range(int(first), int(last) + 1)
    raise ConfigError([f"--seeds is {text!r}; it can be a number, as 3, or a range, as 4-6"])


def train_all(work: "Work", at_once: int | None, address: str | None, progress: "Progress") -> None:
    """Train the runs that are left, here or on Ray."""
    from stn_train.table.engines import EXTRA, InThisProcess, engine_for

    with contextlib.closing(engine_for(work, at_once, address)) as engine:
        progress.begin(f"; {engine.at_once} at a time")
        if isinstance(engine, InThisProcess) and at_once != 1 and len(progress.left) > 1:
            progress.note(f"several at once, here or on a cluster, need Ray: {EXTRA}")
        engine.run(progress.left, progress)


@run_table.command("show", epilog=f"Example: stn-table show runs/table --json\n\n{EXIT_CODES}")
@guarded
def show_table(
    runs: Annotated[
        Path | None,
        typer.Argument(help="Folder of the runs. Default: the results that ship with the program."),
    ] = None,
    table_name: TableOption = "mnist",
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    png: Annotated[
        Path | None, typer.Option(help="Draw it into this file (.png, .pdf or .svg).")
    ] = None,
) -> None:
    """Show measured beside published errors. In %: mean ± standard deviation, paper, difference."""
    from stn_train.table.paper import table_named
    from stn_train.table.rows import circumstances, comma_separated, markdown, plain, table_rows

    if as_json + as_markdown + as_csv + (png is not None) > 1:
        raise ConfigError(["give one of --json, --markdown, --csv and --png"])
    table = table_named(table_name)
    results = results_of(runs, table)
    rows = table_rows(results, table)
    held = [result for result in results if table.holds(result)]
    if png is not None:
        from stn_train.table.chart import error_table
        from stn_train.visualiser.style import save

        figure = error_table(rows, table, circumstances(held))
        typer.echo(f"picture     {save(figure, checked_path(png, '--png'))}")
    elif as_json:
        typer.echo(pretty_json([row.as_dict() for row in rows]))
    elif as_csv:
        typer.echo(comma_separated(rows), nl=False)
    else:
        form = markdown if as_markdown else plain
        typer.echo(form(rows, table))
        if held:
            typer.echo(circumstances(held))
    name_outside(results, table, err=as_json or as_csv)


@run_table.command(
    "compare",
    epilog="Example: stn-table compare runs/table runs/other\n\n"
    f"reference stands for the results that ship with the program.\n\n{EXIT_CODES}",
)
@guarded
def compare_runs(
    runs_a: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")],
    runs_b: Annotated[Path, typer.Argument(help="What to compare them with.")],
    table_name: TableOption = "mnist",
    as_json: JsonOption = False,
) -> None:
    """Compare runs on the same test digits. The difference of errors, and its 95 % interval."""
    from stn_train.table.comparison import compare, pair
    from stn_train.table.paper import experiment_of, table_named

    table = table_named(table_name)
    results_a, results_b = (
        results_of(None if str(runs) == "reference" else runs, table) for runs in (runs_a, runs_b)
    )
    pairs = pair(results_a, results_b, table)
    comparisons = [compare(*each) for each in pairs.matched]
    if as_json:
        typer.echo(pretty_json([each.as_dict() for each in comparisons]))
    else:
        measured = f"mean {table.measure.name} in {table.measure.unit}"
        typer.echo(f"A: {runs_a}   B: {runs_b}   {measured} over seeds and test draws")
        typer.echo("Intervals are over test digits alone; seeds make a difference too.")
        for (a, b), each in zip(pairs.matched, comparisons, strict=True):
            names = dict.fromkeys(experiment_of(runs[0]).title for runs in (a, b))
            low, high = each.interval_95
            seeds = f"{len(each.seeds_a)} and {len(each.seeds_b)} seeds"
            typer.echo(
                f"{' against '.join(names):24} A {each.error_a:5.2f}  B {each.error_b:5.2f}  "
                f"A - B {each.difference:+.2f} (95 %: {low:+.2f} to {high:+.2f}; {seeds})"
            )
    for side, alone in (("A", pairs.only_a), ("B", pairs.only_b)):
        names = dict.fromkeys(experiment_of(result).title for result in alone)
        if names:
            typer.echo(f"only in {side}: {'; '.join(names)}", err=as_json)
    name_outside([*results_a, *results_b], table, err=as_json)


@run_table.command(
    "report", epilog=f"Example: stn-table report runs/table --out report.html\n\n{EXIT_CODES}"
)
@guarded
def write_report(
    runs: Annotated[
        Path | None,
        typer.Argument(help="Folder of the runs. Default: the results that ship with the program."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The page; of report.html, the live page is report-live.html.")
    ] = Path("report.html"),
    table_name: TableOption = "mnist",
    data_dir: DataDirOption = None,
) -> None:
    """Write an HTML page. It has the table, curves, pictures, an animation and the commands.

    Beside it, and linked from it, lies the live page of a spatial transformer of the table.
    """
    from stn_train.table.paper import table_named
    from stn_train.table.report import live_page, material, report

    table = table_named(table_name)
    beside = checked_path(out, "--out", (".html",)).with_name(f"{out.stem}-live.html")
    found = material(runs, table)
    live = live_page(found.runs, table, beside.name, data_dir)
    page = report(found, table, live, data_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page("report", out, page)
    if live.html:
        write_page("live page", beside, live.html)
    if live.shortcoming:
        typer.echo(live.shortcoming, err=True)
    if found.outside:
        typer.echo(found.outside)


def write_page(name: str, path: Path, page: str) -> None:
    """Write a page, and say so."""
    content = page.encode()
    write_bytes(path, content)
    typer.echo(f"{name:11} {path}, {len(content) / 1e6:.1f} MB")


def results_of(runs: Path | None, table: "PaperTable") -> "list[Result]":
    """The results of a run or a folder of runs; without one, those that ship with the program."""
    from stn_train.runs.result import reference_results, results_in

    return reference_results(table.results) if runs is None else results_in(runs)


def name_outside(results: "Sequence[Result]", table: "PaperTable", err: bool) -> None:
    """Name the runs that do not belong into the table; err: on standard error."""
    from stn_train.table.rows import outside

    named = outside(results, table)
    if named:
        typer.echo(named, err=err)
