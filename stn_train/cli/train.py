"""`stn-train`: train a model, and test it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stn_train
from stn_train.cli.options import (
    DataDirOption,
    Device,
    DeviceOption,
    JsonOption,
    QuietOption,
    command,
    tell_score,
)
from stn_train.errors import CheckpointError, ConfigError, StnError
from stn_train.shipped_configs import complete_config, shipped_configs

if TYPE_CHECKING:
    import torch

    from stn_train.config import Config
    from stn_train.data.images import Images
    from stn_train.data.sources import Splits
    from stn_train.runs.directory import Run, RunDirectory
    from stn_train.runs.result import Result
    from stn_train.trainer.observers import Observer

RUNS = Path("runs")
"""Where a run goes unless --out names a folder."""


def tell_version(wanted: bool) -> None:
    """Print the version and end, if that is wanted."""
    if wanted:
        typer.echo(f"stn_train {stn_train.__version__}")
        raise typer.Exit


def tell_configs(wanted: bool) -> None:
    """Print the shipped configs with their titles and end, if that is wanted."""
    if wanted:
        paths = sorted(shipped_configs(), key=lambda path: path.stem != "quickstart")  # it first
        width = max(len(path.name) for path in paths)
        for path in paths:
            title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            typer.echo(f"{path.name:{width}}  {title}")
        raise typer.Exit


@command("Example: stn-train --config rts_affine.yaml --set train.epochs=10")
def run_train(
    config: Annotated[
        str | None,
        typer.Option(
            help="A YAML file, or the bare name of a shipped config.",
            metavar="NAME",
            autocompletion=complete_config,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting; may be repeated.", metavar="SECTION.KEY=VALUE"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Instead of the config's seed.", min=0, max=2**63 - 1)
    ] = None,
    device: DeviceOption = Device.auto,
    out: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/<config>-seed<seed>.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Resume the run in this directory. auto: the one of --out, or "
            "runs/<config>-seed<seed>, if it exists; else start it.",
            metavar="RUN",
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="With --resume: resume although settings differ."),
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run a few steps, write nothing, estimate the time of all."),
    ] = False,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Print versions, devices, data and free disk, and end.")
    ] = False,
    list_configs: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--list-configs",
            help="List the shipped configs and end.",
            callback=tell_configs,
            is_eager=True,
        ),
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", help="Print the version and end.", callback=tell_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train a spatial transformer network (or a baseline) on distorted images and test it."""
    if doctor:
        tell_doctor(device, data_dir, as_json)
        return
    overrides = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    if accept_changes and not (resume and (config or overrides)):
        raise ConfigError(["--accept-changes goes with --resume and --config, --set or --seed"])
    auto = resume == "auto"
    if resume and not auto and out is not None:
        raise ConfigError(["--out does not go with --resume RUN: the run has its folder"])
    if dry_run and (resume or out):
        raise ConfigError(["--dry-run goes with neither --resume nor --out: it writes nothing"])
    stopped = run_to_resume(resume) if resume and not auto else None
    unchanged = config is None and not overrides
    if stopped is not None and unchanged and tell_if_complete(stopped, as_json):
        return
    settings = settings_of(config, overrides, stopped)

    from stn_train.runs.machine import choose_device, keep_freed_memory
    from stn_train.trainer.observers import tell

    keep_freed_memory()
    where = choose_device(device)
    splits = settings.load_splits(data_dir)
    if not quiet:
        tell(f"images: {splits.origin}")
    if dry_run:
        tell_rehearsal(settings, splits, where, as_json)
        return
    name = f"{config_name(config)}-seed{settings.seed}"
    with open_run(stopped, auto, out, name) as run:
        if not tell_if_complete(run.path, as_json, settings):
            train_in(run, settings, splits, where, accept_changes, quiet, as_json)


def run_to_resume(resume: str) -> Path:
    """The run directory that --resume names, itself or by a checkpoint in it."""
    from stn_train.runs.directory import directory_of
    from stn_train.runs.files import absent

    if not Path(resume).exists():
        raise CheckpointError(absent(Path(resume)))
    return directory_of(Path(resume)).path


def settings_of(config: str | None, overrides: list[str], stopped: Path | None) -> "Config":
    """The config that --config names, else that of the stopped run; with overrides."""
    from stn_train.config_file import changed_config, load_config

    if config is not None:
        return load_config(config, overrides)
    if stopped is None:
        raise ConfigError(["name a config with --config; --list-configs shows the shipped ones"])

    from stn_train.runs.directory import RunDirectory

    return changed_config(RunDirectory(stopped).trained_config(), overrides)


def open_run(stopped: Path | None, auto: bool, out: Path | None, name: str) -> "RunDirectory":
    """The run directory: of the run that was stopped, of an existing one (auto), or a new one."""
    from stn_train.runs.directory import RunDirectory

    if stopped is not None:
        return RunDirectory.reopen(stopped)
    if auto:
        return RunDirectory.claim_or_reopen(out or RUNS / name)
    return RunDirectory.claim(out) if out else RunDirectory.claim_next(RUNS, name)


def config_name(config: str | None) -> str:
    """The config's name, for the run's; of a config in a run directory, that directory's name."""
    path = Path(config or "")
    return path.absolute().parent.name if path.stem == "config" else path.stem


def train_in(
    run: "RunDirectory",
    settings: "Config",
    splits: "Splits",
    device: "torch.device",
    accept_changes: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train in a run directory, print the result, and draw the pictures."""
    from stn_train.runs.directory import Run
    from stn_train.runs.files import pretty_json
    from stn_train.trainer.loop import train
    from stn_train.trainer.observers import progress

    observer = progress(quiet)
    trained = train(settings, splits, run, device, observer, accept_changes)
    if as_json:
        typer.echo(pretty_json(trained.result.as_dict()))
    else:
        tell_result(settings, trained.result)
        typer.echo(f"run         {run.path}")
    finished = Run(run.last, settings, trained.model.cpu(), trained.steps, splits.training.format)
    for path in draw_pictures(finished, splits.test, observer):
        if not as_json:
            typer.echo(f"picture     {path}")


def draw_pictures(run: "Run", test: "Images", observer: "Observer") -> "Iterator[Path]":
    """Draw every picture of a finished run into its directory; yields their paths."""
    # Imported now: the first step of the training does not wait for matplotlib.
    from stn_train.runs.machine import hand_back_freed_memory
    from stn_train.visualiser.charts import PICTURES, pictures_of
    from stn_train.visualiser.style import save

    hand_back_freed_memory()
    for name in pictures_of(run.config):
        try:
            figure = PICTURES[name](run, test)
        except StnError as error:  # the run itself is whole
            observer.warned(f"no picture {name}: {error}")
            continue
        yield save(figure, run.directory.path / f"{name}.png")


def tell_if_complete(path: Path, as_json: bool, settings: "Config | None" = None) -> bool:
    """Say that there is nothing left to do in a run directory, if so.

    Raises ConfigError if its run is one of other settings.
    """
    from stn_train.config_changes import refuse_other_config
    from stn_train.runs.directory import RunDirectory
    from stn_train.runs.result import Result

    run = RunDirectory(path)
    if not run.result.exists():
        return False
    if settings is not None:
        advice = "it is finished; name another --out"
        refuse_other_config(path, Result.read(run.result).config, settings, advice)
    if as_json:
        typer.echo(run.result.read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(f"{run.path} is complete; stn-eval {run.path} shows its test error")
    return True


def tell_result(config: "Config", result: "Result") -> None:
    """Print the result of a run, beside the published number where there is one."""
    from stn_train.table.paper import table_for

    typer.echo(f"{config.title}, seed {config.seed}")
    tell_score(result.as_dict(), config.task.measure)
    table = table_for(config)
    if table is not None:
        published = f"{table.published(config.cell)} {config.task.measure.unit}"
        typer.echo(f"paper       {published} ({table.origin(config.cell)})")
    typer.echo(
        f"model       {result.parameters:,} parameters, {result.passes:.3g} x "
        f"{result.training_digits:,} images in {result.train_seconds:.0f} s"
    )


def tell_rehearsal(
    settings: "Config", splits: "Splits", device: "torch.device", as_json: bool
) -> None:
    """Take a few steps of a run, and print how long the whole would take."""
    from stn_train.runs.files import pretty_json
    from stn_train.trainer.rehearsal import rehearse

    done = rehearse(settings, splits, device)
    if as_json:
        typer.echo(pretty_json(done._asdict()))
        return
    size = f"{done.parameters:,} parameters, {done.steps:,} steps"
    typer.echo(f"{settings.title}: {size} on {device}")
    typer.echo(f"a step      {1000 * done.step_seconds:.1f} ms")
    typer.echo(f"the test    {done.test_seconds:.0f} s, {settings.evaluate.draws} draws")
    typer.echo(f"the run     {done.total_seconds / 60:.1f} min, if the machine stays as it is")


def tell_doctor(device: Device, data_dir: Path | None, as_json: bool) -> None:
    """Print what a report of a problem needs: versions, devices, data, disk."""
    from stn_train.runs.environment import examine
    from stn_train.runs.files import pretty_json

    found = examine(device, data_dir)
    if as_json:
        typer.echo(pretty_json(found))
        return
    for key, value in found.items():
        for number, line in enumerate(value if isinstance(value, list) else [value]):
            typer.echo(f"{'' if number else key:16}{line}")
