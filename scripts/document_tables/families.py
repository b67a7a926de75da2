"""The families of transforms beside each other."""

from matplotlib.figure import Figure
from torch import Tensor

from document_tables.results import MNIST, results_of
from stn_train.cell import Cell
from stn_train.data.distortion import Warping
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.mnist import load_mnist
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.table.rows import circumstances, markdown_lines
from stn_train.visualiser.families import random_maps_page, undoing_page

FAMILIES_ON = ("R", "RTS", "E")
"""The distortions that the families of transforms are compared on."""

FAMILIES_SEED = 1


def families_table() -> str:
    """Test errors of the FCN without a transformer and with each family, in Markdown.

    The families of the paper's table were measured for it: the runs of the same seed stand here.
    """
    published = [result for result in results_of("default") if result.seed == FAMILIES_SEED]
    measured = {result.cell: result for result in [*published, *results_of("families")]}
    lines = [("transform", "parameters", *FAMILIES_ON)]
    runs, missing = [], []
    sizes = {name: family().build().parameter_count for name, family in TRANSFORMS.items()}
    for name, parameters in {"none": 0, **sizes}.items():
        found = [measured.get(Cell(distortion, "FCN", name)) for distortion in FAMILIES_ON]
        errors = ["" if run is None else f"{run.test_percent:.2f}" for run in found]
        lines.append((name, str(parameters), *errors))
        runs += [run for run in found if run is not None]
        left = [on for on, run in zip(FAMILIES_ON, found, strict=True) if run is None]
        missing += [f"{name} on {', '.join(left)}"] if left else []
    told = [f"Not measured yet: {'; '.join(missing)}."] if missing else []
    told += [circumstances(runs)] if runs else []
    return "\n".join([markdown_lines(lines), *(f"{text}\n" for text in told)])


def random_maps_chart() -> Figure:
    """A digit under random maps of each family of transforms."""
    return random_maps_page(TRANSFORMS, digit().float() / 255)


def undoing_chart() -> Figure:
    """A digit under each of the paper's distortions, undone as well as each family can."""
    distortions = {name: DISTORTIONS[name]() for name in MNIST.columns}
    warpings = {name: each for name, each in distortions.items() if isinstance(each, Warping)}
    return undoing_page(TRANSFORMS, digit(), warpings)


def digit() -> Tensor:
    """The first 4 of the test set, which looks different from all sides: uint8 (1, H, W)."""
    _, test = load_mnist()
    return test.pixels[test.labels == 4][0]
