"""The pictures of a run, by name."""

from collections.abc import Callable

from matplotlib.figure import Figure

from stn_train.charts import class_errors, learning_curves, poses_undone
from stn_train.config import Config
from stn_train.digits import Digits
from stn_train.run_directory import Run
from stn_train.visualiser import class_means, digits_page


def curves(run: Run, _: Digits | None = None) -> Figure:
    """Loss and validation error over the passes; needs no digits."""
    metrics = run.directory.read_metrics()
    return learning_curves(run.config.cell, {run.config.cell: metrics})


PICTURES: dict[str, Callable[[Run, Digits], Figure]] = {
    "grid": digits_page,
    "means": class_means,
    "classes": class_errors,
    "poses": poses_undone,
    "curves": curves,
}
"""What can be drawn of a run and the test digits."""


def pictures_of(config: Config) -> list[str]:
    """Which pictures a run has: poses only with a spatial transformer."""
    return [name for name in PICTURES if name != "poses" or config.transform != "none"]
