"""Where a pixel is: the coordinate convention, the three maps of the plane, and the sampler.

Legend: B batch, C channels, H height, W width, N points, K control points.

Convention: a grid maps every output point to the input point that it is read from
    (output to input); points are (x, y), x to the right and y down; [-1, 1] spans the
    image from the outer edge of the first pixel to the outer edge of the last
    (``align_corners=False``); outside the image everything is zero.

Distortions (which make the digits hard) and transforms (which the network learns)
are both built from these functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN_CORNERS = False
"""The one place that says so; every grid and the sampler follow it."""

OUTSIDE = 4.0
"""A normalised coordinate that no bilinear kernel reaches from inside the image."""

SMALLEST_SQUARE = 1e-30
"""Squared distances are clamped to this before their logarithm: it is never that of zero."""

NEAREST_DEPTH = 1e-2
"""Projective points with a denominator below this are behind the camera: they read as padding.

The bound also caps the gradient of the division at 1 / NEAREST_DEPTH**2.
"""


def pixel_centres(
    size: tuple[int, int],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalised (x, y) of each pixel centre of an image of size (H, W), row by row: (H*W, 2)."""
    height, width = size
    # The integers are exact in floating point, so the identity grid is as exact as it can be.
    x = (2 * torch.arange(width, device=device, dtype=dtype) + 1 - width) / width
    y = (2 * torch.arange(height, device=device, dtype=dtype) + 1 - height) / height
    return torch.cartesian_prod(y, x).flip(-1)  # (H*W, 2)


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """Read ``images`` at ``grid`` with the bilinear kernel and zero padding.

    The paper's equation 5. images (B, C, H, W), grid (B, H', W', 2) -> (B, C, H', W').
    """
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=ALIGN_CORNERS
    )


def combine(weights: Tensor, basis: Tensor) -> Tensor:
    """Sum up basis functions: weights (B, D, K), basis (N, K) at N points -> (B, D, N).

    Every map here is such a sum. One matrix product for the whole batch is many times faster
    than one a map, and coordinates that lie in planes are what `sample` reads fastest.
    """
    batch, dimensions, count = weights.shape
    planes = torch.matmul(weights.reshape(-1, count), basis.T)  # (B*D, N)
    return planes.view(batch, dimensions, len(basis))


def homogeneous(points: Tensor) -> Tensor:
    """Points (N, 2) with a third coordinate of 1: (N, 3)."""
    return F.pad(points, (0, 1), value=1.0)


def affine_map(matrices: Tensor, points: Tensor) -> Tensor:
    """Map points (N, 2) by matrices (B, 2, 3): the paper's equation 1. Returns (B, N, 2)."""
    return combine(matrices, homogeneous(points)).mT


def projective_map(matrices: Tensor, points: Tensor) -> Tensor:
    """Map points (N, 2) by homographies (B, 3, 3). Returns (B, N, 2).

    Points whose denominator is below NEAREST_DEPTH lie on or behind the horizon: they are
    sent OUTSIDE, where the sampler reads padding, with zero and therefore finite gradient.
    """
    projected, depth = combine(matrices, homogeneous(points)).split([2, 1], dim=1)
    visible = depth > NEAREST_DEPTH  # (B, 1, N)
    # 1 / infinity is 0, and so is its gradient: where not visible, nothing but OUTSIDE is left.
    inverse = torch.where(visible, depth, torch.inf).reciprocal()
    elsewhere = torch.where(visible, 0.0, OUTSIDE).to(depth.dtype)
    return torch.addcmul(elsewhere, projected, inverse).mT


def square_to_quad(corners: Tensor) -> Tensor:
    """Homographies that carry the corners of [-1, 1]^2 to ``corners``.

    corners (B, 4, 2) in the order top left, top right, bottom right, bottom left ->
    (B, 3, 3). In closed form (Heckbert 1989, "Fundamentals of Texture Mapping", 2.2.3),
    scaled so that the denominator is positive inside the square. A quadrilateral with three
    corners on a line has no homography and gives non-finite entries.
    """
    p0, p1, p2, p3 = corners.unbind(1)  # each (B, 2)
    d1, d2, s = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    area = cross(d1, d2)
    g, h = cross(s, d2) / area, cross(d1, s) / area  # (B,)
    # Columns of the map from the unit square: u -> p1 (1 + g) - p0, v -> p3 (1 + h) - p0.
    u = torch.cat([p1 - p0 + g[:, None] * p1, g[:, None]], dim=1)  # (B, 3)
    v = torch.cat([p3 - p0 + h[:, None] * p3, h[:, None]], dim=1)  # (B, 3)
    origin = torch.cat([p0, torch.ones_like(g)[:, None]], dim=1)  # (B, 3)
    # u = (x + 1) / 2 turns the unit square into [-1, 1]^2.
    return torch.stack([u / 2, v / 2, origin + (u + v) / 2], dim=2)  # (B, 3, 3)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Signed area spanned by plane vectors a and b (..., 2) -> (...)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def control_grid(side: int) -> Tensor:
    """A regular ``side`` x ``side`` grid of points over [-1, 1]^2, row by row: (side**2, 2)."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line).flip(-1)


def thin_plate_solver(control: Tensor) -> Tensor:
    """The matrix that turns control point values into thin plate spline coefficients.

    control (K, 2) -> (K + 3, K) in float64. Its rows are the K kernel weights, then the
    constant, the x and the y coefficient (Bookstein 1989, "Principal Warps", equation 5).
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
    """U(r) = r^2 log r between points (N, 2) and control points (K, 2): (N, K)."""
    x, y = points[:, :1] - control[:, 0], points[:, 1:] - control[:, 1]  # each (N, K)
    squared = x.square() + y.square()
    # At r = 0 the kernel and its gradient are 0, but the logarithm on the way is not finite.
    squared = squared.clamp(min=SMALLEST_SQUARE)
    return 0.5 * squared * squared.log()


def thin_plate_basis(points: Tensor, control: Tensor, solver: Tensor) -> Tensor:
    """How much each control point's value counts at each point.

    points (N, 2), control (K, 2), solver (K + 3, K) from `thin_plate_solver` -> (N, K). The
    spline through values (K, 2) is then ``combine(values.mT, basis).mT``.
    """
    kernel = thin_plate_kernel(points, control)  # (N, K)
    affine = F.pad(points, (1, 0), value=1.0)  # (N, 3)
    return torch.matmul(torch.cat([kernel, affine], dim=1), solver)


def normalising_matrix(size: tuple[int, int], align_corners: bool = ALIGN_CORNERS) -> Tensor:
    """The 3x3 matrix, float64, from pixel coordinates of an (H, W) image to normalised ones.

    Pixel coordinates are (x, y) with (0, 0) at the centre of the top left pixel.
    align_corners=False: x_n = (2 x + 1) / W - 1; align_corners=True: x_n = 2 x / (W - 1) - 1.
    """
    if align_corners and min(size) < 2:
        raise ValueError(f"align_corners=True needs at least 2 pixels a side, got size {size}")
    height, width = (side - 1 if align_corners else side for side in size)
    offset = 0 if align_corners else 1
    return torch.tensor(
        [
            [2 / width, 0, offset / width - 1],
            [0, 2 / height, offset / height - 1],
            [0, 0, 1],
        ],
        dtype=torch.float64,
    )


def theta_from_pixel_matrix(
    matrix: Tensor,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool = ALIGN_CORNERS,
) -> Tensor:
    """The normalised theta of a map given in pixels.

    matrix (..., 3, 3), from output pixels to input pixels -> (..., 3, 3) in normalised
    coordinates, T_in M T_out^-1 with T = `normalising_matrix`. The first two rows of an
    affine matrix are AffineGrid's theta; a homography divided by its last entry is
    ProjectiveGrid's.
    """
    to_input = normalising_matrix(input_size, align_corners).to(matrix)
    to_output = normalising_matrix(output_size, align_corners).to(matrix)
    return torch.matmul(to_input, torch.matmul(matrix, torch.linalg.inv(to_output)))


def pixel_matrix_from_theta(
    theta: Tensor,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool = ALIGN_CORNERS,
) -> Tensor:
    """The inverse of `theta_from_pixel_matrix`: normalised (..., 3, 3) -> pixels (..., 3, 3)."""
    to_input = normalising_matrix(input_size, align_corners).to(theta)
    to_output = normalising_matrix(output_size, align_corners).to(theta)
    return torch.matmul(torch.linalg.inv(to_input), torch.matmul(theta, to_output))
