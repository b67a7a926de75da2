"""Poses of images, by distortion and transformer: does the transformer undo the distortion?

Legend: N images, B batch, P points.

Convention: as in `stn_train.geometry.plane`, in image coordinates: [-1, 1] spans the undistorted
    image. Maps lead from output to input: a distortion's from the canvas to the image, a
    transform's from what the classifier sees to the canvas. A non-affine map is replaced by its
    least-squares affine fit. Where there is none, as for a transform that sends all points
    outside the image or to one place, the pose is NaN.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stn_train.data.distortion import Warping
from stn_train.diagnosis import angles_deg, circular, root_mean_square
from stn_train.errors import ConfigError
from stn_train.geometry.matrices import fit_affine
from stn_train.geometry.plane import pixel_centres
from stn_train.runs.directory import Run
from stn_train.tasks.examples import Examples

MIN_AREA = 1e-6
"""Of the image of a unit square; a map below it sends all points to a line or a place."""


class Poses(NamedTuple):
    """How undistorted images lie in other images."""

    angle_deg: Tensor
    """Counter-clockwise (N,)."""
    scale: Tensor
    """(N,)."""
    right_px: Tensor
    """From the middle of the other image (N,)."""
    down_px: Tensor
    """From the middle of the other image (N,)."""


class Undoing(NamedTuple):
    """The poses of some images before and after a transformer."""

    true: Poses
    """On the canvas, by the distortion."""
    predicted: Poses
    """By the transformer's theta: the poses that its warp would undo exactly."""
    left: Poses
    """In what the classifier sees."""
    labels: Tensor
    """Classes of the images (N,)."""


@torch.inference_mode()
def undoing(run: Run, examples: Examples) -> Undoing:
    """Compare the poses of images with what the transformer takes them to be.

    Raises ConfigError unless the network has one transformer, in front, and the distortion is a
    map of the plane.
    """
    name, distortion = only_transformer(run), warping_of(run, examples)
    parameters, image_px = examples.draws[0], distortion.image_px
    reach = distortion.canvas_px / image_px
    points = pixel_centres((image_px, image_px))  # (P, 2): the middle of the canvas
    image, canvas, seen = [], [], []  # affine fits (B, 3, 3)
    for part in examples.parts():
        image.append(fit_affine(points, distortion.map_points(parameters[part], points)))
        grid = run.model.trace(examples.batch(part).inputs).warps[name].grid  # (B, H', W', 2)
        outputs = pixel_centres((grid.shape[1], grid.shape[2]))
        # Where the classifier's pixels are read from: on the canvas, then on the image.
        read = grid.flatten(1, 2) * reach  # (B, P, 2), in image coordinates
        canvas.append(fit_affine(outputs, read))
        seen.append(fit_affine(outputs, distortion.map_points(parameters[part], read)))
    to_canvas = torch.cat(canvas)
    return Undoing(
        poses_undone_by(torch.cat(image), image_px),
        poses_undone_by(torch.linalg.inv_ex(to_canvas).inverse, image_px),
        poses_undone_by(torch.cat(seen), image_px),
        examples.images.labels,
    )


def only_transformer(run: Run) -> str:
    """The name of the network's transformer; raises ConfigError unless one stands in front."""
    names = [*run.model.transformers]
    if not names:
        raise ConfigError([f"{run.config.title} has no spatial transformer to compare with"])
    if len(names) > 1 or run.model.front != names:
        found = ", ".join(names)
        raise ConfigError(
            [
                f"{run.config.title}: poses need a single spatial transformer in front of the "
                f"network; this one has {found}"
            ]
        )
    return names[0]


def warping_of(run: Run, examples: Examples) -> Warping:
    """The distortion, if all it does is to warp; else raises ConfigError."""
    distortion = examples.task.distortion
    if not isinstance(distortion, Warping) or len(examples.draws) != 1:
        kind = type(distortion).__name__
        raise ConfigError(
            [
                f"{run.config.title}: poses need a distortion that is a map of the plane; "
                f"{kind} is not, or the task draws more than its parameters"
            ]
        )
    return distortion


def poses_undone_by(matrices: Tensor, image_px: int) -> Poses:
    """The poses that affine maps (N, 3, 3), from output to input, undo.

    image_px: side of the undistorted image, for shifts in pixels.
    """
    linear, offset = matrices[:, :2, :2], matrices[:, :2, 2:]
    area = torch.linalg.det(linear).abs()
    place = -torch.linalg.solve_ex(linear, offset).result[:, :, 0] / (2 / image_px)  # (N, 2)
    poses = torch.stack([angles_deg(matrices), area.rsqrt(), place[:, 0], place[:, 1]], dim=1)
    poses[(area < MIN_AREA) | ~poses.isfinite().all(1)] = math.nan
    return Poses(*poses.unbind(1))


def deviations(values: Tensor, name: str, labels: Tensor | None = None) -> Tensor:
    """Values (N,) of a field of `Poses` less their mean: of all, or of each image's class.

    Angles less their circular mean, in (-180, 180]; scales as a share of their mean.
    """
    groups = torch.zeros_like(values, dtype=torch.int64) if labels is None else labels
    result = torch.zeros_like(values)
    for group in groups.unique():
        members = groups == group
        part = values[members]
        if name == "angle_deg":
            _, result[members] = circular(part)
        elif name == "scale":
            result[members] = part / part.mean() - 1
        else:
            result[members] = part - part.mean()
    return result


def spread(values: Tensor, name: str, labels: Tensor | None = None) -> float:
    """Standard deviation of a field of `Poses`, over all images or within their classes."""
    return root_mean_square(deviations(values, name, labels))
