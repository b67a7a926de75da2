"""The page: one file that needs nothing else, no network and no server."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stn_train.data.distortion import Distortion
from stn_train.data.images import Images
from stn_train.demo.graph import graph_of
from stn_train.demo.runtime import PROGRAM, SCRIPT, notice, read_packed
from stn_train.errors import ConfigError
from stn_train.geometry.grids import (
    AffineGrid,
    AttentionGrid,
    FixedAttentionGrid,
    MatrixGrid,
    ProjectiveGrid,
    RigidGrid,
    SimilarityGrid,
    TransformGrid,
    TranslationGrid,
)
from stn_train.geometry.meshes import ControlGrid
from stn_train.html import template
from stn_train.models.network import parameter_count
from stn_train.models.spatial_transformer import SpatialTransformer
from stn_train.runs.directory import Run
from stn_train.runs.files import write_bytes
from stn_train.runs.result import Result
from stn_train.tasks.classification import Classification
from stn_train.visualiser.pages import one_of_each
from stn_train.visualiser.style import GRID_COLOURS, TWO_CHANNELS, word_for_images

EXAMPLES = 10
"""Test images to choose from, one of each class."""

THETA_NAMES: dict[type[TransformGrid], tuple[str, ...]] = {
    TranslationGrid: ("x", "y"),
    FixedAttentionGrid: ("x", "y"),
    RigidGrid: ("angle", "x", "y"),
    AttentionGrid: ("scale", "x", "y"),
    SimilarityGrid: ("a", "b", "x", "y"),
}
"""The parameters of families that are neither a whole matrix nor points."""


@dataclass(frozen=True)
class Demo:
    """What the template is given."""

    title: str
    introduction: str
    thing: str
    """What is drawn, with its article."""
    as_large_as: str
    trained_on: str
    """The sentence above the sliders."""
    about_theta: str
    facts: str
    licences: str
    classes: Sequence[str]
    transformers: Sequence[Mapping[str, Any]]
    """Those in front, as the script needs them."""
    settings: Mapping[str, Any]
    """What else the script needs."""
    files: Mapping[str, str]
    """Compressed files in base64, by their ids in the page."""

    def for_script(self) -> dict[str, Any]:
        """What the script reads."""
        return {"classes": self.classes, "transformers": self.transformers, **self.settings}


def save_page(run: Run, test: Images, path: Path) -> Path:
    """Write the live page of a run; returns the path. Raises as `demo_page` does."""
    content = demo_page(run, test).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return path


def demo_page(run: Run, test: Images) -> str:
    """The live page of a run, with some test images to choose from.

    Raises ConfigError unless the network classifies images, or if a package is missing; StnError
    if the exported network computes something else; DataError if the runtime is damaged.
    """
    if type(run.config.task) is not Classification:  # those derived from it see other inputs
        raise ConfigError(
            [
                f"{run.config.title}: a live page shows the classification of an image; the task "
                f"of this run is {run.config.task_name}"
            ]
        )
    return template("demo", "page.html").render(demo=demo_of(run, test))


def demo_of(run: Run, test: Images) -> Demo:
    """What the page of a run says and holds."""
    digits = word_for_images(run.format.classes) == "digits"
    things = "digits" if digits else "images"
    distortion = run.config.distortion
    transformers = [
        transformer_for_script(run, name, colour)
        for name, colour in zip(run.model.front, GRID_COLOURS * 2, strict=False)
    ]
    chosen, network = one_of_each(test)[:EXAMPLES], graph_of(run)
    packed = {"graph": network.graph, "images": bytes_of(test.pixels[chosen])}
    if network.weights:
        packed["weights"] = network.weights
    return Demo(
        title=run.config.title,
        introduction=introduction(run, things),
        thing="a digit" if digits else "an image",
        as_large_as=f"the {things} that the network was trained on",
        trained_on=trained_on(distortion),
        about_theta=about_theta(run),
        facts=facts(run, things),
        licences=notice(),
        classes=run.format.classes,
        transformers=transformers,
        settings={
            "channels": run.format.shape[0],
            "side_px": distortion.image_px,
            "canvas_px": distortion.canvas_px,
            "sliders": sliders(distortion),
            "swing_deg": getattr(distortion, "max_angle_deg", 45.0) or 45.0,
            "two_channels": TWO_CHANNELS,
            "examples": test.labels[chosen].tolist(),
            "first": 7 % len(chosen),
            "weights": run.directory.model.name,
        },
        files={
            "runtime-script": in_base64(read_packed(SCRIPT)),
            "runtime-program": in_base64(read_packed(PROGRAM)),
            **{name: in_base64(gzip.compress(each, mtime=0)) for name, each in packed.items()},
        },
    )


def introduction(run: Run, things: str) -> str:
    """What the page is about."""
    thing = things.removesuffix("s")
    if not run.model.front:
        place = " in front" if run.model.transformers else ""
        return (
            f"Draw a {thing} or pick one, distort it, and see what the network says. This one, "
            f"{run.config.title}, has no spatial transformer{place}."
        )
    return (
        "A spatial transformer looks at an image, predicts a transform, and passes the warped "
        f"image on to a classifier. Draw a {thing} or pick one, distort it with the sliders, and "
        f"watch the transformer undo it. This one is {run.config.title}."
    )


def trained_on(distortion: Distortion) -> str:
    """What the training images went through."""
    about = (type(distortion).__doc__ or "").strip().splitlines()[0].rstrip(".")
    plain = about.partition(" (section")[0].partition(" (A.")[0]
    known = any(each["trained"] for each in sliders(distortion))
    lines = " The green lines show these ranges; the sliders go further." if known else ""
    return f"The network was trained on {plain}.{lines}"


def about_theta(run: Run) -> str:
    """What the numbers of the transformers in front are."""
    front = [run.model.transformers[name] for name in run.model.front]
    if not front:
        return ""
    grid = front[0].transform
    match layout_of(grid):
        case {"layout": "matrix", "rows": rows}:
            fixed = ", its last entry fixed at 1" if rows == 3 else ""
            kind = f"The {rows} x 3 matrix{fixed}: it"
        case {"layout": "points"}:
            count = grid.parameter_count // 2
            kind = f"{count} points (x, y), the dots on the mesh: together they"
        case _:
            kind = f"{grid.parameter_count} numbers: they"
    takes = "takes" if kind.endswith(" it") else "take"
    kind = f"Of each of the {len(front)}: {kind[0].lower()}{kind[1:]}" if len(front) > 1 else kind
    looks = f", after {front[0].iterations} looks" if front[0].iterations > 1 else ""
    affine = isinstance(grid, MatrixGrid | FixedAttentionGrid) and not isinstance(
        grid, ProjectiveGrid
    )
    closest = "" if affine else " (of the closest affine map)"
    return (
        f"{kind} {takes} each place of what the classifier sees to where it is read from{looks}. "
        f"In the table: what the sliders did, and what the transformer undoes{closest}, compared "
        "with the image at rest, since it chooses its own upright."
    )


def facts(run: Run, things: str) -> str:
    """The run in a line."""
    parts = [f"{run.config.title}, seed {run.config.seed}"]
    if run.directory.result.exists():
        result = Result.read(run.directory.result)
        measure = result.measure
        parts.append(
            f"{result.test_percent:.2f} {measure.unit} test {measure.name} on "
            f"{result.test_digits:,} {things}"
        )
    parts.append(f"{parameter_count(run.model):,} parameters")
    return f"{', '.join(parts)}."


def transformer_for_script(run: Run, name: str, colour: str) -> dict[str, Any]:
    """What the script needs to know of a transformer in front."""
    transformer = run.model.transformers[name]
    height, width = grid_size(run, transformer)
    pool = getattr(run.model._modules.get("pool"), "kernel_size", 1)
    return {
        "name": name,
        "colour": colour,
        "grid_size": [height, width],
        "seen_size": [height // pool, width // pool],
        "theta": layout_of(transformer.transform),
    }


def grid_size(run: Run, transformer: SpatialTransformer) -> tuple[int, int]:
    """(H', W') of what a transformer samples."""
    height, width = transformer.output_size or run.config.task.shape(run.format)[1:]
    return height, width


def layout_of(grid: TransformGrid) -> dict[str, Any]:
    """How theta is shown: as a matrix, as points on the mesh, or as numbers with their names."""
    if isinstance(grid, AffineGrid | ProjectiveGrid):
        return {"layout": "matrix", "rows": 2 if isinstance(grid, AffineGrid) else 3, "columns": 3}
    if isinstance(grid, ControlGrid):
        return {"layout": "points", "names": []}
    return {"layout": "numbers", "names": THETA_NAMES.get(type(grid), ())}


def sliders(distortion: Distortion) -> list[dict[str, Any]]:
    """The sliders: range, and under ``trained`` that of the training, where it has one."""
    angle_deg = getattr(distortion, "max_angle_deg", None)
    sizes = [getattr(distortion, key, None) for key in ("min_scale", "max_scale")]
    room_px = (distortion.canvas_px - distortion.image_px) / 2
    shift_px = room_px + distortion.image_px / 7
    shifts = [-0.8 * room_px, 0.8 * room_px] if room_px else None
    tilts = [-0.35, 0.35] if hasattr(distortion, "corner_std_px") else None
    bends = [-0.2, 0.2] if hasattr(distortion, "control_std_px") else None
    turn = 180 if (angle_deg or 0) > 90 else 90
    return [
        slider("Turn", turn, 1, [-angle_deg, angle_deg] if angle_deg else None, unit="°"),
        slider("Size", (0.4, 1.6), 0.01, sizes if all(sizes) else None, rest=1.0),
        slider("Right", shift_px, 0.1, shifts, unit=" px"),
        slider("Down", shift_px, 0.1, shifts, unit=" px"),
        slider("Tilt", 0.5, 0.01, tilts),
        slider("Bend", 0.35, 0.01, bends),
    ]


def slider(
    label: str,
    reach: float | tuple[float, float],
    step: float,
    trained: list[Any] | None,
    rest: float = 0.0,
    unit: str = "",
) -> dict[str, Any]:
    """A slider between two values, or between minus and plus a reach."""
    low, high = reach if isinstance(reach, tuple) else (-reach, reach)
    return {
        "name": label.lower(),
        "label": label,
        "low": round(low, 2),
        "high": round(high, 2),
        "step": step,
        "rest": rest,
        "digits": len(f"{step:g}".partition(".")[2]),
        "unit": unit,
        "trained": trained,
    }


def bytes_of(pixels: Tensor) -> bytes:
    """Pixels uint8, image by image, channel by channel, row by row."""
    return pixels.contiguous().numpy().tobytes()


def in_base64(content: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(content).decode()
