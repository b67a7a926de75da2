"""result.json: what a finished run measured, and on what. Written and read here."""

import json
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from stn_train.cell import Cell
from stn_train.errors import CheckpointError
from stn_train.runs.directory import RunDirectory
from stn_train.runs.files import absent
from stn_train.runs.shipped_models import located
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure

Interval = Annotated[tuple[float, float], Field(strict=False)]  # JSON has lists only

NUMERICS = 2
"""Version of the arithmetic. With another one, a config and a seed give another rounding, and so
other weights; errors differ as between two seeds.

1: convolutions by the libraries' kernels. 2: on a CPU, those with a large kernel by Fourier
transforms (`stn_train.models.convolution`); Muon turns wide matrices by their Gram matrix.
"""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Result:
    """A finished run: how it was trained, and how its model did on the test images.

    Percentages are of the task's measure: the error, in a classification. A field that defaults
    to None is not in the files of early versions.
    """

    task: str = "classification"
    """Name in TASKS."""
    cell: Cell
    """Names of the distortion, the backbone and the transform."""
    recipe: str
    seed: int
    precision: str | None = None
    """What the networks multiplied in."""
    numerics: int = 1
    """NUMERICS of the program; 1 where the file does not say."""
    test_percent: float
    """On the first draw of the test distortion: the headline."""
    interval_95_percent: Interval | None = None
    """Of the first draw."""
    draws_mean_percent: float
    draws_mean_interval_95_percent: Interval | None = None
    draws_percent: list[float]
    """On each fixed draw."""
    test_digits: int
    """How many test images."""
    test_sha256: str
    """Identifies the test images and their first draw."""
    draws_sha256: list[str]
    """The same for each draw."""
    confusion: list[list[int]] | None = None
    """First draw; rows: true class, columns: answer. None where answers are not classes."""
    mistaken_digits: list[int]
    """Which test images were answered wrongly in any draw."""
    mistaken_on_draws: list[int]
    """In how many draws, for each of them."""
    validation_percent: float | None = None
    """The last; None without validation."""
    data: str
    """Name of the source in SOURCES."""
    training_digits: int
    """How many training images."""
    training_sha256: str | None = None
    passes: float
    steps: int | None = None
    parameters: int
    """Weights of the whole model."""
    localisation_parameters: int | None = None
    """Weights of its spatial transformers."""
    resumed_at_steps: list[int] | None = None
    changes: list[str] | None = None
    """Settings that were changed when it was resumed."""
    config: dict[str, Any]
    """`Config.as_dict` of the run."""
    environment: dict[str, Any]
    train_seconds: float
    total_seconds: float
    """With the test."""

    @property
    def measure(self) -> Measure:
        """What the percentages are of."""
        return TASKS[self.task].measure

    @classmethod
    def read(cls, path: Path) -> "Result":
        """The result in a file; raises CheckpointError if it cannot be read."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return cls.from_dict(data, path)

    @classmethod
    def from_dict(cls, data: Any, where: object = "a result") -> "Result":
        """The result that plain data holds; unknown keys are passed over.

        where: what messages call the data. Raises CheckpointError if it is not a result.
        """
        if not isinstance(data, dict):
            raise CheckpointError(f"{where} cannot be read: it is not the result of a run")
        task = data.get("task", "classification")
        if not isinstance(task, str) or task not in TASKS:
            known = ", ".join(TASKS)
            raise CheckpointError(f"{where} cannot be read: task is {task!r}; known are {known}")
        keys = keys_in_file(TASKS[task].measure)
        values = {name: data[key] for name, key in keys.items() if key in data and name != "cell"}
        try:
            return cls(cell=Cell.read(data), **values)
        except ValidationError as error:
            name, *place = map(str, error.errors()[0]["loc"])
            key = place[0] if name == "cell" else keys[name]
            told = f"{key} is missing or of another kind"
            raise CheckpointError(f"{where} cannot be read: {told}") from None

    def as_dict(self) -> dict[str, Any]:
        """The content of result.json."""
        content: dict[str, Any] = {}
        for name, key in keys_in_file(self.measure).items():
            value = getattr(self, name)
            if name == "cell":
                content |= self.cell.as_dict()
            elif value is not None or name in NULL_IN_FILE:
                content[key] = [*value] if isinstance(value, tuple) else value
        return content

    def measured(self) -> dict[str, Any]:
        """What goes with the weights wherever they go: the score, by its key in result.json."""
        names = (
            *("test_percent", "interval_95_percent", "draws_mean_percent"),
            *("test_digits", "test_sha256", "seed", "numerics"),
        )
        keys = keys_in_file(self.measure)
        return {keys[name]: getattr(self, name) for name in names}


NULL_IN_FILE = ("validation_percent", "confusion")
"""The fields that are in the file even where they are None."""


def keys_in_file(measure: Measure) -> dict[str, str]:
    """The key of each field in result.json, in order; a cell has several, its names'."""
    keys = {each.name: each.name for each in fields(Result)}
    return keys | {
        "test_percent": f"test_{measure.key}",
        "validation_percent": f"validation_{measure.key}",
    }


def results_in(folder: Path) -> list[Result]:
    """The result of each finished run in a folder, or of the one run whose folder it is.

    Raises CheckpointError if there is none, or one cannot be read.
    """
    return [Result.read(run.result) for run in finished_runs(folder)]


def finished_runs(folder: Path) -> list[RunDirectory]:
    """The finished runs in a folder, or the one run whose folder or shipped model it is.

    Raises CheckpointError if there is none.
    """
    folder = located(folder)
    if not folder.exists():
        raise CheckpointError(absent(folder))
    own = folder / "result.json"
    paths = [own] if own.exists() else sorted(folder.glob("*/result.json"))
    if not paths:
        raise CheckpointError(f"{folder} holds no finished run: such a run has a result.json")
    return [RunDirectory(path.parent) for path in paths]


def reference_results(name: str = "default") -> list[Result]:
    """Our own measured results, which ship with the package; of a set not measured yet none.

    name: of the set, by default that of the paper's Table 1.
    """
    path = resources.files("stn_train").joinpath(f"results/{name}.jsonl")
    if not path.is_file():
        return []
    return [Result.from_dict(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
