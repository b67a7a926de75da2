"""`stn-table`: run the cells of the paper's table, show what they came to, and compare."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stn_train.atomic import pretty_json
from stn_train.command import (
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

if TYPE_CHECKING:
    from stn_train.grid import Job
    from stn_train.jobs import Event, Outcome

SECONDS_BETWEEN_LINES = 60

run_table = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run the cells of the paper's table with several seeds, show what they came to, compare.",
    epilog=EXIT_CODES,
)


@run_table.command(
    "run", epilog=f"Example: stn-table run --cells 'RTS:*' --seeds 3 --jobs 2\n\n{EXIT_CODES}"
)
@guarded
def run(
    cells: Annotated[
        list[str] | None,
        typer.Option(help="DISTORTION:BACKBONE:TRANSFORM with *; may be repeated. Default: all."),
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
    device: DeviceOption = Device.auto,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train every run that has no result yet; interrupted ones are resumed where they were."""
    from stn_train.device import choose_device, cores
    from stn_train.grid import cells_like, jobs_for, missing
    from stn_train.jobs import run_jobs
    from stn_train.progress import tell, teller
    from stn_train.result import results_in
    from stn_train.table import markdown, table

    where = choose_device(device)
    chosen = [f"recipe={recipe}", *(overrides or [])]
    all_jobs = jobs_for(cells_like(cells or []), seeds_named(seeds), chosen)
    out.mkdir(parents=True, exist_ok=True)
    left = missing(all_jobs, out)
    workers = jobs or (cores() if where.type == "cpu" else min(4, cores()))
    finished = len(all_jobs) - len(left)
    say = teller(quiet)
    say(f"{len(all_jobs)} runs, {finished} of them finished already; {workers} at a time")
    outcomes = tell_outcomes(run_jobs(left, out, workers, where, data_dir), all_jobs, left, quiet)
    failed = [each for each in outcomes if each.problem and not each.elsewhere]
    elsewhere = sum(each.elsewhere for each in outcomes)
    if elsewhere:
        tell(f"{elsewhere} runs are trained by other processes; run this again when they are done")
    if finished or any(each.result for each in outcomes):
        rows = table(results_in(out))
        typer.echo(pretty_json(rows) if as_json else markdown(rows).rstrip())
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


def tell_outcomes(
    events: "Iterable[Event]",
    all_jobs: "Sequence[Job]",
    left: "Sequence[Job]",
    quiet: bool,
) -> "list[Outcome]":
    """Say how the runs get on, and return what became of them."""
    from stn_train.jobs import Outcome, TimeLeft, Warned
    from stn_train.progress import tell, teller

    say, time_left = teller(quiet), TimeLeft(left)
    outcomes: list[Outcome] = []
    ended, told = len(all_jobs) - len(left), time.perf_counter()
    for event in events:
        time_left.note(event)
        if isinstance(event, Outcome):
            outcomes.append(event)
            ended += not event.elsewhere
            text = f"{ended} of {len(all_jobs)}: {event.job.name} {event}"
            if event.elsewhere:
                tell(f"{event.job.name} is left out: {event.problem}")
            elif event.problem:
                tell(text)
            else:
                say(f"{text}, {time_left.seconds / 60:.0f} min left")
        elif isinstance(event, Warned):
            tell(f"warning: {event.job.name}: {event.message}")
        elif time.perf_counter() - told >= SECONDS_BETWEEN_LINES:
            told = time.perf_counter()
            running = [f"{name} {share:.0%}" for name, share in time_left.running.items()]
            say(f"{', '.join(running)}; {time_left.seconds / 60:.0f} min left")
    return outcomes


@run_table.command("show", epilog=f"Example: stn-table show runs/table --json\n\n{EXIT_CODES}")
@guarded
def show(
    runs: Annotated[
        Path | None,
        typer.Argument(help="Folder of the runs. Default: the results that ship with the program."),
    ] = None,
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    png: Annotated[
        Path | None, typer.Option(help="Draw it into this file (.png, .pdf or .svg).")
    ] = None,
) -> None:
    """Measured beside published errors in %: mean ± standard deviation, paper, difference."""
    from stn_train.table import circumstances, comma_separated, markdown, plain, table

    if as_json + as_markdown + as_csv + (png is not None) > 1:
        raise ConfigError(["give one of --json, --markdown, --csv and --png"])
    results = results_of(runs)
    rows = table(results)
    if png is not None:
        from stn_train.charts import error_table
        from stn_train.visualiser import save

        figure = error_table(rows, circumstances(results))
        typer.echo(f"picture     {save(figure, checked_path(png, '--png'))}")
    elif as_json:
        typer.echo(pretty_json(rows))
    elif as_csv:
        typer.echo(comma_separated(rows), nl=False)
    else:
        form = markdown if as_markdown else plain
        typer.echo(f"{form(rows)}\n{circumstances(results)}")


@run_table.command(
    "compare",
    epilog="Example: stn-table compare runs/table runs/other\n\n"
    f"reference stands for the results that ship with the program.\n\n{EXIT_CODES}",
)
@guarded
def compare_runs(
    runs_a: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")],
    runs_b: Annotated[Path, typer.Argument(help="What to compare them with.")],
    as_json: JsonOption = False,
) -> None:
    """Compare runs on the same test digits: the difference of errors and its 95 % interval."""
    from stn_train.comparison import compare
    from stn_train.published import cell_title

    results = [results_of(None if str(runs) == "reference" else runs) for runs in (runs_a, runs_b)]
    comparisons = compare(*results)
    if as_json:
        typer.echo(pretty_json([each._asdict() for each in comparisons]))
        return
    typer.echo(f"A: {runs_a}   B: {runs_b}   mean error in % over seeds and test draws")
    typer.echo("Intervals are over test digits alone; seeds make a difference too.")
    for each in comparisons:
        names = dict.fromkeys(map(cell_title, (each.cell_a, each.cell_b)))
        low, high = each.interval_95
        seeds = f"{len(each.seeds_a)} and {len(each.seeds_b)} seeds"
        typer.echo(
            f"{' against '.join(names):24} A {each.error_a:5.2f}  B {each.error_b:5.2f}  "
            f"A - B {each.difference:+.2f} (95 %: {low:+.2f} to {high:+.2f}; {seeds})"
        )


@run_table.command(
    "report", epilog=f"Example: stn-table report runs/table --out report.html\n\n{EXIT_CODES}"
)
@guarded
def write_report(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    data_dir: DataDirOption = None,
) -> None:
    """Write one HTML page with the table, curves, pictures, an animation and the commands."""
    from stn_train.atomic import write_atomically
    from stn_train.report import report

    page = report(runs, data_dir).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda stream: stream.write(page))
    typer.echo(f"report      {out}, {len(page) / 1e6:.1f} MB")


def results_of(runs: Path | None) -> list[dict[str, Any]]:
    """The results of runs, or the ones that ship with the program."""
    from stn_train.result import reference_results, results_in

    return reference_results() if runs is None else results_in(runs)
