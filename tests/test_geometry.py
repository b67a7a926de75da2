"""The coordinate convention, the maps and the sampler against loops, numpy and scipy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator

from stn_train.geometry import (
    ALIGN_CORNERS,
    NEAREST_DEPTH,
    OUTSIDE,
    affine_map,
    combine,
    control_grid,
    cross,
    normalising_matrix,
    pixel_centres,
    pixel_matrix_from_theta,
    projective_map,
    sample,
    square_to_quad,
    theta_from_pixel_matrix,
    thin_plate_basis,
    thin_plate_kernel,
    thin_plate_solver,
)

HEIGHT, WIDTH = 4, 6


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def uniform(random, low, high, *size):
    return low + (high - low) * torch.rand(size, generator=random, dtype=torch.float64)


# The paper's equations 3 to 7, in its names: image U, output V, source points (x, y) in pixels.
# The paper counts pixels from 1, these count from 0.


def bilinear_kernel(d):  # equation 5
    return max(0.0, 1 - abs(d))


def integer_kernel(d):  # equation 4
    return float(math.floor(d + 0.5) == 0)


def bilinear_kernel_derivative(d):  # equation 7, the derivative by the point
    if abs(d) >= 1:
        return 0.0
    return -1.0 if d >= 0 else 1.0


def in_pixels(grid, height=HEIGHT, width=WIDTH):
    """(x, y) of each point: -1 is the outer edge of the first pixel, at -0.5 pixels."""
    return [(((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2) for x, y in grid]


def kernel_sum(image, points, kernel_x, kernel_y):  # equation 3
    return [
        sum(
            image[n][m] * kernel_x(x - m) * kernel_y(y - n)
            for n in range(HEIGHT)
            for m in range(WIDTH)
        )
        for x, y in points
    ]


def pixel_gradients(points, upstream):  # equation 6
    return [
        [
            sum(
                v * bilinear_kernel(x - m) * bilinear_kernel(y - n)
                for v, (x, y) in zip(upstream, points, strict=True)
            )
            for m in range(WIDTH)
        ]
        for n in range(HEIGHT)
    ]


@pytest.fixture
def sampling(random):
    """Images (2, 3, H, W), a grid (2, 3, 7, 2) of points inside and outside, and dL/dV."""
    images = uniform(random, -1, 1, 2, 3, HEIGHT, WIDTH).requires_grad_()
    grid = uniform(random, -1.6, 1.6, 2, 3, 7, 2)
    grid[0, 0] *= 3  # far outside
    grid[1, 0, :, 0] = 1 + 0.5 / WIDTH  # half a pixel centre beyond the last column
    upstream = uniform(random, -1, 1, 2, 3, 3, 7)
    # A piecewise linear function has a derivative only away from its kinks.
    pixels = torch.tensor(in_pixels(grid.reshape(-1, 2).tolist()))
    assert (pixels - pixels.round()).abs().min() > 1e-4
    outside = (grid.abs() > 1).any(-1)
    assert outside.any()
    assert not outside.all()
    return images, grid.requires_grad_(), upstream


def test_sample_equals_equations_3_and_5_in_loops(sampling):
    images, grid, _ = sampling
    output = sample(images, grid)
    for b in range(2):
        points = in_pixels(grid[b].reshape(-1, 2).tolist())
        for c in range(3):
            expected = kernel_sum(images[b, c].tolist(), points, bilinear_kernel, bilinear_kernel)
            np.testing.assert_allclose(output[b, c].flatten().tolist(), expected, atol=1e-12)


def test_integer_kernel_of_equation_4_agrees_with_nearest_in_the_convention(sampling):
    images, grid, _ = sampling
    output = F.grid_sample(images, grid, mode="nearest", align_corners=ALIGN_CORNERS)
    for b in range(2):
        points = in_pixels(grid[b].reshape(-1, 2).tolist())
        expected = kernel_sum(images[b, 0].tolist(), points, integer_kernel, integer_kernel)
        np.testing.assert_allclose(output[b, 0].flatten().tolist(), expected, atol=1e-12)


def test_gradient_of_the_image_equals_equation_6_in_loops(sampling):
    images, grid, upstream = sampling
    sample(images, grid).backward(upstream)
    for b in range(2):
        points = in_pixels(grid[b].reshape(-1, 2).tolist())
        for c in range(3):
            expected = pixel_gradients(points, upstream[b, c].flatten().tolist())
            np.testing.assert_allclose(images.grad[b, c].numpy(), expected, atol=1e-12)


def test_gradient_of_the_points_equals_equation_7_in_loops(sampling):
    images, grid, upstream = sampling
    sample(images, grid).backward(upstream)
    kernel, slope = bilinear_kernel, bilinear_kernel_derivative
    for b in range(2):
        points = in_pixels(grid[b].reshape(-1, 2).tolist())
        by_x, by_y = np.zeros(len(points)), np.zeros(len(points))
        for c in range(3):
            image, weight = images[b, c].tolist(), upstream[b, c].flatten().numpy()
            # A normalised unit is W / 2 pixels across and H / 2 pixels down.
            by_x += weight * kernel_sum(image, points, slope, kernel) * (WIDTH / 2)
            by_y += weight * kernel_sum(image, points, kernel, slope) * (HEIGHT / 2)
        gradient = grid.grad[b].reshape(-1, 2).numpy()
        np.testing.assert_allclose(gradient, np.stack([by_x, by_y], 1), atol=1e-12)


def test_sample_passes_gradcheck(sampling):
    images, grid, _ = sampling
    assert torch.autograd.gradcheck(sample, (images[:, :1], grid[:, :2]))


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 1), (28, 28)])
def test_pixel_centres_equal_affine_grid(size):
    identity = torch.eye(2, 3, dtype=torch.float64)[None]
    expected = F.affine_grid(identity, [1, 1, *size], align_corners=False).reshape(-1, 2)
    torch.testing.assert_close(
        pixel_centres(size, dtype=torch.float64), expected, rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("size", [(5, 8), (1, 3)])
def test_no_kernel_reaches_the_outside_coordinate(size):
    images = torch.ones(1, 1, *size)
    points = torch.tensor([[OUTSIDE, OUTSIDE], [OUTSIDE, 0.0], [0.0, OUTSIDE]])
    assert sample(images, points[None, None]).tolist() == [[[[0, 0, 0]]]]


def test_combine_sums_up_basis_functions():
    torch.manual_seed(0)
    weights, basis = torch.randn(3, 2, 5, dtype=torch.float64), torch.randn(7, 5).double()
    expected = torch.einsum("bdk,nk->bdn", weights, basis)
    torch.testing.assert_close(combine(weights, basis), expected)
    assert combine(weights[:0], basis).shape == (0, 2, 7)


def test_affine_map_equals_the_matrix_product_in_numpy(random):
    matrices, points = uniform(random, -2, 2, 3, 2, 3), uniform(random, -1, 1, 5, 2)
    homogeneous = np.concatenate([points.numpy(), np.ones((5, 1))], 1)
    expected = np.einsum("bij,nj->bni", matrices.numpy(), homogeneous)
    np.testing.assert_allclose(affine_map(matrices, points).numpy(), expected, atol=1e-14)


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


# Thin plate splines.


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


# Pixel coordinates.

SIZES = [((5, 8), (5, 8)), ((5, 8), (6, 7)), ((8, 5), (3, 9))]


def move_by_hand(image, matrix, output_size):
    """Each output pixel from the input pixel that an integer matrix names; zero outside."""
    height, width = image.shape
    output = torch.zeros(output_size, dtype=image.dtype)
    for row in range(output_size[0]):
        for column in range(output_size[1]):
            x, y, w = (matrix @ torch.tensor([column, row, 1.0]).double()).tolist()
            x, y = round(x / w, 6), round(y / w, 6)
            if x == int(x) and y == int(y) and 0 <= x < width and 0 <= y < height:
                output[row, column] = image[int(y), int(x)]
    return output


def test_two_pixels_right_moves_the_image_two_pixels_right():
    """`move_by_hand` itself, and which way a matrix goes: from output pixels to input pixels."""
    image = torch.arange(1.0, 41).view(5, 8)
    two_left = torch.tensor([[1, 0, -2], [0, 1, 0], [0, 0, 1.0]]).double()
    expected = torch.zeros(5, 8)
    expected[:, 2:] = image[:, :-2]
    assert move_by_hand(image, two_left, (5, 8)).equal(expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("input_size", "output_size"), SIZES)
@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param([[1, 0, 0], [0, 1, 0]], id="identity"),
        pytest.param([[1, 0, -2], [0, 1, 0]], id="two pixels right"),
        pytest.param([[1, 0, 3], [0, 1, -1]], id="three left, one down"),
        pytest.param([[0, 1, 0], [1, 0, 0]], id="transposed"),
        pytest.param([[-1, 0, 4], [0, 2, 0]], id="mirrored, every second row"),
    ],
)
def test_pixel_matrix_moves_pixels_as_by_hand(matrix, input_size, output_size, align_corners):
    image = torch.arange(1.0, 41, dtype=torch.float64).view(input_size)
    matrix = torch.tensor([*matrix, [0, 0, 1]], dtype=torch.float64)
    theta = theta_from_pixel_matrix(matrix, input_size, output_size, align_corners)
    assert theta[2].tolist() == [0, 0, 1]
    grid = F.affine_grid(theta[None, :2], [1, 1, *output_size], align_corners=align_corners)
    moved = F.grid_sample(image[None, None], grid, align_corners=align_corners)[0, 0]
    expected = move_by_hand(image, matrix, output_size)
    assert expected.any()
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-11)


def test_pixel_homography_reads_where_it_does_pixel_by_pixel():
    matrix = torch.tensor([[1.1, 0.2, -1], [-0.1, 0.9, 0.5], [0.01, 0.02, 1]]).double()
    input_size, output_size = (5, 8), (6, 7)
    theta = theta_from_pixel_matrix(matrix, input_size, output_size)
    points = pixel_centres(output_size, dtype=torch.float64)
    read_from = in_pixels(projective_map(theta[None], points)[0].tolist(), *input_size)
    for index, (x, y) in enumerate(read_from):
        row, column = divmod(index, output_size[1])
        u, v, w = (matrix @ torch.tensor([column, row, 1.0]).double()).tolist()
        assert (x, y) == pytest.approx((u / w, v / w))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixel_matrix_round_trip(random, align_corners, dtype):
    matrix = uniform(random, -2, 2, 4, 2, 3, 3).to(dtype)
    sizes = (5, 8), (6, 7), align_corners
    theta = theta_from_pixel_matrix(matrix, *sizes)
    assert theta.dtype == dtype
    assert not torch.allclose(theta, matrix)
    torch.testing.assert_close(pixel_matrix_from_theta(theta, *sizes), matrix, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("align_corners", "first", "last"), [(False, (-7 / 8, -4 / 5), (7 / 8, 4 / 5)), (True, -1, 1)]
)
def test_normalising_matrix_puts_the_corner_pixels_where_the_convention_says(
    align_corners, first, last
):
    matrix = normalising_matrix((5, 8), align_corners).numpy()
    np.testing.assert_allclose((matrix @ [0, 0, 1])[:2], np.broadcast_to(first, 2), atol=1e-15)
    np.testing.assert_allclose((matrix @ [7, 4, 1])[:2], np.broadcast_to(last, 2), atol=1e-15)


@pytest.mark.parametrize("size", [(1, 8), (8, 1)])
def test_align_corners_needs_two_pixels_a_side(size):
    with pytest.raises(ValueError, match=r"align_corners=True needs at least 2 pixels a side"):
        normalising_matrix(size, align_corners=True)
    for input_size, output_size in ((size, (5, 8)), ((5, 8), size)):
        for convert in (theta_from_pixel_matrix, pixel_matrix_from_theta):
            with pytest.raises(ValueError, match=rf"got size \({size[0]}, {size[1]}\)"):
                convert(torch.eye(3), input_size, output_size, align_corners=True)
    assert normalising_matrix(size, align_corners=False).isfinite().all()
