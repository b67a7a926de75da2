"""Maps by matrices against numpy, loops and linear solves."""

import math

import numpy as np
import pytest
import torch

from stn_train.geometry.matrices import (
    NEAREST_DEPTH,
    affine_map,
    combine,
    compose_matrices,
    cross,
    homogeneous,
    inverse_3x3,
    inverse_affine,
    inverse_similarity,
    projective_map,
    square_to_quad,
)
from stn_train.geometry.plane import OUTSIDE, pixel_centres, sample


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def uniform(random, low, high, *size):
    return low + (high - low) * torch.rand(size, generator=random, dtype=torch.float64)


def test_combine_sums_up_basis_functions(random):
    weights, basis = uniform(random, -1, 1, 3, 2, 5), uniform(random, -1, 1, 7, 5)
    expected = np.einsum("bdk,nk->bdn", weights.numpy(), basis.numpy())
    np.testing.assert_allclose(combine(weights, basis).numpy(), expected, atol=1e-14)
    assert combine(weights[:0], basis).shape == (0, 2, 7)


def test_combine_takes_each_map_its_own_basis(random):
    weights, basis = uniform(random, -1, 1, 3, 2, 5), uniform(random, -1, 1, 3, 7, 5)
    expected = np.einsum("bdk,bnk->bdn", weights.numpy(), basis.numpy())
    np.testing.assert_allclose(combine(weights, basis).numpy(), expected, atol=1e-14)
    assert combine(weights[:0], basis[:0]).shape == (0, 2, 7)


def test_homogeneous_appends_a_one():
    points = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    assert homogeneous(points).tolist() == [[2, 3, 1], [4, 5, 1]]
    assert homogeneous(points[None]).tolist() == [[[2, 3, 1], [4, 5, 1]]]


def test_affine_map_equals_the_matrix_product_in_numpy(random):
    matrices, points = uniform(random, -2, 2, 3, 2, 3), uniform(random, -1, 1, 5, 2)
    homogeneous = np.concatenate([points.numpy(), np.ones((5, 1))], 1)
    expected = np.einsum("bij,nj->bni", matrices.numpy(), homogeneous)
    np.testing.assert_allclose(affine_map(matrices, points).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize(("mapped", "rows"), [(affine_map, 2), (projective_map, 3)])
def test_points_of_each_image_are_mapped_as_one_image_at_a_time(random, mapped, rows):
    matrices, points = uniform(random, -1, 1, 20, rows, 3), uniform(random, -1, 1, 20, 5, 2)
    together = mapped(matrices, points)
    assert together.shape == (20, 5, 2)
    alone = [mapped(matrices[i : i + 1], points[i])[0] for i in range(20)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)
    if mapped is projective_map:  # half of them lie behind the horizon
        behind = (together == OUTSIDE).all(-1)
        assert behind.any()
        assert not behind.all()


@pytest.mark.parametrize(("mapped", "rows"), [(affine_map, 2), (projective_map, 3)])
def test_points_of_each_image_pass_gradcheck(random, mapped, rows):
    noise = uniform(random, -0.3, 0.3, 2, rows, 3)
    matrices = (torch.eye(rows, 3, dtype=torch.float64) + noise).requires_grad_()
    points = uniform(random, -1, 1, 2, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(mapped, (matrices, points))


def test_affine_composition_equals_the_product_of_3x3_matrices_in_numpy(random):
    first, second = uniform(random, -2, 2, 5, 2, 3), uniform(random, -2, 2, 5, 2, 3)
    below = np.broadcast_to([[0.0, 0, 1]], (5, 1, 3))
    full = [np.concatenate([matrices.numpy(), below], 1) for matrices in (first, second)]
    composed = compose_matrices(first, second).numpy()
    np.testing.assert_allclose(composed, (full[0] @ full[1])[:, :2], atol=1e-14)


@pytest.mark.parametrize(("mapped", "rows"), [(affine_map, 2), (projective_map, 3)])
def test_composed_matrices_map_by_the_second_and_then_by_the_first(random, mapped, rows):
    identity = torch.eye(rows, 3, dtype=torch.float64)
    first = identity + uniform(random, -0.2, 0.2, 5, rows, 3)
    second = identity + uniform(random, -0.2, 0.2, 5, rows, 3)
    points = pixel_centres((3, 4), dtype=torch.float64)
    expected = mapped(first, mapped(second, points))
    torch.testing.assert_close(mapped(compose_matrices(first, second), points), expected)


# Projective maps.


def homography(*entries):
    return torch.tensor(entries, dtype=torch.float64).view(1, 3, 3)


CROSSING = homography(1, 0, 0, 0, 1, 0, 2, 0, 1)
"""Its denominator 2 x + 1 is zero at x = -0.5."""


def test_points_behind_the_camera_read_as_padding():
    points = pixel_centres((4, 8), dtype=torch.float64)
    mapped = projective_map(CROSSING, points)
    depth = 2 * points[:, 0] + 1
    behind = depth <= 0
    assert behind.sum() == 8  # the two leftmost columns
    assert (mapped[0, behind] == OUTSIDE).all()
    torch.testing.assert_close(mapped[0, ~behind], points[~behind] / depth[~behind, None])
    image = sample(torch.ones(1, 1, 4, 8, dtype=torch.float64), mapped.view(1, 4, 8, 2))
    assert (image[..., :2] == 0).all()
    assert (image[..., 4:] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stay_finite_where_the_denominator_crosses_zero(dtype):
    line = torch.linspace(-1, 1, 401, dtype=dtype)  # with -0.5, where the denominator is 0
    points = torch.cartesian_prod(line[::20], line[::20])
    points = torch.cat([points, torch.stack([line, torch.zeros_like(line)], 1)])
    # The second homography also has a zero numerator where its denominator is zero.
    matrices = torch.cat([CROSSING, homography(2, 0, 1, 0, 0, 0, 2, 0, 1)]).to(dtype)
    matrices.requires_grad_()
    mapped = projective_map(matrices, points)
    assert ((2 * points[:, 0] + 1) == 0).any()
    assert mapped.isfinite().all()
    sample(torch.ones(2, 1, 4, 8, dtype=dtype), mapped[:, None]).sum().backward()
    assert matrices.grad.isfinite().all()
    matrices.grad = None
    projective_map(matrices, points).sum().backward()
    assert matrices.grad.isfinite().all()
    assert matrices.grad.any()


@pytest.mark.parametrize(
    ("depth", "visible"),
    [
        (math.nextafter(NEAREST_DEPTH, 1), True),
        (NEAREST_DEPTH, False),
        (0.0, False),
        (-1.0, False),
    ],
)
def test_a_point_is_visible_from_the_nearest_depth_on(depth, visible):
    matrix = homography(1, 0, 0.001, 0, 1, 0.002, 0, 0, depth).requires_grad_()
    x, y = projective_map(matrix, torch.zeros(1, 2, dtype=torch.float64))[0, 0]
    expected = (0.001 / depth, 0.002 / depth) if visible else (OUTSIDE, OUTSIDE)
    assert (x.item(), y.item()) == pytest.approx(expected)
    (x + y).backward()
    assert matrix.grad.any() == visible


SQUARE = [(-1, -1), (1, -1), (1, 1), (-1, 1)]


def homography_by_linear_solve(source, target):
    """The 8 unknowns of the homography that carries 4 points to 4 others; the last entry is 1."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(rows, right), 1).reshape(3, 3)


def test_square_to_quad_equals_an_8x8_linear_solve(random):
    corners = torch.tensor(SQUARE) + uniform(random, -0.4, 0.4, 20, 4, 2)
    ours = square_to_quad(corners)
    torch.testing.assert_close(  # corners go to corners
        projective_map(ours, torch.tensor(SQUARE, dtype=torch.float64)), corners
    )
    for matrix, quad in zip(ours, corners, strict=True):
        expected = homography_by_linear_solve(SQUARE, quad.tolist())
        np.testing.assert_allclose((matrix / matrix[2, 2]).numpy(), expected, atol=1e-10)


def test_square_to_quad_keeps_the_square_in_front_of_the_camera(random):
    corners = torch.tensor(SQUARE) + uniform(random, -0.4, 0.4, 50, 4, 2)
    inside = pixel_centres((9, 9), dtype=torch.float64)
    depth = affine_map(square_to_quad(corners)[:, 2:], inside)
    assert (depth > 0).all()


def test_square_to_quad_of_the_square_is_the_identity():
    corners = torch.tensor(SQUARE, dtype=torch.float64)[None]
    assert square_to_quad(corners)[0].equal(torch.eye(3, dtype=torch.float64))


def test_cross_is_the_signed_area():
    a, b = torch.tensor([[2.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 3.0], [3.0, 4.0]])
    assert cross(a, b).tolist() == [6, -2]


def test_inverse_3x3_equals_linalg_inv():
    matrices = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(inverse_3x3(matrices), torch.linalg.inv(matrices))


def test_inverse_similarity_undoes_a_similarity_made_in_numpy(random):
    angle_deg, scale = uniform(random, -180, 180, 20), uniform(random, 0.5, 2, 20)
    shift = uniform(random, -1, 1, 20, 2)
    ours = inverse_similarity(angle_deg, scale, shift)
    for matrix, degrees, factor, moved in zip(ours, angle_deg, scale, shift, strict=True):
        # Counter-clockwise on the screen: y points down, so the sines have the other sign.
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        forward = np.eye(3)
        forward[:2, :2] = factor.item() * np.array([[cos, sin], [-sin, cos]])
        forward[:2, 2] = moved
        np.testing.assert_allclose(matrix.numpy(), np.linalg.inv(forward)[:2], atol=1e-12)


def test_inverse_affine_equals_numpys_inverse(random):
    matrices = uniform(random, -2, 2, 6, 2, 3)
    whole = np.concatenate([matrices.numpy(), np.tile([[[0.0, 0, 1]]], (6, 1, 1))], axis=1)
    expected = np.linalg.inv(whole)[:, :2]
    np.testing.assert_allclose(inverse_affine(matrices).numpy(), expected, rtol=1e-10)
    assert inverse_affine(matrices[:0]).shape == (0, 2, 3)
