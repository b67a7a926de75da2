"""Pictures of one's own: what a trained model says of them, and how its transformer sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stn_train.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from stn_train.data.distortion import Distortion
    from stn_train.runs.directory import Run
    from stn_train.tasks.examples import Examples


def examples_of(
    run: "Run", files: Sequence[Path], labels: Sequence[int | None], distortion: "Distortion"
) -> "Examples":
    """Pictures in files as a run's model is shown them; those without a label get 0.

    Raises DataError if one cannot be read, ConfigError if the task is not to tell its class.
    """
    import torch

    from stn_train.data.images import Images
    from stn_train.tasks.examples import Examples

    task = run.config.task.with_distortion(distortion)
    if task.classes(run.format) != run.format.classes:
        raise ConfigError(
            [
                f"{run.config.title}: pictures of your own go with tasks that ask for the class of "
                f"an image; {run.config.task_name} does not"
            ]
        )
    source, shape = run.config.data.source, run.format.shape
    pixels = torch.stack([source.picture(file, shape) for file in files])
    known = torch.tensor([label or 0 for label in labels])
    return Examples.for_test(task, Images(pixels, known, run.format.classes), 0)


def gallery(run: "Run", files: Sequence[Path], distortion: "Distortion") -> "Figure":
    """A page of pictures with their grids and predictions.

    Raises ConfigError if there are too many for a page, and as `examples_of` does.
    """
    from stn_train.visualiser.gallery import MAX_PICTURES, gallery_page

    if len(files) > MAX_PICTURES:
        told = f"--image names {len(files)} pictures; a page has room for {MAX_PICTURES}"
        raise ConfigError([f"{told}; stn-eval RUN --images FOLDER takes any number"])
    return gallery_page(run, files, examples_of(run, files, [None] * len(files), distortion))


def report_pictures(
    run: "Run", folder: Path, distortion: "Distortion", device: "torch.device"
) -> dict[str, Any]:
    """What a model says of the pictures in a folder, and how often it errs where that is known."""
    from stn_train.data.own_pictures import pictures_in
    from stn_train.evaluator import confusion_of, predict, wilson_interval
    from stn_train.tasks.examples import Examples, on_device

    found = pictures_in(folder, run.format.classes)
    files, labels = [each.path for each in found], [each.label for each in found]
    shown = examples_of(run, files, labels, distortion)
    images = shown.images.to(device)
    examples = Examples(shown.task, images, on_device(shown.draws, images))
    outputs, _ = predict(run.model.to(device), examples)
    outputs = outputs.cpu()
    answers, names = shown.task.answers(outputs), run.format.classes
    percents = (100 * outputs.softmax(1).amax(1)).tolist()
    known = all(label is not None for label in labels)
    wrong = int((answers != shown.images.labels).sum())
    return {
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "folder": str(folder),
        "pictures": len(files),
        "wrong": wrong if known else None,
        "error_percent": 100 * wrong / len(files) if known else None,
        "interval_95_percent": wilson_interval(wrong, len(files)) if known else None,
        "confusion": confusion_of(shown.images.labels, answers, len(names)).tolist()
        if known
        else None,
        "predictions": [
            {
                "file": str(file.relative_to(folder)),
                "class": None if label is None else names[label],
                "prediction": names[answer],
                "percent": round(percent, 2),
            }
            for file, label, answer, percent in zip(
                files, labels, answers.tolist(), percents, strict=True
            )
        ],
    }


def tell_pictures(report: dict[str, Any], title: str) -> None:
    """Print what `report_pictures` returned, but for the confusion."""
    typer.echo(f"{title}, pictures in {report['folder']}")
    typer.echo(f"checkpoint  {report['checkpoint']}, step {report['step']:,}")
    width = max(len(each["file"]) for each in report["predictions"])
    for each in report["predictions"]:
        wrong = "" if each["class"] in (None, each["prediction"]) else f"   not {each['class']}"
        percent = f"({each['percent']:.0f} %)"
        typer.echo(f"{each['file']:{width}}  {each['prediction']:>4} {percent:>8}{wrong}")
    if report["wrong"] is not None:
        low, high = report["interval_95_percent"]
        typer.echo(
            f"error       {report['error_percent']:.2f} % (95 %: {low:.2f} to {high:.2f} %), "
            f"{report['wrong']} of {report['pictures']} pictures"
        )
