"""`stn-table`: train the cells of a published table, show what was measured, and compare."""

import time
from collections.abc import Iterable, Sequence
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
from stn_train.runs.files import pretty_json, write_atomically

if TYPE_CHECKING:
    from stn_train.runs.result import Result
    from stn_train.table.engines import Event, Outcome
    from stn_train.table.paper import PaperTable
    from stn_train.table.plan import Job

SECONDS_BETWEEN_LINES = 60

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
        int | None, typer.Option(help="Runs at once. Default: one a core; 4 on a GPU.", min=1)
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
    """Train every run that has no result yet; interrupted ones are resumed where they were."""
    from stn_train.runs.machine import choose_device, cores
    from stn_train.runs.result import results_in
    from stn_train.table.engines import run_jobs
    from stn_train.table.paper import table_named
    from stn_train.table.plan import cells_like, jobs_for, missing
    from stn_train.table.rows import markdown, table_rows
    from stn_train.trainer.observers import tell

    table, where = table_named(table_name), choose_device(device)
    settings = [f"recipe={recipe}", *(overrides or [])]
    planned = jobs_for(table, cells_like(cells or [], table), seeds_named(seeds), settings)
    out.mkdir(parents=True, exist_ok=True)
    left = missing(planned, out)
    workers = jobs or (cores() if where.type == "cpu" else min(4, cores()))
    done = len(planned) - len(left)
    if not quiet:
        tell(f"{len(planned)} runs, {done} of them finished already; {workers} at a time")
    outcomes = follow(run_jobs(left, out, workers, where, data_dir), planned, left, quiet)
    elsewhere = sum(each.elsewhere for each in outcomes)
    if elsewhere:
        tell(f"other processes train {elsewhere} runs; run this again when they have finished")
    if done or any(each.result for each in outcomes):
        results = results_in(out)
        rows = table_rows(results, table)
        shown = [row.as_dict() for row in rows]
        typer.echo(pretty_json(shown) if as_json else markdown(rows, table).rstrip())
        name_outside(results, table, err=as_json)
    failed = [each for each in outcomes if each.problem and not each.elsewhere]
    if failed:
        names = ", ".join(sorted(outcome.job.name for outcome in failed))
        error = StnError(f"{len(failed)} runs failed: {names}; run the command again to resume")
        error.exit_code = failed[0].exit_code
        raise error


def seeds_named(text: str) -> range:
    """The seeds that 3 (from 1 on) or 4-6 stand for; raises ConfigError for anything else."""
    first, dash, last = text.partition("-")
    if not dash:
        first, last = "1", text
    if first.isdecimal() and last.isdecimal() and 0 <= int(first) <= int(last) < int(first) + 100:
        return range(int(first), int(last) + 1)
    raise ConfigError([f"--seeds is {text!r}; it can be a number, as 3, or a range, as 4-6"])


def follow(
    events: "Iterable[Event]", planned: "Sequence[Job]", left: "Sequence[Job]", quiet: bool
) -> "list[Outcome]":
    """Report the events of runs on standard error until all have ended; returns the outcomes.

    planned: all runs that were asked for; left: those that had no result yet.
    """
    from stn_train.table.engines import Outcome, TimeLeft, Warned
    from stn_train.trainer.observers import tell

    time_left = TimeLeft(left)
    outcomes: list[Outcome] = []
    ended, told = len(planned) - len(left), time.perf_counter()
    for event in events:
        time_left.update(event)
        if isinstance(event, Outcome):
            outcomes.append(event)
            ended += not event.elsewhere
            line = f"{ended} of {len(planned)}: {event.job.name} {event}"
            if event.elsewhere:
                tell(f"{event.job.name} is left out: {event.problem}")
            elif event.problem:
                tell(line)
            elif not quiet:
                tell(f"{line}, {time_left.seconds / 60:.0f} min left")
        elif isinstance(event, Warned):
            tell(f"warning: {event.job.name}: {event.message}")
        elif not quiet and time.perf_counter() - told >= SECONDS_BETWEEN_LINES:
            told = time.perf_counter()
            running = [f"{name} {share:.0%}" for name, share in time_left.running.items()]
            tell(f"{', '.join(running)}; {time_left.seconds / 60:.0f} min left")
    return outcomes


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
    """Measured beside published errors in %: mean ± standard deviation, paper, difference."""
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
    """Compare runs on the same test digits: the difference of errors and its 95 % interval."""
    from stn_train.table.comparison import compare, pair
    from stn_train.table.paper import experiment_of, table_named

    table = table_named(table_name)
    results_a, results_b = (
        results_of(None if str(runs) == "reference" else runs, table) for runs in (runs_a, runs_b)
    )
    pairs = pair(results_a, results_b, table)
    comparisons = [compare(*each) for each in pairs.matched]
    if as_json:
        typer.echo(pretty_json([each._asdict() for each in comparisons]))
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
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    table_name: TableOption = "mnist",
    data_dir: DataDirOption = None,
) -> None:
    """Write one HTML page with the table, curves, pictures, an animation and the commands."""
    from stn_train.table.paper import table_named
    from stn_train.table.report import report

    table = table_named(table_name)
    page = report(runs, table, data_dir).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda stream: stream.write(page))
    typer.echo(f"report      {out}, {len(page) / 1e6:.1f} MB")
    name_outside(results_of(runs, table), table, err=False)


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
