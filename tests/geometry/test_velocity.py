"""CPAB against a solver of differential equations, matrix exponentials, and libcpab."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from stn_train.geometry.meshes import CPABGrid, TPSGrid
from stn_train.geometry.plane import pixel_centres
from stn_train.geometry.transforms import CPAB
from stn_train.geometry.velocity import place, tessellate

SIDES = pytest.mark.parametrize("side", [1, 2, 3, 4])


def thetas(grid, count, spread, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, grid.parameter_count, generator=random, dtype=dtype)


def scattered(count, reach=1.0, seed=5, dtype=torch.float64):
    """Points (count, 2) in [-reach, reach]^2."""
    random = torch.Generator().manual_seed(seed)
    return reach * (2 * torch.rand(count, 2, generator=random, dtype=dtype) - 1)


def own_velocity(side, theta, points):
    """The field at points (N, 2), from the tables of the tessellation."""
    tables = tessellate(side)
    cells = tables.places[place(points, side)]
    affine = tables.fields[:, :, cells].permute(2, 0, 1) @ theta.view(-1, 2)  # (N, 3, 2)
    return (torch.cat([points, torch.ones_like(points[:, :1])], 1)[:, None] @ affine)[:, 0]


def interpolated_field(side, theta):
    """The field worked out square by square; outside by a least-squares fit."""
    vertices, values = tessellate(side).vertices.numpy(), theta.view(-1, 2).numpy()
    corners, centres = np.split(values, [(side + 1) ** 2])
    corners, centres = corners.reshape(side + 1, side + 1, 2), centres.reshape(side, side, 2)
    fit = np.linalg.lstsq(np.c_[vertices, np.ones(len(vertices))], values, rcond=None)[0][:2]

    def field(points):
        inside = points.clip(-1, 1)
        scaled = (inside + 1) * side / 2
        column, row = np.minimum(scaled.astype(int), side - 1).T
        u, v = scaled.T - (column, row) - 0.5
        wide = abs(u) > abs(v)  # left or right of the diagonals
        right, below = column + (u > 0), row + (v > 0)
        first = np.where(wide[:, None], corners[row, right], corners[below, column])
        second = np.where(wide[:, None], corners[row + 1, right], corners[below, column + 1])
        out, along = (np.where(wide, *each)[:, None] for each in ((abs(u), abs(v)), (v, u)))
        centre = centres[row, column]
        middle = (first + second) / 2
        return (
            centre
            + 2 * out * (middle - centre)
            + along * (second - first)
            + (points - inside) @ fit
        )

    return field


def solved(side, theta, points):
    """Where points (N, 2) end, by an adaptive solver whose steps are short."""
    field = interpolated_field(side, theta)
    end = solve_ivp(
        lambda _, at: field(at.reshape(-1, 2)).ravel(),
        (0, 1),
        points.numpy().ravel(),
        max_step=0.005,
        rtol=1e-6,
    )
    return torch.from_numpy(end.y[:, -1].reshape(-1, 2))


# The field.


@SIDES
def test_the_field_is_the_interpolation_of_its_values_at_the_vertices(side):
    grid = CPABGrid(side)
    theta, points = thetas(grid, 1, 1.0)[0], scattered(200, 2.0)
    expected = interpolated_field(side, theta)(points.numpy())
    np.testing.assert_allclose(own_velocity(side, theta, points), expected, atol=1e-12)


@SIDES
def test_the_field_is_continuous_across_every_edge(side):
    tables = tessellate(side)
    theta = thetas(CPABGrid(side), 1, 1.0)[0].view(-1, 2)
    affine = torch.einsum("kvc,vi->cki", tables.fields, theta)  # (C, 3, 2)
    across = tables.neighbours.view(8, -1)
    for number, crossed in enumerate((1, 2, 4)):
        a, b, c = tables.edges[number]
        real = a.square() + b.square() > 0.5
        foot = -c[:, None] * torch.stack([a, b], 1)  # on the line of the edge, if not in it
        way = torch.stack([-b, a], 1)
        for step in (0.0, 1.0):
            points = torch.cat([foot + step * way, torch.ones_like(foot[:, :1])], 1)[:, None]
            here, there = points @ affine, points @ affine[across[crossed]]
            torch.testing.assert_close(here[real], there[real], rtol=0, atol=1e-10)


@SIDES
def test_neighbours_are_each_others(side):
    tables = tessellate(side)
    across = tables.neighbours.view(8, -1)
    cells = torch.arange(across.shape[1])
    assert torch.equal(across[0], cells)
    assert len(cells) == 4 * side * side + 4 * side + 4
    back = torch.stack([across[crossed][across[1:5]] for crossed in (1, 2, 4)])
    assert (back == cells).any(0)[[0, 1, 3]].all()


# The flow.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("side", "spread"), [(1, 0.5), (2, 0.5), (4, 0.1), (4, 0.4), (7, 0.1)])
def test_the_flow_equals_that_of_a_solver(side, spread, dtype):
    grid = CPABGrid(side)
    theta, points = thetas(grid, 2, spread), scattered(25, 1.2)
    ends = grid.map_points(theta.to(dtype), points.to(dtype)).double()
    for one, end in zip(theta, ends, strict=True):
        expected = solved(side, one, points)
        assert (expected - points).abs().max() > 0.1  # through several cells
        torch.testing.assert_close(end, expected, rtol=0, atol=4e-6)


@SIDES
def test_an_affine_field_gives_the_matrix_exponential_everywhere(side):
    grid = CPABGrid(side)
    generator = np.array([[0.3, -1.1, 0.2], [0.9, -0.2, -0.1], [0, 0, 0]])
    vertices = tessellate(side).vertices.numpy()
    theta = torch.from_numpy((np.c_[vertices, np.ones(len(vertices))] @ generator[:2].T).ravel())
    points = scattered(200, 1.5)
    expected = np.c_[points.numpy(), np.ones(200)] @ expm(generator)[:2].T
    ends = grid.map_points(theta[None], points)[0]
    np.testing.assert_allclose(ends, expected, atol=1e-6)  # the tables are kept in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_identity_is_exact(dtype):
    grid, points = CPABGrid(), scattered(500, 3.0, dtype=dtype)
    ends = grid.map_points(torch.zeros(2, grid.parameter_count, dtype=dtype), points)
    assert torch.equal(ends, points.expand(2, -1, -1))


@pytest.mark.parametrize("size", [(28, 28), (5, 8), (1, 1)])
def test_a_constant_field_moves_every_point_by_just_that(size):
    grid = CPABGrid()
    theta = torch.tensor([0.3, -0.2]).repeat(grid.parameter_count // 2)[None]
    expected = pixel_centres(size) + torch.tensor([0.3, -0.2])
    ends = grid(theta, size).view(-1, 2)
    torch.testing.assert_close(ends, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_the_inverse_undoes_it(spread):
    grid = CPABGrid()
    theta, points = thetas(grid, 4, spread), scattered(300)
    there = grid.map_points(theta, points)
    assert (there - points).abs().max() > spread
    back = grid.map_points(grid.inverse(theta), there)
    torch.testing.assert_close(back, points.expand_as(back), rtol=0, atol=1e-5)


def jacobians(grid, theta, points):
    """Determinants of the derivative of a map, by central differences: (B, N)."""
    step = 1e-5
    x, y = (
        (grid.map_points(theta, points + way) - grid.map_points(theta, points - way)) / (2 * step)
        for way in (torch.tensor([step, 0.0]).double(), torch.tensor([0.0, step]).double())
    )
    return x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]


def test_it_never_folds_over_where_a_spline_does():
    points = scattered(400)
    grid, spline = CPABGrid(), TPSGrid()
    assert jacobians(grid, thetas(grid, 5, 0.5), points).min() > 0
    folded = spline.identity.double() + thetas(spline, 5, 0.5)
    assert jacobians(spline, folded, points).min() < 0


def test_of_many_points_each_is_moved_as_if_alone(monkeypatch):
    """More than a CPU moves at once, on trajectories of different lengths; gradients too."""
    grid, points = CPABGrid(), scattered(1000)
    theta = thetas(grid, 2, 0.2).requires_grad_()

    def moved() -> list[torch.Tensor]:
        ends = grid.map_points(theta, points)
        (gradient,) = torch.autograd.grad(ends.pow(2).sum(), theta)
        return [ends, gradient]

    at_once = moved()
    monkeypatch.setattr("stn_train.geometry.velocity.CPU_PART", 300)
    torch.testing.assert_close(moved(), at_once, rtol=0, atol=1e-9)
    alone = grid.map_points(theta, points[::50])
    torch.testing.assert_close(at_once[0][:, ::50], alone, rtol=0, atol=1e-9)


def test_gradient_that_is_laid_out_otherwise_is_the_same():
    """As the sampler's gradient of a grid is: pairs of x and y."""
    grid, points = CPABGrid(), scattered(50)
    theta = thetas(grid, 1, 0.2).requires_grad_()
    upstream = torch.randn(1, 50, 2, dtype=torch.float64)
    found = [
        torch.autograd.grad(grid.map_points(theta, points), theta, laid_out)[0]
        for laid_out in (upstream, upstream.mT.contiguous().mT)
    ]
    torch.testing.assert_close(*found)


def test_a_gpu_and_an_exported_program_get_the_same(monkeypatch):
    """They keep the points that are done, where a CPU drops them."""
    grid, points = CPABGrid(2), scattered(50).requires_grad_()
    results = []
    for exporting in (False, True):
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda answer=exporting: answer)
        theta = thetas(grid, 3, 0.3).requires_grad_()
        ends = grid.map_points(theta, points)
        results.append((ends, *torch.autograd.grad(ends.square().sum(), (theta, points))))
    for dropped, kept in zip(*results, strict=True):
        torch.testing.assert_close(kept, dropped, rtol=0, atol=1e-10)


def test_nothing_breaks_where_theta_is_not_finite():
    grid = CPABGrid()
    theta = torch.full((1, grid.parameter_count), torch.nan)
    assert grid(theta, (3, 3)).isnan().all()


# Gradients.


@pytest.mark.parametrize("side", [1, 3])
def test_gradients_of_theta_and_points_pass_gradcheck(side):
    grid = CPABGrid(side)
    theta, points = thetas(grid, 2, 0.3).requires_grad_(), scattered(2).requires_grad_()
    assert torch.autograd.gradcheck(grid.map_points, (theta, points))


def test_gradients_at_edges_and_vertices_are_finite():
    grid = CPABGrid()
    theta = torch.zeros(1, grid.parameter_count, requires_grad=True)
    points = tessellate(grid.cells).vertices.float().requires_grad_()
    grid.map_points(theta, points).square().sum().backward()
    assert theta.grad.isfinite().all()
    assert theta.grad.any()
    # At the identity, the velocity of a vertex moves that vertex and no other.
    expected = 2 * points.detach().flatten()
    torch.testing.assert_close(theta.grad[0], expected, rtol=0, atol=1e-5)


# Composition.


def linear_theta(grid, matrix):
    return (tessellate(grid.cells).vertices @ matrix.T).flatten()[None]


def test_composed_affine_flows_differ_from_the_true_ones_by_the_third_order():
    grid, points = CPABGrid(2), scattered(50)
    first, second = (
        linear_theta(grid, torch.tensor(each, dtype=torch.float64))
        for each in ([[0.5, -0.8], [0.1, 0.3]], [[-0.2, 0.4], [0.9, 0.1]])
    )

    def error(size):
        composed = grid.map_points(grid.compose(size * first, size * second), points)
        truth = grid.map_points(size * first, grid.map_points(size * second, points))
        return float((composed - truth).abs().max())

    assert error(0.1) < 1e-3
    assert error(0.2) / error(0.1) == pytest.approx(8, rel=0.25)


def test_composed_flows_agree_for_small_thetas():
    grid, points = CPABGrid(), scattered(100)
    for size in (1e-2, 1e-3):
        first, second = thetas(grid, 3, size), thetas(grid, 3, size, seed=1)
        composed = grid.map_points(grid.compose(first, second), points)
        truth = grid.map_points(first, grid.map_points(second, points))
        assert (composed - truth).abs().max() < 40 * size**2


def test_a_flow_and_its_inverse_compose_to_the_identity():
    grid = CPABGrid()
    theta = thetas(grid, 3, 0.3)
    assert not grid.compose(theta, grid.inverse(theta)).any()


# Settings, and the peer.


def test_theta_is_a_velocity_for_each_corner_and_each_centre():
    assert [CPABGrid(side).parameter_count for side in (1, 3, 8)] == [10, 50, 290]


@pytest.mark.parametrize("cells", [0, 9, 2.0, "3"])
def test_settings_out_of_range_are_refused(cells):
    with pytest.raises(ValidationError, match="cells"):
        CPAB.model_validate({"cells": cells})


def test_a_tessellation_needs_a_square():
    with pytest.raises(ValueError, match="1 x 1 squares, got 0"):
        CPABGrid(0)


@pytest.mark.filterwarnings("ignore")
def test_the_flow_equals_that_of_libcpab():
    """On the fields that the two have in common; theirs is in [0, 1]^2 and takes many steps."""
    libcpab = pytest.importorskip("libcpab")
    theirs = libcpab.Cpab([4, 4], zero_boundary=True)
    theirs.set_solver_params(nstepsolver=400, use_slow=True)
    theta, points = 0.3 * torch.randn(2, theirs.get_theta_dim()), scattered(50).float()
    expected = 2 * theirs.transform_grid((points.T + 1) / 2, theta).mT - 1
    corners = (tessellate(4).vertices.T.float() + 1) / 2
    velocities = torch.stack([2 * theirs.calc_vectorfield(corners, one).T for one in theta])
    ends = CPABGrid(4).map_points(velocities.flatten(1), points)
    torch.testing.assert_close(ends, expected, rtol=0, atol=1e-3)
