"""How digits stand, by distortion and transformer: does the transformer undo the distortion?

Legend: N digits, P points, C side of the input in pixels.

Convention: as in `stn_train.geometry`, in digit coordinates: [-1, 1] spans the 28 x 28 digit.
    Maps lead from output to input: a distortion's from the canvas to the digit, a transform's
    from what the classifier sees to the canvas. Maps that are not affine count by the affine map
    that is nearest to them in the least squares. Where there is none, as for a transform that
    sends all points outside the image or to one place, the pose is not a number.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stn_train.data import DistortedDigits
from stn_train.digits import SIDE
from stn_train.distortions import PIXEL
from stn_train.errors import ConfigError
from stn_train.evaluator import BATCH
from stn_train.geometry import OUTSIDE, homogeneous, pixel_centres
from stn_train.run_directory import Run

LEAST_POINTS = 10
"""With fewer points inside the image a map has no pose worth the name."""

SMALLEST_AREA = 1e-6
"""Of what a map makes of a square; below it, it sends all points to a line or a place."""


class Poses(NamedTuple):
    """How digits stand in an image."""

    angle_deg: Tensor
    """Counter-clockwise (N,)."""
    scale: Tensor
    """(N,)."""
    right_px: Tensor
    """From the middle of the image (N,)."""
    down_px: Tensor
    """From the middle of the image (N,)."""


class Undoing(NamedTuple):
    """What a transformer makes of the distortions of some digits."""

    true: Poses
    """As the distortion put them on the canvas."""
    predicted: Poses
    """As the transformer's theta implies: the poses that its warp would undo exactly."""
    left: Poses
    """As the classifier sees them."""
    labels: Tensor
    """Classes of the digits (N,)."""


@torch.inference_mode()
def undoing(run: Run, distorted: DistortedDigits) -> Undoing:
    """Compare the poses of digits with what the transformer takes them to be.

    Raises ConfigError if the model has no transformer.
    """
    if run.model.transformer is None:
        raise ConfigError([f"{run.config.cell} has no spatial transformer to compare with"])
    distortion, reach = distorted.distortion, distorted.distortion.canvas_px / SIDE
    points = pixel_centres((SIDE, SIDE))  # (P, 2): the middle 28 px
    to_digit = fit_affine(points, distortion.map_points(distorted.parameters, points))
    grids = []
    for start in range(0, len(distorted), BATCH):
        warp = run.model.warp(distorted.batch(slice(start, start + BATCH))[0])
        grids.append(warp.grid.flatten(1, 2) * reach)  # (B, P, 2), now in digit coordinates
    grid = torch.cat(grids)
    outputs = pixel_centres((warp.grid.shape[1], warp.grid.shape[2]))
    # From what the classifier sees to the digit: each one's points by its own distortion.
    parameters = distorted.parameters.split(1)
    seen = [distortion.map_points(*each) for each in zip(parameters, grid, strict=True)]
    return Undoing(
        poses_undone_by(to_digit),
        poses_undone_by(torch.linalg.inv_ex(fit_affine(outputs, grid)).inverse),
        poses_undone_by(fit_affine(outputs, torch.cat(seen))),
        distorted.digits.labels,
    )


def fit_affine(points: Tensor, mapped: Tensor) -> Tensor:
    """The affine maps nearest to how points (P, 2) are mapped (N, P, 2): (N, 3, 3).

    Points that a map sends far outside the image do not count.
    """
    basis = homogeneous(points).double()  # (P, 3)
    seen = (mapped.abs().amax(-1, keepdim=True) < OUTSIDE - 1).double()  # (N, P, 1)
    normal = basis.T @ (basis * seen)  # (N, 3, 3)
    solved, singular = torch.linalg.solve_ex(normal, basis.T @ (mapped.double() * seen))
    solved[(singular != 0) | (seen.sum((1, 2)) < LEAST_POINTS)] = math.nan  # (N, 3, 2)
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(mapped), 1, 3)
    return torch.cat([solved.mT, last], dim=1)


def poses_undone_by(matrices: Tensor) -> Poses:
    """The poses that affine maps (N, 3, 3), from output to input, undo."""
    linear, offset = matrices[:, :2, :2], matrices[:, :2, 2:]
    angle = torch.atan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1])
    scale = torch.linalg.det(linear).abs().rsqrt()
    place = -torch.linalg.solve_ex(linear, offset).result[:, :, 0] / PIXEL  # (N, 2)
    poses = torch.stack([torch.rad2deg(angle), scale, place[:, 0], place[:, 1]], dim=1)
    poses[(torch.linalg.det(linear).abs() < SMALLEST_AREA) | ~poses.isfinite().all(1)] = math.nan
    return Poses(*poses.unbind(1))


def deviations(values: Tensor, name: str, labels: Tensor | None = None) -> Tensor:
    """Values (N,) of a field of `Poses` less their mean: of all, or of each digit's class.

    Angles by way of their circular mean, in (-180, 180]; scales as a share of their mean.
    """
    groups = torch.zeros_like(values, dtype=torch.int64) if labels is None else labels
    result = torch.zeros_like(values)
    for group in groups.unique():
        members = groups == group
        part = values[members]
        if name == "angle_deg":
            radians = torch.deg2rad(part)
            mean = torch.atan2(radians.sin().mean(), radians.cos().mean())
            turned = radians - mean
            result[members] = torch.rad2deg(torch.atan2(turned.sin(), turned.cos()))
        elif name == "scale":
            result[members] = part / part.mean() - 1
        else:
            result[members] = part - part.mean()
    return result


def spread(values: Tensor, name: str, labels: Tensor | None = None) -> float:
    """Standard deviation of a field of `Poses`, over all digits or within their classes."""
    return math.sqrt(float(deviations(values, name, labels).square().mean()))
