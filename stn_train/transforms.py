"""The transforms a network can learn: parameters theta to a sampling grid.

Legend: B batch, P parameters, H height, W width, K control points.

Convention: as in `stn_train.geometry`: output to input, (x, y), [-1, 1], one align_corners.

To add one: write a `TransformGrid` and name it in TRANSFORMS.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stn_train.geometry import (
    NEAREST_DEPTH,
    affine_map,
    combine,
    control_grid,
    pixel_centres,
    projective_map,
    thin_plate_basis,
    thin_plate_solver,
)


class TransformGrid(nn.Module, ABC):
    """Turns theta into a sampling grid. Has no weights: theta is what is learnt."""

    identity: Tensor
    """The theta (P,) that leaves the image as it is; the localisation starts there."""

    def __init__(self, identity: Tensor) -> None:
        super().__init__()
        self.register_buffer("identity", identity.float(), persistent=False)

    @property
    def parameter_count(self) -> int:
        """P, the number of parameters of the transform."""
        return len(self.identity)

    def forward(self, theta: Tensor, output_size: tuple[int, int]) -> Tensor:
        """theta (B, P) -> the grid (B, H, W, 2) that an output of size (H, W) is read from.

        Raises ValueError where theta has another shape.
        """
        if theta.ndim != 2 or theta.shape[1] != self.parameter_count:
            wanted = f"(B, {self.parameter_count})"
            raise ValueError(f"theta must be {wanted}, got {tuple(theta.shape)}")
        points = pixel_centres(output_size, theta.device, theta.dtype)  # (H*W, 2)
        return self.map_points(theta, points).reshape(-1, *output_size, 2)  # (B, H, W, 2)

    @abstractmethod
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where the output points (N, 2) are read from under theta (B, P): (B, N, 2)."""

    @abstractmethod
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The theta (B, P) of warping by ``first`` and then by ``second``, both (B, P).

        A point of the output is carried by ``second``, and then by ``first``, into the input.
        """


class AffineGrid(TransformGrid):
    """Affine, 6 parameters: the 2x3 matrix, row by row (the paper's equation 1)."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([1, 0, 0, 0, 1, 0]))

    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """See `TransformGrid.map_points`."""
        return affine_map(theta.reshape(-1, 2, 3), points)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """See `TransformGrid.compose`."""
        first, second = first.reshape(-1, 2, 3), second.reshape(-1, 2, 3)
        linear = first[:, :, :2] @ second  # (B, 2, 3)
        return torch.cat([linear[:, :, :2], linear[:, :, 2:] + first[:, :, 2:]], 2).flatten(1)


class ProjectiveGrid(TransformGrid):
    """Projective, 8 parameters: the 3x3 homography, row by row, its last entry fixed at 1.

    Points on or behind the horizon read as padding (`stn_train.geometry.projective_map`).
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))

    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """See `TransformGrid.map_points`."""
        return projective_map(homography(theta), points)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """See `TransformGrid.compose`.

        The last entry of the product, by which theta is scaled, is the depth of the output's
        centre. Where that lies on the horizon or behind it there is no such theta, and the depth
        is taken for NEAREST_DEPTH.
        """
        product = (homography(first) @ homography(second)).flatten(1)  # (B, 9)
        return product[:, :8] / product[:, 8:].clamp(min=NEAREST_DEPTH)


class TPSGrid(TransformGrid):
    """Thin plate spline, 2 K parameters: where each control point of the output is read from.

    The control points are a regular ``side`` x ``side`` grid over the output (16 in the paper);
    theta holds their (x, y) in the input, row by row.
    """

    control: Tensor  # (K, 2)
    solver: Tensor  # (K + 3, K)

    def __init__(self, side: int = 4) -> None:
        if side < 2:
            raise ValueError(f"a thin plate spline needs at least 2 x 2 control points, got {side}")
        control = control_grid(side)
        super().__init__(control.flatten())
        # The linear system depends on the control points alone: it is solved here, once.
        self.register_buffer("control", control.float(), persistent=False)
        self.register_buffer("solver", thin_plate_solver(control).float(), persistent=False)

    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """See `TransformGrid.map_points`."""
        control, solver = self.control.to(points), self.solver.to(points)
        basis = thin_plate_basis(points, control, solver)  # (N, K)
        # A spline through displacements of zero is zero: the identity is exact.
        displaced = theta.reshape(-1, len(control), 2) - control  # (B, K, 2)
        return (points.T + combine(displaced.mT, basis)).mT  # (B, N, 2)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """See `TransformGrid.compose`.

        Two splines after another are no such spline: this one agrees with them at its control
        points.
        """
        control, solver = self.control.to(first), self.solver.to(first)
        points = second.reshape(-1, 2)  # (B*K, 2), each image's own
        basis = thin_plate_basis(points, control, solver).view(-1, len(control), len(control))
        displaced = first.reshape(-1, len(control), 2) - control  # (B, K, 2)
        return second + (basis @ displaced).flatten(1)


def homography(theta: Tensor) -> Tensor:
    """The 3x3 matrices (B, 3, 3) of a projective theta (B, 8)."""
    return torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)


TRANSFORMS: dict[str, Callable[[], TransformGrid]] = {
    "Aff": AffineGrid,
    "Proj": ProjectiveGrid,
    "TPS": TPSGrid,
}
"""What `transform` in a config can be, beside `none`; each is built without arguments."""
