"""The transforms a network can learn: parameters theta to a sampling grid.

Legend: B batch, P parameters, D depth, H height, W width, N points, K control points.

Convention: as in `stn_train.geometry.plane`: output to input, (x, y) or (x, y, z), [-1, 1].

To add one: write its grid, a `MatrixGrid` or a `ControlGrid` where it is one, otherwise a
`TransformGrid`; write the `Transform` that builds the grid, with its settings as fields; name
that in TRANSFORMS.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from stn_train.geometry.matrices import (
    NEAREST_DEPTH,
    affine_map,
    combine,
    compose_matrices,
    inverse_3x3,
    inverse_affine,
    projective_map,
)
from stn_train.geometry.plane import pixel_centres
from stn_train.geometry.splines import (
    control_grid,
    thin_plate_basis,
    thin_plate_solver,
    triangle_basis,
)
from stn_train.geometry.velocity import Flow, place, tessellate
from stn_train.settings import Settings


class TransformGrid(nn.Module, ABC):
    """Turns theta into a sampling grid. Has no weights: theta is what is learnt."""

    dimensions: int = 2
    """Of what it warps: 2 for images, 3 for volumes."""
    identity: Tensor
    """The theta (P,) that the localisation starts at. It leaves the image as it is, in every family
    that has such a theta."""

    def __init__(self, identity: Tensor) -> None:
        super().__init__()
        self.register_buffer("identity", identity.float(), persistent=False)

    @property
    def parameter_count(self) -> int:
        """P, the number of parameters of the transform."""
        return len(self.identity)

    def forward(self, theta: Tensor, output_size: tuple[int, ...]) -> Tensor:
        """theta (B, P) -> the grid (B, H, W, 2) that an output of size (H, W) is read from.

        In volumes the grid is (B, D, H, W, 3). Raises ValueError where theta has another shape, or
        the output other dimensions.
        """
        if len(output_size) != self.dimensions:
            name, sides = type(self).__name__, tuple(output_size)
            raise ValueError(f"{name} warps in {self.dimensions} dimensions, got the size {sides}")
        if theta.ndim != 2 or theta.shape[1] != self.parameter_count:
            wanted = f"(B, {self.parameter_count})"
            raise ValueError(f"theta must be {wanted}, got {tuple(theta.shape)}")
        points = pixel_centres(output_size, theta.device, theta.dtype)  # (H*W, 2)
        mapped = self.map_points(theta, points)  # (B, H*W, 2)
        return mapped.reshape(-1, *output_size, self.dimensions)  # (B, H, W, 2)

    @abstractmethod
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where output points are read from under theta (B, P): (B, N, 2).

        points (N, 2), shared by all images, or (B, N, 2), each image its own.
        """

    @abstractmethod
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The theta (B, P) of warping by ``first`` and then by ``second``, both (B, P).

        An output point is mapped by ``second``, then by ``first``, into the input.
        """


class MatrixGrid(TransformGrid):
    """A transform whose theta stands for a matrix: composing is multiplying.

    The matrices of all theta must be a group: products and inverses stay in the family.
    """

    @abstractmethod
    def matrix(self, theta: Tensor) -> Tensor:
        """The matrices (B, 2, 3), affine, or (B, 3, 3), projective, of theta (B, P).

        In volumes (B, 3, 4), affine.
        """

    @abstractmethod
    def theta(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: theta (B, P) of matrices as it returns them."""

    @override
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        matrix = self.matrix(theta)
        rows, columns = matrix.shape[1:]
        return (affine_map if rows < columns else projective_map)(matrix, points)

    @override
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        return self.theta(compose_matrices(self.matrix(first), self.matrix(second)))

    def inverse(self, theta: Tensor) -> Tensor:
        """The theta (B, P) that undoes theta (B, P): composing both gives the identity.

        Of a map that cannot be undone, whose scale is 0 for instance, it is not finite. Nor can a
        projective map be undone that puts the centre of its input behind the horizon.
        """
        matrix = self.matrix(theta)
        return self.theta((inverse_affine if matrix.shape[1] == 2 else inverse_3x3)(matrix))


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


class TranslationGrid(MatrixGrid):
    """Translation, 2 parameters: x and y."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        x, y = theta.unbind(1)  # each (B,)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        return torch.stack([one, zero, x, zero, one, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return matrix[:, :, 2]


class RigidGrid(MatrixGrid):
    """Rotation and translation, 3 parameters: the angle in radians, x and y.

    A positive angle turns the points that are read clockwise on the screen, so that the image turns
    counter-clockwise. Composed and inverse angles lie in [-pi, pi].
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([0, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        angle, x, y = theta.unbind(1)  # each (B,)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])  # (B,)
        return torch.cat([angle[:, None], matrix[:, :, 2]], dim=1)


class AttentionGrid(MatrixGrid):
    """Isotropic scale and translation, 3 parameters: scale, x and y (equation 2)."""

    def __init__(self, start: float = 1.0) -> None:
        """start: the scale that a new transformer has. Raises ValueError unless above 0."""
        if not start > 0:
            raise ValueError(f"a window's scale must be above 0, got {start}")
        super().__init__(torch.tensor([start, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        scale, x, y = theta.unbind(1)  # each (B,)
        zero = torch.zeros_like(scale)
        return torch.stack([scale, zero, x, zero, scale, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return torch.cat([matrix[:, :1, 0], matrix[:, :, 2]], dim=1)


class FixedAttentionGrid(TransformGrid):
    """A window of fixed size, 2 parameters: where its centre lies, x and y.

    Section 4.3 of the paper: a scale of 0.5 shows a quarter of the image's area, twice as large.
    Theta is (0, 0) at the start: the middle of the image.
    """

    def __init__(self, scale: float) -> None:
        """scale: side of the window over that of the image. Raises ValueError unless above 0."""
        if not scale > 0:
            raise ValueError(f"a window's scale must be above 0, got {scale}")
        super().__init__(torch.zeros(2))
        self.scale = scale

    @override
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        # x and y in planes, the layout that `sample` reads fastest.
        return (self.scale * points.mT.contiguous() + theta[:, :, None]).mT  # (B, N, 2)

    @override
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The window whose centre is where both maps in a row put it, of the fixed size again.

        Two maps in a row have the scale ``scale**2``, which is outside the family. For refinement
        this is the wanted meaning: ``second``, found in the window of ``first``, moves the window
        to a point that was seen in it, and does not zoom in once more.
        """
        return first + self.scale * second


class SimilarityGrid(MatrixGrid):
    """Rotation, scale and translation, 4 parameters: a, b, x and y of [[a, -b, x], [b, a, y]].

    (a, b) is the scale times the cosine and the sine of the angle: smooth, without a jump at half a
    turn.
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([1, 0, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        a, b, x, y = theta.unbind(1)  # each (B,)
        return torch.stack([a, -b, x, b, a, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return torch.cat([matrix[:, :, 0], matrix[:, :, 2]], dim=1)


class AffineGrid(MatrixGrid):
    """Affine, 6 parameters: the 2x3 matrix, row by row (equation 1).

    In volumes 12 parameters: the 3x4 matrix, row by row (A.3).
    """

    def __init__(self, dimensions: int = 2) -> None:
        """dimensions: 2 for images, 3 for volumes."""
        super().__init__(torch.eye(dimensions, dimensions + 1).flatten())
        self.dimensions = dimensions

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        return theta.reshape(-1, self.dimensions, self.dimensions + 1)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return matrix.flatten(1)


class ProjectiveGrid(MatrixGrid):
    """Projective, 8 parameters: the 3x3 homography, row by row, its last entry fixed at 1.

    Points on or behind the horizon read as padding (`projective_map`).
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        return torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        entries = matrix.flatten(1)  # (B, 9)
        # The last entry is the depth of the output's centre. On or behind the horizon there is
        # no such theta, and NEAREST_DEPTH is taken instead.
        return entries[:, :8] / entries[:, 8:].clamp(min=NEAREST_DEPTH)


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


class Transform(Settings, ABC):
    """A family of maps of the plane that a network can learn. Its fields are its settings."""

    file_name: ClassVar[str]
    """Stands for the transform in the names of files."""
    warps_volumes: ClassVar[bool] = False
    """Whether it has a form in three dimensions: `build_for_volumes`."""

    @abstractmethod
    def build(self) -> TransformGrid:
        """The transform with these settings, on images."""

    def build_for_volumes(self) -> TransformGrid:
        """The same on volumes. Raises ValueError for a family that warps images alone."""
        raise ValueError(f"{type(self).__name__} warps images alone, no volumes")


class Translation(Transform):
    """Translation alone."""

    file_name = "translation"

    @override
    def build(self) -> TranslationGrid:
        return TranslationGrid()


class Rigid(Transform):
    """Rotation and translation."""

    file_name = "rigid"

    @override
    def build(self) -> RigidGrid:
        return RigidGrid()


class Attention(Transform):
    """A window of the image, not turned: one scale for x and y, and translation."""

    file_name = "attention"

    scale: Annotated[float, Field(gt=0, le=4)] | None = None
    """Side of the window over that of the image, held fixed: only its place is learnt, and 0.5 (the
    paper's birds, 4.3) starts at the middle half. null: the scale is learnt too, from `start`."""
    start: Annotated[float, Field(gt=0, le=4)] = 1.0
    """The scale that is learnt from. Below 1 the window starts in the middle of the image, and each
    of several iterations zooms in by it."""

    @override
    def build(self) -> AttentionGrid | FixedAttentionGrid:
        return AttentionGrid(self.start) if self.scale is None else FixedAttentionGrid(self.scale)


class Similarity(Transform):
    """Rotation, one scale for x and y, and translation."""

    file_name = "similarity"

    @override
    def build(self) -> SimilarityGrid:
        return SimilarityGrid()


class Affine(Transform):
    """Any 2x3 matrix, of volumes 3x4: translation, rotation, scale and shear."""

    file_name = "affine"
    warps_volumes = True

    @override
    def build(self) -> AffineGrid:
        return AffineGrid()

    @override
    def build_for_volumes(self) -> AffineGrid:
        return AffineGrid(dimensions=3)


class Projective(Transform):
    """Any homography: affine, and perspective."""

    file_name = "projective"

    @override
    def build(self) -> ProjectiveGrid:
        return ProjectiveGrid()


class PiecewiseAffine(Transform):
    """A mesh of triangles whose corners are free; it bends only at their edges."""

    file_name = "piecewise"

    side: Annotated[int, Field(ge=2, le=16)] = 4
    """Corners a side, on a regular grid over the output."""

    @override
    def build(self) -> PiecewiseAffineGrid:
        return PiecewiseAffineGrid(self.side)


class ThinPlateSpline(Transform):
    """A smooth bending that is free at each point of a regular grid."""

    file_name = "tps"

    side: Annotated[int, Field(ge=2, le=16)] = 4
    """Control points a side, on a regular grid over the output; 4 in the paper."""

    @override
    def build(self) -> TPSGrid:
        return TPSGrid(self.side)


class CPAB(Transform):
    """A bending that never folds over: the flow of a piecewise affine field of velocities."""

    file_name = "cpab"

    cells: Annotated[int, Field(ge=1, le=8)] = 3
    """Squares a side, each cut into four triangles; the corners of 3 x 3 are TPS's 4 x 4 points."""

    @override
    def build(self) -> CPABGrid:
        return CPABGrid(self.cells)


TRANSFORMS: dict[str, type[Transform]] = {
    "Translation": Translation,
    "Rigid": Rigid,
    "Attention": Attention,
    "Similarity": Similarity,
    "Aff": Affine,
    "Proj": Projective,
    "PiecewiseAffine": PiecewiseAffine,
    "TPS": ThinPlateSpline,
    "CPAB": CPAB,
}
"""What `transform` in a config can be, beside `none`; in order of their parameters."""
