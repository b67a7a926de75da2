"""`stn-eval`, `stn-visualize`, `stn-export`: a trained model measured, drawn, written."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stn_train.command import (
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
    import torch
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
    from stn_train.run_directory import load_run

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
        Picture,
        typer.Option(
            help="grid: digits before and after; means: each class's mean and deviation; classes: "
            "each class's error; poses: what the transformer undoes; curves: loss and error, of "
            "several runs too."
        ),
    ] = Picture.grid,
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
        int, typer.Option(help="grid: how many digits to show.", min=1, max=100)
    ] = 15,
    data_dir: DataDirOption = None,
) -> None:
    """Draw what a trained model does to its digits, or how its training went."""
    import torch

    from stn_train import album, animation, visualiser
    from stn_train.run_directory import load_run

    if misclassified and (animate or picture != Picture.grid):
        raise ConfigError(["--misclassified goes with --picture grid"])
    if len(runs) > 1 and (animate or picture != Picture.curves):
        raise ConfigError(["several runs go with --picture curves"])
    moving = (animate or "").removesuffix(".gif")
    if animate is not None and moving not in animation.ANIMATIONS:
        can = " or ".join(f"{name}.gif" for name in animation.ANIMATIONS)
        raise ConfigError([f"--animate is {animate!r}; it can be {can}; --out names another file"])
    if len(runs) > 1:
        path = checked_path(out or Path("curves.png"), "--out")
        typer.echo(f"picture     {visualiser.save(curves_of(runs), path)}")
        return
    run, cpu = load_run(runs[0]), torch.device("cpu")
    if moving:
        path = checked_path(out or beside(run, f"{moving}.gif"), "--out", (".gif",))
        frames = animation.ANIMATIONS[moving](run, test_digits(run, cpu, data_dir))
        typer.echo(f"animation   {animation.save_animation(frames, path)}")
        return
    name = "misclassified" if misclassified else str(picture)
    path = checked_path(out or beside(run, f"{name}.png"), "--out")
    if picture == Picture.curves:
        figure = album.curves(run)
    elif picture == Picture.grid:
        test = test_digits(run, cpu, data_dir)
        figure = visualiser.digits_page(run, test, digits, misclassified)
    else:
        figure = album.PICTURES[picture](run, test_digits(run, cpu, data_dir))
    typer.echo(f"picture     {visualiser.save(figure, path)}")


def curves_of(runs: Sequence[Path]) -> "Figure":
    """The learning curves of several runs, named after their folders."""
    from stn_train.charts import learning_curves
    from stn_train.run_directory import RunDirectory

    folders = [each if each.is_dir() else each.parent for each in runs]
    alike = len({folder.name for folder in folders}) < len(folders)
    metrics = {
        str(folder) if alike else folder.name: RunDirectory(folder).read_metrics()
        for folder in folders
    }
    return learning_curves(f"{len(metrics)} runs", metrics)


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
