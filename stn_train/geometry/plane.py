"""Where a pixel is: the coordinate convention, the sampler, and pixel coordinates.

Legend: B batch, C channels, D depth, H height, W width, N points.

Convention: a grid maps every output point to the input point that it is read from
    (output to input); points are (x, y), x to the right and y down; [-1, 1] spans the
    image from the outer edge of the first pixel to the outer edge of the last
    (``align_corners=False``); outside the image everything is zero. In volumes points are
    (x, y, z), z away from the viewer.

Equations are numbered as in Jaderberg et al. 2015, "Spatial Transformer Networks".
"""

import functools
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN_CORNERS = False
"""Defined here only; every grid and the sampler follow it."""

OUTSIDE = 4.0
"""A normalised coordinate that no sampling kernel reaches from inside the image."""

Kernel = Literal["integer", "bilinear", "bicubic"]
"""How `sample` weighs the pixels around a point, k in equation 3.

integer: the nearest pixel alone (equation 4); its gradient by the point is zero, so that nothing
    before the grid can learn. Half way between two pixels the even one is taken.
bilinear: 1 - |d|, of 2 x 2 pixels (equation 5).
bicubic: cubic convolution of 4 x 4 pixels (Keys 1981, "Cubic Convolution Interpolation for Digital
    Image Processing"), with the slope -0.75 at |d| = 1, torch's. It is smooth and keeps edges
    sharper, but overshoots beside them: below 0 and above 1 in images of [0, 1].
"""

KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def pixel_centres(
    size: tuple[int, ...],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalised (x, y) of each pixel centre of an image of size (H, W), row by row: (H*W, 2).

    Of a volume of size (D, H, W): (x, y, z) of each voxel centre, slice by slice (D*H*W, 3).
    """
    # Integers are exact in floating point: each coordinate is rounded once, by the division.
    lines = [
        (2 * torch.arange(side, device=device, dtype=dtype) + 1 - side) / side for side in size
    ]
    return torch.cartesian_prod(*lines).flip(-1)  # (H*W, 2)


@functools.cache
@torch.inference_mode(False)  # what is cached must serve training, too
def unit_square(device: torch.device) -> Tensor:
    """The corners of [-1, 1]^2: top left, top right, bottom right, bottom left (4, 2).

    Cached, so that a step does not copy it to the device again. Do not write into it.
    """
    return torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], device=device)


def sample(images: Tensor, grid: Tensor, kernel: Kernel = "bilinear") -> Tensor:
    """Read ``images`` at ``grid`` with a kernel and zero padding: equation 3.

    images (B, C, H, W), grid (B, H', W', 2) -> (B, C, H', W'). Volumes are read with the trilinear
    kernel: (B, C, D, H, W), grid (B, D', H', W', 3) -> (B, C, D', H', W').
    """
    mode = "nearest" if kernel == "integer" else kernel
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=ALIGN_CORNERS)


def normalising_matrix(size: tuple[int, int], align_corners: bool = ALIGN_CORNERS) -> Tensor:
    """The 3x3 matrix, float64, from pixel coordinates of an (H, W) image to normalised ones.

    Pixel coordinates are (x, y) with (0, 0) at the centre of the top left pixel.
    align_corners=False: x_n = (2 x + 1) / W - 1; align_corners=True: x_n = 2 x / (W - 1) - 1.
    Raises ValueError for align_corners=True and a side of one pixel, which spans no interval.
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
    """The normalised matrix of a map given in pixels.

    matrix (..., 3, 3), from output pixels to input pixels -> (..., 3, 3) in normalised
    coordinates, T_in M T_out^-1 with T = `normalising_matrix`. The first two rows of an
    affine matrix are AffineGrid's theta; a homography divided by its last entry is
    ProjectiveGrid's. Raises ValueError as `normalising_matrix` does.
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
