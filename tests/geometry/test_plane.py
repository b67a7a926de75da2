"""The coordinate convention and the sampler against the paper's equations, written as loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stn_train.geometry.matrices import projective_map
from stn_train.geometry.plane import (
    KERNELS,
    OUTSIDE,
    normalising_matrix,
    pixel_centres,
    pixel_matrix_from_theta,
    sample,
    theta_from_pixel_matrix,
    unit_square,
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


def bicubic_kernel(d, slope=-0.75):  # Keys 1981, equation 4, with his a as the slope at 1
    s = abs(d)
    if s <= 1:
        return (slope + 2) * s**3 - (slope + 3) * s**2 + 1
    return slope * (s**3 - 5 * s**2 + 8 * s - 4) if s < 2 else 0.0


KERNELS_BY_HAND = {
    "integer": integer_kernel,
    "bilinear": bilinear_kernel,
    "bicubic": bicubic_kernel,
}


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


@pytest.mark.parametrize("kernel", KERNELS)
def test_sample_equals_equation_3_in_loops(sampling, kernel):
    images, grid, _ = sampling
    output = sample(images, grid, kernel)
    k = KERNELS_BY_HAND[kernel]
    for b in range(2):
        points = in_pixels(grid[b].reshape(-1, 2).tolist())
        for c in range(3):
            expected = kernel_sum(images[b, c].tolist(), points, k, k)
            np.testing.assert_allclose(output[b, c].flatten().tolist(), expected, atol=1e-12)


def test_sample_is_bilinear_unless_asked_otherwise(sampling):
    images, grid, _ = sampling
    assert sample(images, grid).equal(sample(images, grid, "bilinear"))
    assert not sample(images, grid).equal(sample(images, grid, "bicubic"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_returns_the_image_at_its_pixels(kernel):
    images = torch.rand(2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    grid = pixel_centres((HEIGHT, WIDTH), dtype=torch.float64).view(1, HEIGHT, WIDTH, 2)
    output = sample(images, grid.expand(2, -1, -1, -1), kernel)
    torch.testing.assert_close(output, images, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_sample_passes_gradcheck(sampling, kernel):
    images, grid, _ = sampling
    assert torch.autograd.gradcheck(sample, (images[:, :1], grid[:, :2], kernel))


def test_integer_kernel_has_a_gradient_by_the_pixels_and_none_by_the_points(sampling):
    images, grid, upstream = sampling
    sample(images, grid, "integer").backward(upstream)
    assert images.grad.any()
    assert not grid.grad.any()


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 1), (28, 28)])
def test_pixel_centres_equal_affine_grid(size):
    identity = torch.eye(2, 3, dtype=torch.float64)[None]
    expected = F.affine_grid(identity, [1, 1, *size], align_corners=False).reshape(-1, 2)
    torch.testing.assert_close(
        pixel_centres(size, dtype=torch.float64), expected, rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(5, 8), (1, 3)])
def test_no_kernel_reaches_the_outside_coordinate(size, kernel):
    images = torch.ones(1, 1, *size)
    points = torch.tensor([[OUTSIDE, OUTSIDE], [OUTSIDE, 0.0], [0.0, OUTSIDE]])
    assert sample(images, points[None, None], kernel).tolist() == [[[[0, 0, 0]]]]


def test_unit_square_goes_round_clockwise_on_the_screen():
    corners = unit_square(torch.device("cpu"))
    assert corners.tolist() == [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    assert unit_square(torch.device("cpu")) is corners  # made once


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
