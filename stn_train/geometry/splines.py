"""Splines through control points: how much each point's value counts, everywhere in the plane.

Thin plate splines (Bookstein 1989, "Principal Warps") are smooth and take any control points;
linear splines are affine in each triangle of a regular mesh.

Legend: N points, K control points; ``...`` is nothing, or a batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SQUARED_DISTANCE = 1e-30
"""Squared distances are clamped to this, so that the logarithm is never that of zero."""


def control_grid(side: int) -> Tensor:
    """A regular ``side`` x ``side`` grid over [-1, 1]^2, row by row: (side**2, 2) in float64.

    Raises ValueError for a ``side`` of less than 2: that spans nothing.
    """
    if side < 2:
        raise ValueError(f"a control grid needs at least 2 x 2 control points, got side {side}")
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line).flip(-1)


def thin_plate_solver(control: Tensor) -> Tensor:
    """The matrix that turns control point values into thin plate spline coefficients.

    control (K, 2) -> (K + 3, K) in float64. Its rows are the K kernel weights, then the
    constant, the x and the y coefficient (Bookstein's equation 5).
    """
    count = len(control)
    control = control.double()
    affine = F.pad(control, (1, 0), value=1.0)  # (K, 3)
    system = control.new_zeros(count + 3, count + 3)
    system[:count, :count] = thin_plate_kernel(control, control)
    system[:count, count:] = affine
    system[count:, :count] = affine.T
    inverse: Tensor = torch.linalg.inv(system)
    return inverse[:, :count]


def thin_plate_kernel(points: Tensor, control: Tensor) -> Tensor:
    """U(r) = r^2 log r between points (..., N, 2) and control points (K, 2): (..., N, K)."""
    x = points[..., :1] - control[:, 0]  # (..., N, K)
    y = points[..., 1:] - control[:, 1]  # (..., N, K)
    squared = x.square() + y.square()
    # At r = 0 the kernel and its gradient are 0, but the logarithm itself is not finite.
    squared = squared.clamp(min=MIN_SQUARED_DISTANCE)
    return 0.5 * squared * squared.log()


def thin_plate_basis(points: Tensor, control: Tensor, solver: Tensor) -> Tensor:
    """The weight of each control point's value at each point.

    points (..., N, 2), control (K, 2), solver (K + 3, K) from `thin_plate_solver` ->
    (..., N, K). The spline through values (K, 2) is then ``basis @ values``.
    """
    kernel = thin_plate_kernel(points, control)  # (..., N, K)
    affine = F.pad(points, (1, 0), value=1.0)  # (..., N, 3)
    return torch.matmul(torch.cat([kernel, affine], dim=-1), solver)


def triangle_basis(points: Tensor, control: Tensor) -> Tensor:
    """The weight of each point of a regular mesh of triangles at each point of the plane.

    points (..., N, 2), control (K, 2) as of `control_grid`, whose fields are each cut from top left
    to bottom right into two triangles -> (..., N, K). The linear spline through values (K, 2) is
    then ``basis @ values``: affine in each triangle.

    Weights inside the mesh are barycentric coordinates. A point outside has those of the nearest
    point of the border, and from there follows the affine map that fits all values best by least
    squares. So the spline is continuous, and affine values give that affine map everywhere.
    """
    fields = (math.isqrt(len(control)) - 1) / 2  # in a unit
    inside = points.clamp(-1, 1)
    x = (inside[..., :1] - control[:, 0]) * fields  # (..., N, K)
    y = (inside[..., 1:] - control[:, 1]) * fields  # (..., N, K)
    # Six triangles meet in a control point: its weight is a pyramid over that hexagon.
    height = torch.maximum(torch.maximum(x.abs(), y.abs()), (x - y).abs())
    # x and y of the control points are orthogonal to each other and to 1: the fit is a product.
    slopes = control / control[:, 0].square().sum()  # (K, 2)
    return (1 - height).clamp(min=0) + torch.matmul(points - inside, slopes.T)
