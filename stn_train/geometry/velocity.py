"""Flows of continuous piecewise affine velocity fields: diffeomorphisms of the plane (CPAB).

Freifeld, Hauberg, Batmanghelich and Fisher 2017, "Transformations Based on Continuous
Piecewise-Affine Velocity Fields" (IEEE PAMI 39(12)). A point follows the field for one unit of
time. Within a cell the velocity is affine, so a trajectory is a chain of matrix exponentials,
one a cell, and the only thing to search for is when it leaves a cell.

Legend: B batch, N points, V vertices, C cells, M points of all images (B*N), m some of them.

Convention: as in `stn_train.geometry.plane`.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

CPU_PART = 65_536
"""A CPU moves so many points at once: with fewer, the calls take longer than the arithmetic; with
more, what is computed leaves its cache."""

REACH = 0.5
"""The most that a leg's time may be, times its cell's rate of growth: a longer one is split."""

TERMS = {torch.float32: 6, torch.float64: 14}
"""Terms of the exponential series. With REACH, the next one is lost in the rounding error."""


class Tessellation(NamedTuple):
    """Squares over [-1, 1]^2, each cut into four triangles by its diagonals, and what is around.

    Outside of the squares each side of one at the border has a half strip, and each corner of
    [-1, 1]^2 a quarter of the plane. Floating point tensors are float64.
    """

    vertices: Tensor
    """(V, 2): corners of squares row by row, then centres of squares row by row."""
    fields: Tensor
    """(3, V, C): from velocities at vertices to each cell's: slope in x, slope in y, constant."""
    edges: Tensor
    """(3, 3, C): a, b, c of each edge of each cell: a x + b y + c is the distance inwards."""
    neighbours: Tensor
    """(8 * C): the next cell, by the cell and by the edges that were crossed (1, 2, 4, added)."""
    places: Tensor
    """(4 * (side + 2)^2): the cell at each index that `place` returns."""
    slopes: Tensor
    """(2, V, V): from velocities at vertices to their slopes in x and y there, means of cells."""


def tessellate(side: int) -> Tessellation:
    """The tessellation of ``side`` x ``side`` squares.

    Outside of them the field continues from the border by the linear part of its affine fit.
    So it is continuous in the whole plane, and a field that is affine is affine everywhere.
    """
    # The lines of the squares, and one more on either side: boxes of the outside end there.
    line = torch.linspace(-1, 1, side + 1, dtype=torch.float64)
    lines = torch.cat([line[:1] - 1, line, line[-1:] + 1])
    middles = (line[1:] + line[:-1]) / 2
    corners, centres = (torch.cartesian_prod(each, each).flip(-1) for each in (line, middles))
    vertices = torch.cat([corners, centres])
    ones = torch.ones(len(vertices), 1, dtype=torch.float64)
    fit = torch.linalg.pinv(torch.cat([vertices, ones], dim=1))[:2]  # (2, V)
    velocities = torch.eye(len(vertices), dtype=torch.float64)

    def node(row: int, column: int) -> tuple[Tensor, Tensor]:
        """A crossing of `lines`, and its velocity as a combination of those at vertices (V)."""
        nearest = [min(max(each - 1, 0), side) for each in (row, column)]
        known = nearest[0] * (side + 1) + nearest[1]
        point = torch.stack([lines[column], lines[row]])
        return point, velocities[known] + (point - vertices[known]) @ fit

    edges: list[list[list[float]]] = []
    points, combinations, places = [], [], []
    for row, column in itertools.product(range(side + 2), repeat=2):
        (x0, x1), (y0, y1) = lines[column : column + 2].tolist(), lines[row : row + 2].tolist()
        sides = [[1.0, 0, -x0], [0, -1.0, y1], [0, 1.0, -y0], [-1.0, 0, x1]]
        top_left, top_right = node(row, column), node(row, column + 1)
        bottom_left, bottom_right = node(row + 1, column), node(row + 1, column + 1)
        ends = [
            (bottom_left, top_left),
            (bottom_left, bottom_right),
            (top_left, top_right),
            (top_right, bottom_right),
        ]
        if 1 <= row <= side and 1 <= column <= side:
            at = len(corners) + (row - 1) * side + column - 1
            x, y = vertices[at].tolist()
            for quarter in range(4):  # as `place` counts them: left, bottom, top, right
                places.append(len(edges))
                nodes = [(vertices[at], velocities[at]), *ends[quarter]]
                right_of, below = (0.5**0.5 * (1 if quarter & bit else -1) for bit in (2, 1))
                diagonals = [
                    [right_of, -right_of, right_of * (y - x)],
                    [below, below, -below * (x + y)],
                ]
                edges.append([*diagonals, sides[quarter]])
                points.append(torch.stack([point for point, _ in nodes]))
                combinations.append(torch.stack([velocity for _, velocity in nodes]))
        else:
            places.extend([len(edges)] * 4)
            open_sides = (column == 0, row == side + 1, row == 0, column == side + 1)
            closed = [each for each, is_open in zip(sides, open_sides, strict=True) if not is_open]
            # A corner has two edges. The third is always far away.
            edges.append([*closed, [0.0, 0.0, 1.0]][:3])
            nodes = [top_left, top_right, bottom_left]
            points.append(torch.stack([point for point, _ in nodes]))
            combinations.append(torch.stack([velocity for _, velocity in nodes]))

    triples, place_of = torch.stack(points), torch.tensor(places)  # (C, 3, 2)
    system = torch.cat([triples, torch.ones_like(triples[..., :1])], dim=-1)  # (C, 3, 3)
    fields = torch.linalg.solve(system, torch.stack(combinations)).permute(1, 2, 0)
    edge = torch.tensor(edges, dtype=torch.float64)  # (C, 3, 3)
    inside = triples.mean(1, keepdim=True)  # (C, 1, 2)
    normals = edge[..., :2]  # (C, 3, 2)
    distances = (normals * inside).sum(-1, keepdim=True) + edge[..., 2:]  # (C, 3, 1)
    beyond = inside - (distances + 0.01 / side) * normals  # (C, 3, 2)
    across = place_of[place(beyond, side)]  # (C, 3)
    own = torch.arange(len(edge))[:, None]
    first = [3, 0, 1, 0, 2, 0, 1, 0]  # of several edges that were crossed, take one
    neighbours = torch.cat([across, own], dim=1)[:, first].T  # (8, C)

    touching = (triples[:, :, None] == vertices).all(-1).any(1).double()  # (C, V)
    touching = touching * (triples.abs() <= 1).all(-1).all(-1)[:, None]
    slopes = (fields[:2] @ (touching / touching.sum(0))).mT  # (2, V, V)
    return Tessellation(
        vertices,
        fields,
        edge.permute(1, 2, 0),
        neighbours.flatten(),
        place_of,
        slopes,
    )


def place(points: Tensor, side: int) -> Tensor:
    """Where points (..., 2) lie among side x side squares: (...), integers.

    The squares, and a ring of others around them for all that is outside, are numbered row by
    row; each has four places: left, bottom, top and right of its diagonals.
    """
    scaled = (points + 1) * (side / 2)
    square = scaled.nan_to_num().floor().clamp(-1, side)
    x, y = (scaled - square - 0.5).unbind(-1)
    quarter = 2 * (x > y).long() + (x + y > 0).long()
    column, row = (square.long() + 1).unbind(-1)
    return 4 * (row * (side + 2) + column) + quarter


class Leg(NamedTuple):
    """A part of some points' trajectories, each within one cell."""

    who: Tensor
    """Which of the points move (m)."""
    start: Tensor
    """Where from (2, m)."""
    field: Tensor
    """The column of the fields that each follows (m)."""
    time: Tensor
    """For how long (m)."""


def columns(table: Tensor, which: Tensor) -> Tensor:
    """Columns (m) of a table (K, 3, C): (K, 3, m)."""
    # In two dimensions `index_select` is ten times faster than in three.
    return table.flatten(0, 1).index_select(1, which).view(table.shape[0], 3, which.shape[0])


class AffineFunctions(NamedTuple):
    """Affine functions of the plane: K of them at each of m points."""

    x: Tensor
    """Slopes in x (K, m)."""
    y: Tensor
    """Slopes in y (K, m)."""
    constant: Tensor
    """Values at the origin (K, m)."""

    @classmethod
    def of(cls, coefficients: Tensor) -> Self:
        """From coefficients (K, 3, m): slope in x, slope in y, constant."""
        return cls(*coefficients.unbind(1))  # views: this is cheaper than slicing at each use

    def at(self, points: Tensor) -> Tensor:
        """Their values at points (2, m): (K, m)."""
        x, y = points.unbind()
        return torch.addcmul(torch.addcmul(self.constant, self.x, x), self.y, y)

    def along(self, vectors: Tensor) -> Tensor:
        """Their rates of change along vectors (2, m): (K, m)."""
        x, y = vectors.unbind()
        return torch.addcmul(self.x * x, self.y, y)


def displacement_terms(field: AffineFunctions, start: Tensor, time: Tensor) -> list[Tensor]:
    """Nested sums of the exponential series: the last is how far points get (2, m).

    With velocity v and slopes A: t v + (t A / 2) (t v + (t A / 3) (t v + ...)).
    """
    moved = field.at(start) * time  # (2, m)
    slopes_x, slopes_y = field.x * time, field.y * time  # (2, m)
    terms = [moved]
    for order in range(TERMS[start.dtype], 1, -1):
        (x, y), part = terms[-1].unbind(), 1 / order
        half = torch.addcmul(moved, slopes_x, x, value=part)
        terms.append(torch.addcmul(half, slopes_y, y, value=part))
    return terms


def displacement_gradients(
    coefficients: Tensor, start: Tensor, time: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of start (2, m) and coefficients (2, 3, m) from the gradient of the end (2, m)."""
    terms = displacement_terms(AffineFunctions.of(coefficients), start, time)
    slopes = coefficients[:, :2] * time  # (2, 2, m)
    slopes_0, slopes_1 = slopes.unbind()
    of_moved, of_slopes = gradient.clone(), torch.zeros_like(slopes)
    of_term = gradient
    for order, term in zip(range(2, len(terms) + 1), terms[-2::-1], strict=True):
        part = 1 / order
        of_slopes.addcmul_(of_term[:, None], term, value=part)
        of_0, of_1 = of_term.unbind()
        of_term = (slopes_0 * of_0).addcmul_(slopes_1, of_1).mul_(part)  # (2, m)
        of_moved += of_term
    of_moved *= time
    of_slopes *= time
    of_slopes.addcmul_(of_moved[:, None], start)
    of_0, of_1 = of_moved.unbind()
    velocity_0, velocity_1 = coefficients[:, :2].unbind()
    of_start = gradient + (velocity_0 * of_0).addcmul_(velocity_1, of_1)
    return of_start, torch.cat([of_slopes, of_moved[:, None]], dim=1)


def time_inside(
    field: AffineFunctions, edge: AffineFunctions, start: Tensor, left: Tensor
) -> Tensor:
    """When points leave their cells, or ``left`` (m) if that is earlier: (m).

    The distance from an edge is expanded to the third order in time. `walk` makes up for what is
    left of the error.
    """
    (x_of_x, y_of_x), (x_of_y, y_of_y) = field.x.unbind(), field.y.unbind()
    trace = x_of_x + y_of_y
    determinant = torch.addcmul(x_of_x * y_of_y, x_of_y, y_of_x, value=-1)
    rate = trace.abs() + determinant.abs().sqrt()  # no eigenvalue is larger
    limit = torch.minimum(left, REACH / rate)
    speed = field.at(start)  # (2, m)
    turn = field.along(speed)
    jerk = field.along(turn)
    distance = edge.at(start).clamp_(min=16 * torch.finfo(start.dtype).eps)  # (3, m)
    first, second, third = (edge.along(each) for each in (speed, turn, jerk))
    slowest, twice, square = limit.reciprocal(), 2 * distance, first * first
    bend = second
    for _ in range(2):
        root = torch.addcmul(square, twice, bend, value=-1).clamp_(min=1e-30).sqrt_()
        # The largest root of distance u^2 + first u + bend / 2 is one over the earliest time.
        inverse = torch.maximum((root - first).div_(twice), slowest)
        bend = torch.addcdiv(second, third, inverse, value=1 / 3)
    return torch.minimum(inverse.amax(0).reciprocal_(), limit)


class Travellers(NamedTuple):
    """Points that follow the field, and the state of each."""

    who: Tensor
    """Which of the points they are (m)."""
    points: Tensor
    """Where they are (2, m)."""
    images: Tensor
    """The column of the fields that each one's image begins at (m)."""
    cells: Tensor
    """The cells that they are in (m)."""
    left: Tensor
    """The time that they have left (m)."""

    def parts(self, size: int) -> "Iterator[Travellers]":
        """In parts of at most ``size`` points."""
        return map(Travellers._make, zip(*(each.split(size, -1) for each in self), strict=True))

    def still_going(self) -> "Travellers":
        """The points that have time left."""
        going = (self.left > 4 * torch.finfo(self.left.dtype).eps).nonzero()[:, 0]
        if len(going) == len(self.who):
            return self
        return Travellers._make(each.index_select(-1, going) for each in self)


def joined(parts: Sequence[Travellers]) -> Travellers:
    """All parts in one."""
    if len(parts) == 1:
        return parts[0]
    return Travellers._make(torch.cat(each, dim=-1) for each in zip(*parts, strict=True))


def walk(
    travellers: Travellers, fields: Tensor, edges: Tensor, neighbours: Tensor
) -> tuple[Leg, Travellers]:
    """The next leg, and the travellers at its end: in their next cell, or out of time.

    fields (2, 3, B * C), edges (3, 3, C), neighbours (8 * C).
    """
    who, begin, images, cells, left = travellers
    column = images + cells
    field = AffineFunctions.of(columns(fields, column))  # K = 2: the velocity in x and in y
    edge = AffineFunctions.of(columns(edges, cells))  # K = 3: the distances from three edges
    time = time_inside(field, edge, begin, left)
    points = begin + displacement_terms(field, begin, time)[-1]
    # An edge is crossed by points on it, or beyond, whose velocity points outwards.
    speed = field.at(points)  # (2, m)
    distance, rate = edge.at(points), edge.along(speed)  # (3, m)
    near = torch.finfo(begin.dtype).eps ** (2 / 3)
    crossed = torch.maximum(distance - near, rate).lt_(0)
    # Points that went too far go back: Newton's method for the time.
    late = distance.div_(rate.clamp_(max=-1e-30)).mul_(crossed).amax(0).clamp_(min=0)
    late = torch.minimum(late, time / 16)
    points = points - late * torch.addcmul(speed, late, field.along(speed), value=-0.5)
    time = time - late
    which = crossed[0].add_(crossed[1], alpha=2).add_(crossed[2], alpha=4).long()
    cells = neighbours.index_select(0, which.mul_(edges.shape[2]).add_(cells))
    return Leg(who, begin, column, time), Travellers(who, points, images, cells, left - time)


def follow(
    start: Tensor,
    images: Tensor,
    cells: Tensor,
    fields: Tensor,
    edges: Tensor,
    neighbours: Tensor,
    most: int,
) -> tuple[Tensor, list[Leg]]:
    """Points (2, M) after a unit of time, and the legs of their trajectories, ``most`` at most.

    images (M), cells (M): as in `Travellers`; the others as for `walk`. A point that would need
    more legs stops where the last one ends.
    """
    on_cpu = start.device.type == "cpu"
    # A GPU and an exported program keep all points to the end: the done ones stand still.
    dropping = on_cpu and not torch.compiler.is_exporting()
    size = CPU_PART if on_cpu else max(start.shape[1], 1)
    ends, legs = start.clone(), []
    who = torch.arange(start.shape[1], device=start.device)
    travellers = Travellers(who, start, images, cells, torch.ones_like(start[0]))
    for _ in range(most):
        after = []
        for part in travellers.parts(size):
            leg, moved = walk(part, fields, edges, neighbours)
            legs.append(leg)
            if dropping:
                ends.index_copy_(1, moved.who, moved.points)
                moved = moved.still_going()
            after.append(moved)
        travellers = joined(after)
        if dropping and len(travellers.who) == 0:
            return ends, legs
    return ends.index_copy_(1, travellers.who, travellers.points), legs


class Flow(torch.autograd.Function):
    """`follow` with its gradient.

    The times at which a point changes cells need no gradient: the velocities on both sides of an
    edge are the same. So the gradient goes back along the legs with their times held fixed.
    """

    @staticmethod
    @override
    def forward(ctx: Any, start: Tensor, fields: Tensor, *others: Any) -> Tensor:
        """As `follow`: start (2, M), fields (2, 3, B * C), then the other arguments -> (2, M)."""
        fields = fields.to(start.dtype)  # autocast multiplies matrices in another
        images, cells, *rest = others
        ends, legs = follow(start, images, cells, fields, *rest)
        ctx.save_for_backward(fields)
        ctx.legs = legs
        return ends

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of start and fields from that of where points end (2, M)."""
        (fields,) = ctx.saved_tensors
        of_start = gradient.clone(memory_format=torch.contiguous_format)  # 20 times faster to index
        sums = torch.zeros_like(fields).flatten(0, 1)
        for who, start, column, time in reversed(ctx.legs):
            field, of_end = columns(fields, column), of_start.index_select(1, who)
            of_begin, of_field = displacement_gradients(field, start, time, of_end)
            of_start.index_copy_(1, who, of_begin)
            sums.scatter_add_(1, column.expand(6, -1), of_field.flatten(0, 1))
        return of_start, sums.view_as(fields), *[None] * 5
