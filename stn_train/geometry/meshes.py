"""Sampling grids that bend the image, given at the points of a mesh: piecewise affine, TPS, CPAB.

Legend: B batch, N points, K control points, V vertices, C cells.

Convention: as in `stn_train.geometry.plane`: output to input, (x, y), [-1, 1].
"""

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from stn_train.geometry.grids import TransformGrid
from stn_train.geometry.matrices import combine
from stn_train.geometry.splines import (
    control_grid,
    thin_plate_basis,
    thin_plate_solver,
    triangle_basis,
)
from stn_train.geometry.velocity import Flow, place, tessellate


class ControlGrid(TransformGrid):
    """A transform given by K control points of the output, interpolated in between.

    theta (B, 2 K) is where they are read from: each one's (x, y) in the input, in their order.
    """

    control: Tensor
    """The control points (K, 2) in the output."""

    def __init__(self, control: Tensor) -> None:
        super().__init__(control.flatten())
        self.register_buffer("control", control.float(), persistent=False)

    @abstractmethod
    def basis(self, points: Tensor) -> Tensor:
        """The weight of each control point at points: (N, 2) -> (N, K), (B, N, 2) -> (B, N, K).

        At a control point its own weight must be 1 and the others 0. A transform that reproduces
        affine maps needs a basis that does.
        """

    def displacement(self, theta: Tensor, points: Tensor) -> Tensor:
        """From points (N, 2) or (B, N, 2) to where theta (B, 2 K) reads them from: (B, 2, N)."""
        control = self.control.to(points)
        displaced = theta.reshape(-1, len(control), 2) - control  # (B, K, 2)
        return combine(displaced.mT, self.basis(points))

    @override
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        displacement = self.displacement(theta, points)  # (B, 2, N)
        # Displacements of zero interpolate to zero: the identity is exact. x and y stay in planes.
        return (displacement + points.mT.contiguous()).mT  # (B, N, 2)

    @override
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The theta (B, 2 K) that agrees with both maps in a row at the control points.

        Only there: the composition of two splines, for instance, is not a spline.
        """
        points = second.reshape(-1, len(self.control), 2)  # (B, K, 2)
        return second + self.displacement(first, points).mT.flatten(1)


class PiecewiseAffineGrid(ControlGrid):
    """Affine in each triangle of a mesh, 2 K parameters, on ``side`` x ``side`` control points.

    They are a regular grid over the output, row by row, from edge to edge; each of its fields is
    cut into two triangles (`triangle_basis`).
    """

    def __init__(self, side: int = 4) -> None:
        """Raises ValueError for a ``side`` of less than 2."""
        super().__init__(control_grid(side))

    @override
    def basis(self, points: Tensor) -> Tensor:
        return triangle_basis(points, self.control.to(points))


class TPSGrid(ControlGrid):
    """Thin plate spline, 2 K parameters, on ``side`` x ``side`` control points (16 in the paper).

    They are a regular grid over the output, row by row, from edge to edge.
    """

    solver: Tensor
    """From `thin_plate_solver` (K + 3, K)."""

    def __init__(self, side: int = 4) -> None:
        """Raises ValueError for a ``side`` of less than 2."""
        control = control_grid(side)
        super().__init__(control)
        # The linear system depends on the control points alone: it is solved here, once.
        self.register_buffer("solver", thin_plate_solver(control).float(), persistent=False)

    @override
    def basis(self, points: Tensor) -> Tensor:
        return thin_plate_basis(points, self.control.to(points), self.solver.to(points))


class CPABGrid(TransformGrid):
    """CPAB, 2 V parameters: the flow of a continuous piecewise affine field of velocities.

    Freifeld et al. 2017 (IEEE PAMI 39(12)); in spatial transformers Skafte Detlefsen et al. 2018
    (CVPR). The field is affine in each triangle of a `Tessellation` of ``cells`` x ``cells``
    squares. theta is its velocity (x, y) at each of the V vertices: corners of squares row by row,
    then their centres. An output point follows the field for one unit of time, so equal velocities
    everywhere move the grid by just that much. The map is a diffeomorphism for every theta, and
    contains the exponential of every affine field. The velocity at the border is free, as in
    Skafte Detlefsen et al.: with a velocity of zero there it could neither shift nor zoom.
    """

    basis: Tensor
    """The field of each cell by the velocities at the vertices: `Tessellation.fields`."""
    edges: Tensor
    """`Tessellation.edges` (3, 3, C)."""
    neighbours: Tensor
    """`Tessellation.neighbours` (8 * C)."""
    places: Tensor
    """`Tessellation.places`: the cell at each index that `place` returns."""
    slopes: Tensor
    """`Tessellation.slopes` (2, V, V)."""

    def __init__(self, cells: int = 3) -> None:
        """Raises ValueError for ``cells`` of less than 1."""
        if cells < 1:
            raise ValueError(f"a tessellation needs at least 1 x 1 squares, got {cells}")
        tessellation = tessellate(cells)
        super().__init__(torch.zeros(2 * len(tessellation.vertices)))
        self.cells = cells
        self.register_buffer("basis", tessellation.fields.float(), persistent=False)
        self.register_buffer("edges", tessellation.edges.float(), persistent=False)
        self.register_buffer("slopes", tessellation.slopes.float(), persistent=False)
        self.register_buffer("neighbours", tessellation.neighbours, persistent=False)
        self.register_buffer("places", tessellation.places, persistent=False)

    @override
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        batch, count = theta.shape[0], points.shape[-2]
        basis, edges = self.basis.to(theta), self.edges.to(theta)
        components = theta.unflatten(1, (-1, 2)).permute(2, 0, 1)  # (2, B, V)
        fields = torch.matmul(components[:, None], basis).flatten(2)  # (2, 3, B*C)
        cells = self.places[place(points.detach(), self.cells)].expand(batch, count).flatten()
        images = torch.arange(batch, device=theta.device) * basis.shape[2]
        images = images[:, None].expand(batch, count).flatten()
        start = points.expand(batch, count, 2).permute(2, 0, 1).flatten(1)  # (2, B*N)
        legs = 8 * self.cells + 8
        ends: Tensor = Flow.apply(start, fields, images, cells, edges, self.neighbours, legs)
        return ends.view(2, batch, count).permute(1, 2, 0)  # (B, N, 2)

    @override
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The sum of both, and half the bracket of their fields at the vertices (B, 2 V).

        The composition of two flows is in general not the flow of such a field. This is the
        formula of Baker, Campbell and Hausdorff up to the second order: the error is of the third
        order in theta where both fields are affine, and elsewhere of the second.
        """
        ahead, behind = self.derivative(first, second), self.derivative(second, first)
        return first + second + (ahead - behind) / 2

    def derivative(self, theta: Tensor, along: Tensor) -> Tensor:
        """How the field of theta changes at each vertex along that of another: all (B, 2 V)."""
        values, ways = (each.unflatten(1, (-1, 2)) for each in (theta, along))  # (B, V, 2)
        slopes = torch.matmul(self.slopes.to(theta)[:, None], values)  # (2, B, V, 2)
        changes: Tensor = slopes[0] * ways[..., :1] + slopes[1] * ways[..., 1:]
        return changes.flatten(1)

    def inverse(self, theta: Tensor) -> Tensor:
        """The theta (B, P) of the inverse map."""
        return -theta
