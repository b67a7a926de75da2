"""Splines against scipy's RBFInterpolator, and barycentric coordinates by a linear solve."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from stn_train.geometry.splines import (
    control_grid,
    thin_plate_basis,
    thin_plate_kernel,
    thin_plate_solver,
    triangle_basis,
)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def uniform(random, low, high, *size):
    return low + (high - low) * torch.rand(size, generator=random, dtype=torch.float64)


def test_control_grid_spans_the_square_row_by_row():
    thirds = [-1, -1 / 3, 1 / 3, 1]
    expected = [(x, y) for y in thirds for x in thirds]
    np.testing.assert_allclose(control_grid(4).numpy(), expected, atol=1e-15)


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 2.0])
def test_thin_plate_kernel_is_r_squared_log_r(distance):
    points, control = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0 + distance]])
    expected = distance**2 * math.log(distance) if distance else 0.0
    assert thin_plate_kernel(points, control).item() == pytest.approx(expected)


@pytest.mark.parametrize("count", [4, 9, 16])
def test_thin_plate_spline_equals_rbf_interpolator(random, count):
    control, values = uniform(random, -1, 1, count, 2), uniform(random, -1, 1, count, 2)
    points = uniform(random, -1.5, 1.5, 40, 2)
    ours = thin_plate_basis(points, control, thin_plate_solver(control)) @ values
    reference = RBFInterpolator(
        control.numpy(), values.numpy(), kernel="thin_plate_spline", degree=1
    )
    np.testing.assert_allclose(ours.numpy(), reference(points.numpy()), atol=1e-9)


def test_basis_at_points_of_each_image_equals_one_image_at_a_time(random):
    control, points = uniform(random, -1, 1, 9, 2), uniform(random, -1.5, 1.5, 4, 6, 2)
    solver = thin_plate_solver(control)
    together = thin_plate_basis(points, control, solver)
    assert together.shape == (4, 6, 9)
    alone = [thin_plate_basis(one, control, solver) for one in points]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_basis_passes_gradcheck_away_from_the_control_points(random):
    control, points = control_grid(3), uniform(random, 0.1, 0.9, 2, 4, 2).requires_grad_()
    solver = thin_plate_solver(control)
    assert torch.autograd.gradcheck(lambda at: thin_plate_basis(at, control, solver), points)


def test_gradient_at_a_control_point_is_finite():
    control = control_grid(2)
    points = control.clone().requires_grad_()
    thin_plate_basis(points, control, thin_plate_solver(control)).square().sum().backward()
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("side", [2, 3, 5])
def test_triangle_basis_is_the_barycentric_coordinates_by_a_linear_solve(random, side):
    control, points = control_grid(side), uniform(random, -1, 1, 60, 2)
    expected = np.zeros((60, side**2))
    for row, (x, y) in zip(expected, points.tolist(), strict=True):
        column, line = (min(int((each + 1) / 2 * (side - 1)), side - 2) for each in (x, y))
        top, below = side * line + column, side * (line + 1) + column
        across, down = ((each + 1) / 2 * (side - 1) for each in (x, y))
        right = across - column > down - line  # of the diagonal from top left to bottom right
        corners = [top, below + 1, top + 1 if right else below]
        system = np.vstack([control[corners].numpy().T, np.ones(3)])
        row[corners] = np.linalg.solve(system, [x, y, 1])
    np.testing.assert_allclose(triangle_basis(points, control).numpy(), expected, atol=1e-12)


def test_weights_in_a_mesh_sum_to_one_inside_and_outside(random):
    control, points = control_grid(4), uniform(random, -3, 3, 5, 40, 2)
    basis = triangle_basis(points, control)
    assert basis.shape == (5, 40, 16)
    torch.testing.assert_close(basis.sum(-1), torch.ones(5, 40).double(), rtol=0, atol=1e-12)


def test_triangle_basis_passes_gradcheck_inside_and_outside(random):
    control = control_grid(3)
    inside = uniform(random, 0.1, 0.45, 4, 2) * torch.tensor([2.0, 1.0])  # off the edges
    points = torch.cat([inside, uniform(random, 1.1, 1.4, 2, 2)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda points: triangle_basis(points, control), points)
