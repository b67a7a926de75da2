"""The commands on a single run.

Each resolves its arguments, calls one function and prints where the output is. Nothing heavy is
imported before a command runs, so that --help answers at once.
"""

import functools
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from stn_train.errors import ConfigError, StnError
from stn_train.signals import Terminated, end_on_sigterm

if TYPE_CHECKING:
    import torch

    from stn_train.config import Config
    from stn_train.digits import Digits
    from stn_train.run_directory import Run, RunDirectory

P = ParamSpec("P")

RUNS = Path("runs")
"""Where runs lie that were given no other folder."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 something outside the program failed (disk, permission); 2 config or "
    "command line; 3 data missing or damaged; 4 checkpoint cannot be read; 5 training diverged; "
    "6 the run directory is taken; 130 interrupted (Ctrl-C), 143 terminated: a run has then been "
    "saved and can be resumed."
)


class Device(StrEnum):
    """Where to compute; auto takes a GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Picture(StrEnum):
    """What to draw."""

    grid = "grid"
    means = "means"
    curves = "curves"


RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run directory, or a checkpoint file."),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder with MNIST (a torchvision root). Else $STN_DATA_DIR, ./data, cache."),
]


def command(epilog: str) -> Callable[[Callable[P, None]], Callable[[], None]]:
    """Make a function a console script of its own, with errors told in plain words."""

    def decorate(function: Callable[P, None]) -> Callable[[], None]:
        app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(epilog=f"{epilog}\n\n{EXIT_CODES}")(guarded(function))
        return app

    return decorate


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """The function, but errors end the program with a message and their exit code."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        end_on_sigterm()
        try:
            function(*args, **kwargs)
        except StnError as error:
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            raise  # the reader of our output has gone: click ends quietly
        except OSError as error:
            fail(str(error), StnError.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except Terminated:
            fail("terminated", 143)

    return guarded


def fail(message: str, exit_code: int) -> None:
    """End the program with a message on standard error."""
    for line in message.splitlines():
        typer.echo(f"error: {line}" if not line.startswith(" ") else f"     {line}", err=True)
    raise typer.Exit(exit_code)


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

    from stn_train.data import load_splits
    from stn_train.device import choose_device, keep_freed_memory
    from stn_train.progress import progress, tell
    from stn_train.run_directory import Run, RunDirectory
    from stn_train.trainer import train

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
        for picture in Picture:
            path = draw(picture, trained, splits.test, run.path / f"{picture}.png")
            typer.echo(f"picture     {path}")


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


@command("Example: stn-eval runs/rts_affine-seed1 --json")
def run_eval(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            help="Fixed draws of the test distortion. Default: the run's own.", min=1, max=100
        ),
    ] = None,
    distortion: Annotated[
        str | None, typer.Option(help="Test on another distortion: R, RTS, P, E or none.")
    ] = None,
    device: DeviceOption = Device.auto,
    data_dir: DataDirOption = None,
) -> None:
    """Measure the test error of a trained model."""
    from stn_train.atomic import pretty_json
    from stn_train.device import choose_device, keep_freed_memory
    from stn_train.evaluator import evaluate
    from stn_train.run_directory import RunDirectory, load_run

    keep_freed_memory()
    loaded = load_run(run)
    where = choose_device(device)
    kind = loaded.config.distort if distortion is None else other_distortion(loaded, distortion)
    test = test_digits(loaded, where, data_dir)
    evaluation = evaluate(loaded.model.to(where), test, kind, draws or loaded.config.evaluate.draws)
    report: dict[str, Any] = {
        "checkpoint": str(loaded.checkpoint),
        "step": loaded.step,
        "trained_on": loaded.config.distortion,
        "distortion": distortion or loaded.config.distortion,
        "distort": kind.model_dump(),
        "backbone": loaded.config.backbone,
        "transform": loaded.config.transform,
        "seed": loaded.config.seed,
        **evaluation.as_dict(),
    }
    if as_json:
        typer.echo(pretty_json(report))
        return
    typer.echo(f"{loaded.config.cell}, seed {loaded.config.seed}, tested on {report['distortion']}")
    typer.echo(f"checkpoint  {loaded.checkpoint}, step {loaded.step:,}")
    if not RunDirectory(loaded.checkpoint.parent).result.exists():
        typer.echo("            of a run that has not finished")
    tell_errors(report)
    typer.echo(f"test set    {evaluation.digits:,} digits, SHA-256 {evaluation.test_sha256}")
    typer.echo("confusion   rows: true digit; columns: prediction; first draw")
    typer.echo("         " + "".join(f"{digit:6}" for digit in range(len(evaluation.confusion))))
    for digit, row in enumerate(evaluation.confusion):
        typer.echo(f"{digit:9}" + "".join(f"{count or '.':>6}" for count in row))


@command("Example: stn-visualize runs/rts_affine-seed1 --out grid.png")
def run_visualize(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="The picture. Default: beside the checkpoint.")
    ] = None,
    picture: Annotated[
        Picture,
        typer.Option(
            help="grid: digits before and after; means: class means; curves: loss and error."
        ),
    ] = Picture.grid,
    misclassified: Annotated[
        bool, typer.Option("--misclassified", help="grid: show the most confident mistakes.")
    ] = False,
    digits: Annotated[
        int, typer.Option(help="grid: how many digits to show.", min=1, max=100)
    ] = 15,
    data_dir: DataDirOption = None,
) -> None:
    """Draw what a trained model does to its digits, or how its training went."""
    import torch

    from stn_train.run_directory import load_run

    if misclassified and picture != Picture.grid:
        raise ConfigError([f"--misclassified goes with --picture grid, not with {picture}"])
    loaded = load_run(run)
    name = "misclassified" if misclassified else str(picture)
    if loaded.checkpoint.stem != "last":  # the run's own pictures are of its newest checkpoint
        name = f"{loaded.checkpoint.stem}-{name}"
    path = picture_path(out or loaded.checkpoint.with_name(f"{name}.png"), "--out")
    test = test_digits(loaded, torch.device("cpu"), data_dir) if picture != "curves" else None
    typer.echo(f"picture     {draw(picture, loaded, test, path, digits, misclassified)}")


def picture_path(path: Path, flag: str) -> Path:
    """The path, if a picture can be written there."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise ConfigError([f"{flag} {path}: the name must end in .png, .pdf, .svg or .jpg"])
    return path


def draw(
    picture: Picture,
    run: "Run",
    test: "Digits | None",
    path: Path,
    count: int = 15,
    misclassified: bool = False,
) -> Path:
    """Draw one picture of a run and save it."""
    from stn_train import visualiser
    from stn_train.run_directory import RunDirectory

    if test is None or picture == Picture.curves:
        metrics = RunDirectory(run.checkpoint.parent).read_metrics()
        figure = visualiser.learning_curves(run.config.cell, metrics)
    elif picture == Picture.means:
        figure = visualiser.class_means(run, test)
    else:
        figure = visualiser.digits_page(run, test, count, misclassified)
    return visualiser.save(figure, path)


def test_digits(run: "Run", device: "torch.device", data_dir: Path | None) -> "Digits":
    """The test digits that a run's config asks for, on a device."""
    from stn_train.data import load_splits

    return load_splits(run.config.data, data_dir).test.to(device)


def other_distortion(run: "Run", name: str) -> Any:
    """Another distortion than a run was trained on, on images of the size that its model reads."""
    from stn_train.distortions import DISTORTIONS

    if name == run.config.distortion:
        return run.config.distort
    if name not in DISTORTIONS:
        raise ConfigError([f"--distortion is {name!r}; it can be {', '.join(DISTORTIONS)}"])
    literal, side = DISTORTIONS[name](), run.config.distort.canvas_px
    if literal.canvas_px > side:
        own = f"{literal.canvas_px} x {literal.canvas_px}"
        raise ConfigError(
            [f"--distortion {name}: its images are {own}, this model reads {side} x {side}"]
        )
    return DISTORTIONS[name](canvas_px=side)


def tell_errors(report: dict[str, Any]) -> None:
    """The error of an evaluation, with what it is worth."""
    low, high = report["interval_95_percent"]
    typer.echo(
        f"test error  {report['test_error_percent']:.2f} % (95 %: {low:.2f} to {high:.2f} %)"
    )
    if len(report["draws_percent"]) > 1:
        low, high = report["draws_mean_interval_95_percent"]
        typer.echo(
            f"            {report['draws_mean_percent']:.2f} % in the mean of "
            f"{len(report['draws_percent'])} draws (95 %: {low:.2f} to {high:.2f} %)"
        )


if __name__ == "__main__":
    sys.exit("use stn-train, stn-eval or stn-visualize")
