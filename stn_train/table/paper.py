"""What others have published: the numbers that may stand beside ours, with their source.

`table_for` and `published_for` alone decide whether one does. To add a table: write a `PaperTable`
and name it in TABLES.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from stn_train.cell import Cell, experiment_title
from stn_train.config import Config
from stn_train.config_errors import nearest
from stn_train.errors import ConfigError
from stn_train.runs.result import Result
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure


class Experiment(NamedTuple):
    """What was measured: a task, on which data, in which cell. Seeds and settings may differ."""

    task: str
    data: str
    cell: Cell

    @property
    def title(self) -> str:
        """CNN on R; CNN on R, fashion_mnist."""
        return experiment_title(self.cell, self.task, self.data)


def experiment_of(source: Config | Result) -> Experiment:
    """The experiment that a config describes or a result measured."""
    if isinstance(source, Config):
        return Experiment(source.task_name, source.source_name, source.cell)
    return Experiment(source.task, source.data, source.cell)


@dataclass(frozen=True)
class PaperTable:
    """A published table: a row for each model, a column for each distortion."""

    name: str
    """What ``stn-table --table`` calls it."""
    title: str
    """Heading of a report."""
    paper: str
    """Authors and year."""
    place: str
    """Where in the paper it stands."""
    note: str
    """How its numbers were obtained."""
    task: str
    """Name in TASKS."""
    data: str
    """Name in SOURCES."""
    columns: tuple[str, ...]
    """Distortions, as `Distortion.label` names them."""
    rows: Mapping[tuple[str, ...], tuple[float | None, ...]]
    """For each model, a backbone and a transform or arrangement of transformers (2xAff), and the
    subject if it has one, its values in the columns; None: not given."""
    rounding: float
    """Half of the last printed digit: a smaller difference may be rounding."""
    in_text: Mapping[str, str] = field(default_factory=dict)
    """For each column that the paper gives in its text instead, where."""
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Settings, as ``key=value``, that configs have beside the names in their cell. They are listed
    by column (RTS), for all its cells, or by model (ST-FCN Aff), for all its columns."""
    prefix: str = ""
    """What the names of its configs and runs begin with."""
    results: str = "default"
    """The set of our own results for it that ships with the program."""

    @property
    def source(self) -> str:
        """Authors, year and places."""
        elsewhere = (f"; {column}: {where}" for column, where in self.in_text.items())
        return "".join([f"{self.paper}, {self.place}", *elsewhere])

    @property
    def measure(self) -> Measure:
        """What the values are."""
        return TASKS[self.task].measure

    def origin(self, cell: Cell) -> str:
        """Where the value of a cell stands, and how it was obtained."""
        return self.in_text.get(cell.distortion, f"{self.place}, {self.note}")

    @cached_property
    def values(self) -> dict[Cell, float | None]:
        """The value of each cell, row by row; runs of a cell without one are shown too."""
        return {
            Cell(column, *model): value
            for model, row in self.rows.items()
            for column, value in zip(self.columns, row, strict=True)
        }

    @property
    def cells(self) -> list[Cell]:
        """The cells with a value, row by row: those that a run of the whole table takes."""
        return [cell for cell, value in self.values.items() if value is not None]

    @property
    def models(self) -> list[str]:
        """The rows' names, FCN or ST-CNN Aff for example."""
        return list(dict.fromkeys(cell.model for cell in self.values))

    def file_name(self, cell: Cell) -> str:
        """The name of a cell's runs, and of its config; where there is one model, without it."""
        about = f"_{cell.subject}" if cell.subject else ""
        one_model = len({model[:2] for model in self.rows}) == 1
        name = cell.distortion.lower() if one_model and self.prefix else cell.file_name
        return f"{self.prefix}{name}{about}"

    def config_name(self, cell: Cell) -> str:
        """The name of a cell's config: the same for every subject."""
        return self.file_name(cell._replace(subject=""))

    def part(self, cells: Collection[Cell]) -> "PaperTable":
        """The table without the rows and columns that have none of these cells."""
        columns = tuple(
            column for column in self.columns if any(cell.distortion == column for cell in cells)
        )
        rows = {
            model: tuple(self.values[Cell(column, *model)] for column in columns)
            for model in self.rows
            if any(Cell(column, *model) in cells for column in columns)
        }
        in_text = {column: where for column, where in self.in_text.items() if column in columns}
        return replace(self, columns=columns, rows=rows, in_text=in_text)

    def published(self, cell: Cell) -> float | None:
        """The published value of a cell, whatever ours was measured on: see `published_for`."""
        return self.values.get(cell)

    def holds(self, source: Config | Result) -> bool:
        """Whether a run belongs into the table: it has its task, its data and one of its cells."""
        experiment = experiment_of(source)
        ours = Experiment(self.task, self.data, experiment.cell)
        return experiment == ours and experiment.cell in self.values


TABLES = {
    table.name: table
    for table in [
        PaperTable(
            name="mnist",
            title="Spatial Transformer Networks on distorted MNIST",
            # "Spatial Transformer Networks", NeurIPS 2015 (arXiv 1506.02025); the left half.
            paper="Jaderberg et al. 2015",
            place="Table 1",
            note="mean of three runs",
            task="classification",
            data="mnist",
            columns=("R", "RTS", "P", "E", "TC"),
            rows={
                ("FCN", "none"): (2.1, 5.2, 3.1, 3.2, 13.2),
                ("CNN", "none"): (1.2, 0.8, 1.5, 1.4, 3.5),
                ("FCN", "Aff"): (1.2, 0.8, 1.5, 2.7, 2.0),
                ("FCN", "Proj"): (1.3, 0.9, 1.4, 2.6, None),
                ("FCN", "TPS"): (1.1, 0.8, 1.4, 2.4, None),
                ("CNN", "Aff"): (0.7, 0.5, 0.8, 1.2, 1.7),
                ("CNN", "Proj"): (0.8, 0.6, 0.8, 1.3, None),
                ("CNN", "TPS"): (0.7, 0.5, 0.8, 1.1, None),
            },
            rounding=0.05,
            # Which transform is not stated; we take the affine one, the paper's first.
            in_text={"TC": "text of section 4.1"},
        ),
        PaperTable(
            name="addition",
            title="Addition of two distorted digits",
            paper="Jaderberg et al. 2015",
            place="appendix A.1",
            note="all networks of the same size",
            task="addition",
            data="mnist",
            columns=("RTS",),
            rows={
                ("FCN", "none"): (47.7,),
                ("CNN", "none"): (14.7,),
                ("FCN", "Aff"): (22.6,),
                ("FCN", "Proj"): (18.5,),
                ("FCN", "TPS"): (19.1,),
                ("FCN", "2xAff"): (9.0,),
                ("FCN", "2xProj"): (5.9,),
                ("FCN", "2xTPS"): (5.8,),
            },
            rounding=0.05,
            own={  # at most 400,000 weights; longer schedules where a sum is learnt slowly
                "FCN": (
                    "train.epochs=250",
                    "train.learning_rate=0.004",
                    "train.weight_decay=0.02",
                    "train.label_smoothing=0.0",
                ),
                "CNN": ("backbone.CNN.filters=[32, 48]", "backbone.CNN.features=160"),
                **{
                    f"ST-FCN {transform}": (
                        f"backbone.FCN.hidden={hidden}",
                        f"backbone.FCN.localisation_hidden={hidden}",
                        "train.epochs=100",
                    )
                    for transform, hidden in (("Aff", 172), ("Proj", 172), ("TPS", 170))
                },
            },
            prefix="addition_",
            results="addition",
        ),
        PaperTable(
            name="birds",
            title="Recognition of birds (CUB-200-2011)",
            paper="Jaderberg et al. 2015",
            place="section 4.3",
            note="pre-trained on ImageNet",
            task="recognition",
            data="cub",
            columns=("crop224", "crop448"),  # the sides in pixels of what a network is given
            rows={
                ("Inception", "none"): (82.3, None),
                ("Inception", "2xAttention"): (83.1, 83.9),
                ("Inception", "4xAttention"): (None, 84.1),
            },
            rounding=0.05,
            prefix="birds_",
            results="birds",
        ),
        PaperTable(
            name="colocalisation",
            title="Co-localisation of digits without labels",
            paper="Jaderberg et al. 2015",
            place="appendix A.2",
            note="by digit from memory, 75 to 93 % in the text",
            task="colocalisation",
            data="mnist",
            columns=("T", "TC"),
            rows={
                ("strided", "Attention", str(digit)): (100.0, among_clutter)
                for digit, among_clutter in enumerate((81, 82, 88, 75, 94, 84, 93, 85, 89, 87))
            },
            rounding=0.5,
            own={
                "T": ("distortion.T.canvas_px=84", "transform.Attention.start=0.3333"),
                "TC": (
                    "distortion.TC.canvas_px=84",
                    "distortion.TC.patches=16",
                    "transform.Attention.start=0.3333",
                ),
            },
            prefix="colocalisation_",
            results="colocalisation",
        ),
    ]
}
"""The published tables by name."""


def table_named(name: str) -> PaperTable:
    """A published table; raises ConfigError, naming those there are, for any other name."""
    if name not in TABLES:
        hint = nearest(name, [*TABLES])
        raise ConfigError([f"--table is {name!r}; it can be {', '.join(TABLES)}{hint}"])
    return TABLES[name]


def table_for(source: Config | Result) -> PaperTable | None:
    """The first table that has a published value for a run: of its task, its data and its cell."""
    return next(
        (
            table
            for table in TABLES.values()
            if table.holds(source) and table.published(source.cell) is not None
        ),
        None,
    )


def published_for(source: Config | Result) -> float | None:
    """The published value that may stand beside a run's, or None: see `table_for`."""
    table = table_for(source)
    return None if table is None else table.published(source.cell)
