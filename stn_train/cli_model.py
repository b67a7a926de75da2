"""`stn-eval`, `stn-visualize`, `stn-export`: a trained model measured, drawn, written."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stn_train.command import (
    PICTURE_FORMS,
    DataDirOption,
    Device,
    DeviceOption,
    JsonOption,
    RunArgument,
    checked_path,
    command,
    tell_errors,
)
from stn_train.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stn_train.digits import Digits
    from stn_train.run_directory import Run


class Picture(StrEnum):
    """What to draw."""

    grid = "grid"
    means = "means"
    classes = "classes"
    poses = "poses"
    curves = "curves"


class Form(StrEnum):
    """What a model is exported as."""

    onnx = "onnx"
    pt2 = "pt2"


@command("Example: stn-eval runs/rts_affine-seed1 --json")
def run_eval(
    run: RunArgument,
    as_json: JsonOption = False,
    draws: Annotated[
        int | None,
        typer.Option(
            help="How many fixed draws of the test distortion. Default: the run's evaluate.draws.",
            min=1,
            max=100,
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
    from stn_train.run_directory import load_run

    keep_freed_memory()
    loaded = load_run(run)
    where = choose_device(device)
    kind = loaded.config.distort if distortion is None else other_distortion(loaded, distortion)
    test = test_digits(loaded, data_dir).to(where)
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
    if not loaded.directory.result.exists():
        typer.echo("            of a run that has not finished")
    tell_errors(report)
    typer.echo(f"test set    {evaluation.digits:,} digits, SHA-256 {evaluation.test_sha256}")
    typer.echo("confusion   rows: true digit; columns: prediction; first draw")
    typer.echo("         " + "".join(f"{digit:6}" for digit in range(len(evaluation.confusion))))
    for digit, row in enumerate(evaluation.confusion):
        typer.echo(f"{digit:9}" + "".join(f"{count or '.':>6}" for count in row))


@command("Example: stn-visualize runs/rts_affine-seed1 --out grid.png")
def run_visualize(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT...",
            help="A run directory or a checkpoint; several with --picture curves only.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The picture. Default: beside the checkpoint; of several, here."),
    ] = None,
    picture: Annotated[
        Picture | None,
        typer.Option(
            help="grid (the default): digits before and after; means: each class's mean and "
            "deviation; classes: each class's error; poses: what the transformer undoes; curves: "
            "loss and error, of several runs too."
        ),
    ] = None,
    animate: Annotated[
        str | None,
        typer.Option(
            help="training.gif: through the snapshots of a run (log.snapshots); rotation.gif: "
            "digits swept through their distortion. Instead of a picture.",
            metavar="NAME",
        ),
    ] = None,
    misclassified: Annotated[
        bool, typer.Option("--misclassified", help="grid: show the most confident mistakes.")
    ] = False,
    digits: Annotated[
        int | None, typer.Option(help="grid: how many digits to show; else 15.", min=1, max=100)
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Draw what a trained model does to its digits, or how its training went."""
    from stn_train.visualiser import save

    drawn = picture or Picture.grid
    if animate and picture:
        raise ConfigError(["give one of --animate and --picture"])
    for flag, given in (("--misclassified", misclassified), ("--digits", digits)):
        if given and (animate or drawn != Picture.grid):
            raise ConfigError([f"{flag} goes with --picture grid"])
    if len(runs) > 1 and (animate or drawn != Picture.curves):
        raise ConfigError(["several runs go with --picture curves"])
    if out is not None:
        checked_path(out, "--out", (".gif",) if animate else PICTURE_FORMS)
    if animate:
        typer.echo(f"animation   {save_moving(runs[0], animate, out, data_dir)}")
        return
    if drawn == Picture.curves:
        figure, path = curves_of(runs)
    else:
        figure, path = picture_of(runs[0], drawn, misclassified, digits, data_dir)
    typer.echo(f"picture     {save(figure, out or path)}")


def save_moving(folder: Path, animate: str, out: Path | None, data_dir: Path | None) -> Path:
    """Write the animation that --animate names."""
    from stn_train.animation import ANIMATIONS, save_animation
    from stn_train.run_directory import load_run

    name = animate.removesuffix(".gif")
    if name not in ANIMATIONS:
        can = " or ".join(f"{each}.gif" for each in ANIMATIONS)
        raise ConfigError([f"--animate is {animate!r}; it can be {can}; --out names another file"])
    run = load_run(folder)
    frames = ANIMATIONS[name](run, test_digits(run, data_dir))
    return save_animation(frames, out or beside(run, f"{name}.gif"))


def picture_of(
    folder: Path, picture: Picture, misclassified: bool, digits: int | None, data_dir: Path | None
) -> "tuple[Figure, Path]":
    """A picture of a run's digits, and where it goes unless told otherwise."""
    from stn_train.album import PICTURES
    from stn_train.run_directory import load_run
    from stn_train.visualiser import digits_page

    run = load_run(folder)
    test = test_digits(run, data_dir)
    if picture != Picture.grid:
        return PICTURES[picture](run, test), beside(run, f"{picture}.png")
    name = "misclassified.png" if misclassified else "grid.png"
    return digits_page(run, test, digits or 15, misclassified), beside(run, name)


def curves_of(runs: Sequence[Path]) -> "tuple[Figure, Path]":
    """The learning curves of runs, and where they go: of one beside it, of several here."""
    from stn_train.charts import learning_curves
    from stn_train.run_directory import directory_of

    folders, name = [directory_of(run) for run in runs], "curves.png"
    names = [folder.path.absolute().name for folder in folders]
    if len(set(names)) < len(folders):
        names = [str(folder.path) for folder in folders]
    metrics = {run: folder.read_metrics() for run, folder in zip(names, folders, strict=True)}
    if len(folders) == 1:
        return learning_curves(names[0], metrics), folders[0].path / name
    return learning_curves(f"{len(metrics)} runs", metrics), Path(name)


@command("Example: stn-export runs/rts_affine-seed1 --format onnx")
def run_export(
    run: RunArgument,
    form: Annotated[
        Form, typer.Option("--format", help="onnx: for other programs; pt2: for PyTorch.")
    ] = Form.onnx,
    out: Annotated[
        Path | None, typer.Option(help="The file. Default: beside the checkpoint, model.onnx.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a trained model for other programs, run the file, and compare."""
    from stn_train.atomic import pretty_json
    from stn_train.exporter import BATCHES, export
    from stn_train.run_directory import load_run

    loaded = load_run(run)
    path = checked_path(out or beside(loaded, f"model.{form}"), "--out", (f".{form}",))
    difference = export(loaded, form, path)
    if as_json:
        side = loaded.config.distort.canvas_px
        report = {"file": str(path), "format": form, "input": [None, 1, side, side]}
        typer.echo(pretty_json(report | {"largest_difference": difference}))
        return
    typer.echo(f"exported    {path}, {path.stat().st_size / 1e6:.1f} MB")
    batches = " and ".join(map(str, BATCHES))
    typer.echo(f"checked     batches of {batches}: logits differ by {difference:.1g} at most")


def beside(run: "Run", name: str) -> Path:
    """Where a file made of a checkpoint goes: beside it, saying which unless it is the newest."""
    checkpoint = run.checkpoint
    return checkpoint.with_name(name if checkpoint.stem == "last" else f"{checkpoint.stem}-{name}")


def test_digits(run: "Run", data_dir: Path | None) -> "Digits":
    """The test digits that a run's config asks for."""
    from stn_train.data import load_splits

    return load_splits(run.config.data, data_dir).test


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
