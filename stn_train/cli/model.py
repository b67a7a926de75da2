"""`stn-eval`, `stn-visualize`: measure and draw a trained model."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stn_train.cli.options import (
    PICTURE_FORMS,
    DataDirOption,
    Device,
    DeviceOption,
    JsonOption,
    RunArgument,
    checked_path,
    command,
    tell_score,
)
from stn_train.cli.pictures import gallery, report_pictures, tell_pictures
from stn_train.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stn_train.data.distortion import Distortion
    from stn_train.data.images import ImageFormat, Images
    from stn_train.runs.directory import Run


class Picture(StrEnum):
    """What to draw."""

    grid = "grid"
    means = "means"
    classes = "classes"
    poses = "poses"
    curves = "curves"
    volumes = "volumes"
    health = "health"


@command("Example: stn-eval runs/rts_affine-seed1 --json")
def run_eval(
    path: RunArgument,
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
        str | None,
        typer.Option(help="Test on another distortion: R, RTS, P, E, T, TC, crop or none."),
    ] = None,
    poses: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Average the answer over so many poses: the spatial transformer's own, and others "
            "near it. Another number than the one of a single pose.",
        ),
    ] = 1,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Pictures of your own instead of the test images: a folder of them, or one with a "
            "folder for each class. Not distorted unless --distortion says so.",
            metavar="FOLDER",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    data_dir: DataDirOption = None,
) -> None:
    """Measure the test error of a trained model."""
    for flag, given in (("--draws", draws is not None), ("--poses", poses > 1)):
        if images is not None and given:
            raise ConfigError([f"{flag} goes with the test images, not with --images"])

    from stn_train.evaluator import evaluate
    from stn_train.runs.directory import load_run
    from stn_train.runs.files import pretty_json
    from stn_train.runs.machine import choose_device, keep_freed_memory
    from stn_train.trainer.observers import draws_on_a_bar

    keep_freed_memory()
    trained = load_run(path)
    if images is not None:
        shown_as = distortion_named(trained, distortion or "none")
        pictures = report_pictures(trained, images, shown_as, choose_device(device))
        if as_json:
            typer.echo(pretty_json(pictures))
        else:
            tell_pictures(pictures, f"{trained.config.title}, seed {trained.config.seed}")
        return
    config, cell, where = trained.config, trained.config.cell, choose_device(device)
    tested_on = distortion or cell.distortion
    task = config.task.with_distortion(distortion_named(trained, tested_on))
    test = test_images(trained, data_dir).to(where)
    if poses > 1 and not (trained.model.front and len(task.shape(trained.format)) == 3):
        told = "--poses needs a spatial transformer in front that warps images"
        raise ConfigError([f"{config.title}: {told}; without it, leave --poses out"])
    draws = draws or config.evaluate.draws
    if not as_json:  # the test can take minutes: say at once what it is of
        averaged = f", averaged over {poses} poses" if poses > 1 else ""
        typer.echo(f"{config.title}, seed {config.seed}, tested on {tested_on}{averaged}")
        typer.echo(f"checkpoint  {trained.checkpoint}, step {trained.step:,}")
        if not trained.directory.result.exists():
            typer.echo("            of a run that has not finished")
    evaluation = evaluate(trained.model.to(where), task, test, draws, poses, draws_on_a_bar)
    report: dict[str, Any] = {
        "checkpoint": str(trained.checkpoint),
        "step": trained.step,
        "trained_on": cell.distortion,
        "distortion": tested_on,
        "distort": task.distortion.model_dump(mode="json"),
        "backbone": cell.backbone,
        "transform": cell.transform,
        "seed": config.seed,
        "poses": poses,
        **evaluation.as_dict(),
    }
    if as_json:
        typer.echo(pretty_json(report))
        return
    tell_score(report, task.measure)
    typer.echo(f"test set    {evaluation.count:,} images, SHA-256 {evaluation.test_sha256}")
    if evaluation.confusion:
        tell_confusion(evaluation.confusion, task.classes(trained.format))


def tell_confusion(confusion: list[list[int]], classes: Sequence[str]) -> None:
    """Print how often each class was taken for each, under the names of the classes."""
    heads = [name[:8] for name in classes]
    width = max(6, 1 + max(map(len, heads)))
    typer.echo("confusion   rows: true class; columns: prediction; first draw")
    typer.echo(" " * 9 + "".join(f"{head:>{width}}" for head in heads))
    for head, row in zip(heads, confusion, strict=True):
        typer.echo(f"{head:>9}" + "".join(f"{count or '.':>{width}}" for count in row))


@command("Example: stn-visualize runs/rts_affine-seed1 --out grid.png")
def run_visualize(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run directory, a checkpoint, or the name of a model that ships; several with "
            "--picture curves only.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            help="Instead of a picture of the test images: pictures of your own, each with its "
            "grid and the prediction. Several may follow: --image *.png",
            metavar="FILE...",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The picture. Default: beside the checkpoint; of several, here."),
    ] = None,
    picture: Annotated[
        Picture | None,
        typer.Option(
            help="grid (the default): images before and after; means: each class's mean and "
            "deviation; classes: each class's error; poses: what the transformer undoes; curves: "
            "loss and error, of several runs too; volumes: volumes from three sides; health: is "
            "the spatial transformer healthy, and if not, what to change."
        ),
    ] = None,
    animate: Annotated[
        str | None,
        typer.Option(
            help="training.gif: through the snapshots of a run (log.snapshots); rotation.gif: "
            "images swept through their distortion. Instead of a picture.",
            metavar="NAME",
        ),
    ] = None,
    misclassified: Annotated[
        bool, typer.Option("--misclassified", help="grid: show the most confident mistakes.")
    ] = False,
    digits: Annotated[
        int | None, typer.Option(help="grid: how many images to show; else 15.", min=1, max=100)
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Draw what a trained model does to its images, or how its training went."""
    drawn = picture or Picture.grid
    if images and (animate or picture):
        raise ConfigError(["--image goes with neither --picture nor --animate"])
    if images and (misclassified or digits):
        raise ConfigError(["--image goes with neither --misclassified nor --digits"])
    if images:
        paths, images = paths[:1], [*images, *paths[1:]]
    if animate and picture:
        raise ConfigError(["give one of --animate and --picture"])
    for flag, given in (("--misclassified", misclassified), ("--digits", digits)):
        if given and (animate or drawn != Picture.grid):
            raise ConfigError([f"{flag} goes with --picture grid"])
    if len(paths) > 1 and (animate or drawn != Picture.curves):
        raise ConfigError(["several runs go with --picture curves"])
    if out is not None:
        checked_path(out, "--out", (".gif",) if animate else PICTURE_FORMS)

    from stn_train.visualiser.style import save  # heavy: imported after what can be refused

    if animate:
        typer.echo(f"animation   {draw_animation(paths[0], animate, out, data_dir)}")
        return
    if images:
        figure, default = own_pictures(paths[0], images)
    elif drawn == Picture.curves:
        figure, default = curves_of(paths)
    else:
        figure, default = picture_of(paths[0], drawn, misclassified, digits, data_dir)
    typer.echo(f"picture     {save(figure, out or default)}")


def draw_animation(path: Path, animate: str, out: Path | None, data_dir: Path | None) -> Path:
    """Write the animation that --animate names; returns its path."""
    from stn_train.runs.directory import load_run
    from stn_train.visualiser.animation import ANIMATIONS, save_animation

    name = animate.removesuffix(".gif")
    if name not in ANIMATIONS:
        allowed = " or ".join(f"{each}.gif" for each in ANIMATIONS)
        raise ConfigError(
            [f"--animate is {animate!r}; it can be {allowed}; --out names another file"]
        )
    trained = load_run(path)
    frames = ANIMATIONS[name](trained, test_images(trained, data_dir))
    return save_animation(frames, out or beside(trained, f"{name}.gif"))


def picture_of(
    path: Path, picture: Picture, misclassified: bool, count: int | None, data_dir: Path | None
) -> "tuple[Figure, Path]":
    """A picture of a run's images, and its default path."""
    from stn_train.runs.directory import load_run
    from stn_train.visualiser.charts import PICTURES
    from stn_train.visualiser.pages import digits_page

    trained = load_run(path)
    test = test_images(trained, data_dir)
    if picture != Picture.grid:
        return PICTURES[picture](trained, test), beside(trained, f"{picture}.png")
    name = "misclassified.png" if misclassified else "grid.png"
    return digits_page(trained, test, count or 15, misclassified), beside(trained, name)


def own_pictures(path: Path, files: Sequence[Path]) -> "tuple[Figure, Path]":
    """A page of pictures of the user's, and its default path."""
    from stn_train.runs.directory import load_run

    trained = load_run(path)
    page = gallery(trained, files, distortion_named(trained, "none"))
    return page, beside(trained, "pictures.png")


def curves_of(paths: Sequence[Path]) -> "tuple[Figure, Path]":
    """The learning curves of runs, and their default path: beside one run, here for several."""
    from stn_train.runs.directory import directory_of
    from stn_train.visualiser.charts import learning_curves

    folders, name = [directory_of(path) for path in paths], "curves.png"
    names = [folder.path.absolute().name for folder in folders]
    if len(set(names)) < len(folders):
        names = [str(folder.path) for folder in folders]
    metrics = {title: folder.read_metrics() for title, folder in zip(names, folders, strict=True)}
    if len(folders) == 1:
        return learning_curves(names[0], metrics), in_folder(folders[0].path, name)
    return learning_curves(f"{len(metrics)} runs", metrics), Path(name)


def beside(trained: "Run", name: str) -> Path:
    """Path for a file derived from a checkpoint: next to it.

    Prefixed with the checkpoint's name unless that is last.pt or model.safetensors.
    """
    checkpoint = trained.checkpoint
    own = "" if checkpoint.stem in ("last", "model") else f"{checkpoint.stem}-"
    return in_folder(checkpoint.parent, f"{own}{name}")


def in_folder(folder: Path, name: str) -> Path:
    """Path for a file in the folder of a run; of a model that ships, here, with its name."""
    from stn_train.runs.shipped_models import is_shipped

    return Path(f"{folder.name}-{name}") if is_shipped(folder) else folder / name


def test_images(trained: "Run", data_dir: Path | None) -> "Images":
    """The test images that a run's config asks for.

    Raises DataError if they are not like those it was trained on.
    """
    test = trained.config.load_splits(data_dir).test
    if test.format != trained.format:
        now, then = described(test.format, trained.format), described(trained.format, test.format)
        raise DataError(
            f"{trained.config.source_name} has changed since {trained.checkpoint} was trained: it "
            f"has {now} now and had {then} then"
        )
    return test


def described(images: "ImageFormat", other: "ImageFormat") -> str:
    """In words, what sets images apart from others: their shape or their classes."""
    if images.shape != other.shape:
        return f"images of {' x '.join(map(str, images.shape))} (channels, height, width)"
    return f"the classes {', '.join(images.classes):.200}"


def distortion_named(trained: "Run", name: str) -> "Distortion":
    """The distortion that a run was trained on, or another one on canvases of the same size.

    Raises ConfigError if there is none of that name, or its images are meant to be larger.
    """
    from stn_train.data.distortions import DISTORTIONS

    own = trained.config.distortion
    if name == trained.config.cell.distortion:
        return own
    if name not in DISTORTIONS:
        raise ConfigError([f"--distortion is {name!r}; it can be {', '.join(DISTORTIONS)}"])
    needed_px, side_px = DISTORTIONS[name]().fitted(own.image_px).canvas_px, own.canvas_px
    if needed_px > side_px:
        sides = f"{needed_px} x {needed_px}, this model reads {side_px} x {side_px}"
        raise ConfigError([f"--distortion {name}: its images are {sides}"])
    return DISTORTIONS[name](canvas_px=side_px).fitted(own.image_px)
