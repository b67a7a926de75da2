"""`stn-train`: train a model, and test it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stn_train.cli_model import tell_errors
from stn_train.command import DataDirOption, Device, DeviceOption, command
from stn_train.errors import ConfigError

if TYPE_CHECKING:
    from stn_train.config import Config
    from stn_train.run_directory import RunDirectory

RUNS = Path("runs")
"""Where runs lie that were given no other folder."""


@command("Example: stn-train --config rts_affine.yaml --set train.epochs=10")
def run_train(
    config: Annotated[
        str | None,
        typer.Option(help="A YAML file, or the bare name of a shipped config.", metavar="NAME"),
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
            help="Go on with this run. auto: with the one that --config and --out mean, if there "
            "is one, else start it.",
            metavar="RUN",
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="With --resume: go on although settings differ."),
    ] = False,
    data_dir: DataDirOption = None,
    list_configs: Annotated[
        bool, typer.Option("--list-configs", help="List the shipped configs and end.")
    ] = False,
) -> None:
    """Train a spatial transformer network (or a baseline) on distorted digits and test it."""
    from stn_train.config_file import changed_config, load_config, shipped_configs

    if list_configs:
        for path in shipped_configs():
            title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            typer.echo(f"{path.name:26} {title}")
        return
    overrides = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    stopped = None if resume is None or resume == "auto" else Path(resume)
    if accept_changes and not (resume and (config or overrides)):
        raise ConfigError(["--accept-changes goes with --resume and --config, --set or --seed"])
    if stopped is not None and out is not None:
        raise ConfigError(["--out does not go with --resume RUN: the run has its folder"])
    if config is not None:
        settings = load_config(config, overrides)
    elif stopped is None:
        raise ConfigError(["name a config with --config; --list-configs shows the shipped ones"])

    from stn_train.album import PICTURES, pictures_of
    from stn_train.data import load_splits
    from stn_train.device import choose_device, keep_freed_memory
    from stn_train.progress import progress, tell
    from stn_train.run_directory import Run, RunDirectory
    from stn_train.trainer import train
    from stn_train.visualiser import save

    if stopped is not None:
        old = RunDirectory(stopped)
        if tell_if_complete(old):
            return
        if config is None:
            settings = changed_config(old.trained_config(), overrides)
    keep_freed_memory()
    where = choose_device(device)
    splits = load_splits(settings.data, data_dir)
    tell(f"digits: {splits.origin}")
    with open_run(resume, out, f"{config_name(config)}-seed{settings.seed}") as run:
        if tell_if_complete(run):
            return
        result = train(settings, splits, run, where, progress(), accept_changes)
        tell_result(settings, result.summary)
        typer.echo(f"run         {run.path}")
        trained = Run(run.last, settings, result.model.cpu(), result.summary["steps"])
        for picture in pictures_of(settings):
            figure = PICTURES[picture](trained, splits.test)
            typer.echo(f"picture     {save(figure, run.path / f'{picture}.png')}")


def open_run(resume: str | None, out: Path | None, name: str) -> "RunDirectory":
    """The folder to train in: a new one, whichever there is, or that of a stopped run."""
    from stn_train.run_directory import RunDirectory

    match resume:
        case None:
            return RunDirectory.claim(out) if out else RunDirectory.claim_next(RUNS, name)
        case "auto":
            return RunDirectory.claim_or_reopen(out or RUNS / name)
        case _:
            return RunDirectory.reopen(Path(resume))


def config_name(config: str | None) -> str:
    """What a run is named after: its config; the one in a run directory is named after that."""
    path = Path(config or "")
    return path.absolute().parent.name if path.stem == "config" else path.stem


def tell_if_complete(run: "RunDirectory") -> bool:
    """Say that there is nothing left to do, if so."""
    if run.result.exists():
        typer.echo(f"{run.path} is complete; stn-eval {run.path} shows its test error")
        return True
    return False


def tell_result(config: "Config", summary: dict[str, Any]) -> None:
    """What a run came to, beside the paper's number where there is one."""
    from stn_train.published import TABLE_1

    typer.echo(f"{config.cell}, seed {config.seed}")
    tell_errors(summary)
    cell = (config.distortion, config.backbone, config.transform)
    if config.data.source == "mnist" and cell in TABLE_1:
        typer.echo(f"paper       {TABLE_1[cell]} % (Table 1, mean of three runs)")
    typer.echo(
        f"model       {summary['parameters']:,} parameters, {summary['passes']:g} x "
        f"{summary['training_digits']:,} digits in {summary['train_seconds']:.0f} s"
    )
