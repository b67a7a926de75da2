"""`stn-table`: run the cells of the paper's table, and show what they came to."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stn_train.cli import EXIT_CODES, DataDirOption, Device, DeviceOption, guarded
from stn_train.errors import CheckpointError, StnError

run_table = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run the cells of the paper's table with several seeds, and show what they came to.",
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
    seeds: Annotated[int, typer.Option(help="Seeds 1 to this.", min=1, max=100)] = 3,
    recipe: Annotated[
        str, typer.Option(help="Settings of training: default or paper.")
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
) -> None:
    """Train what is missing; what was stopped goes on. May itself be stopped at any time."""
    import os

    from stn_train.device import choose_device
    from stn_train.jobs import TimeLeft, run_jobs
    from stn_train.progress import tell
    from stn_train.table import cells_like, grid, markdown, missing, results_in, table

    where = choose_device(device)
    chosen = [f"recipe={recipe}", *(overrides or [])]
    all_jobs = grid(cells_like(cells or []), range(1, seeds + 1), chosen)
    out.mkdir(parents=True, exist_ok=True)
    jobs_left = missing(all_jobs, out)
    ready, left = len(all_jobs) - len(jobs_left), TimeLeft(jobs_left)
    cores = os.cpu_count() or 1
    workers = jobs or (cores if where.type == "cpu" else min(4, cores))
    tell(f"{len(all_jobs)} runs, {ready} of them finished already; {workers} at a time")
    failed = []
    for outcome in run_jobs(jobs_left, out, workers, where, data_dir):
        ready, minutes = ready + 1, left.ended(outcome.job) / 60
        tell(f"{ready} of {len(all_jobs)}: {outcome.job.name} {outcome}, {minutes:.0f} min left")
        failed += [outcome] if outcome.problem else []
    typer.echo(markdown(table(results_in(out))), nl=False)
    if failed:
        names = ", ".join(sorted(outcome.job.name for outcome in failed))
        error = StnError(f"{len(failed)} runs failed: {names}; run the command again to go on")
        error.exit_code = failed[0].exit_code
        raise error


@run_table.command("show", epilog=f"Example: stn-table show runs/table --markdown\n\n{EXIT_CODES}")
@guarded
def show(
    runs: Annotated[
        Path | None,
        typer.Argument(help="Folder of the runs. Default: the results that ship with the program."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Measured beside published errors in %: mean ± standard deviation (paper, difference)."""
    from stn_train.table import comma_separated, markdown, reference_results, results_in, table

    results = reference_results() if runs is None else results_in(runs)
    if not results:
        raise CheckpointError(f"{runs} holds no finished run")
    rows = table(results)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        typer.echo(comma_separated(rows) if as_csv else markdown(rows), nl=False)
