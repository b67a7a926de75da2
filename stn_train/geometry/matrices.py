"""Maps of the plane and of space by matrices: affine and projective, composition and inverses.

Legend: B batch, N points, D coordinates, K basis functions.

Convention: as in `stn_train.geometry.plane`. Points are (N, 2), one set for all maps of the
    batch, or (B, N, 2), each map its own. Affine maps take points of any D coordinates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_train.geometry.plane import OUTSIDE

NEAREST_DEPTH = 1e-2
"""Projective points with a denominator below this are behind the camera: they read as padding.

The bound also caps the gradient of the division at 1 / NEAREST_DEPTH**2.
"""

MIN_POINTS = 10
"""A fit to fewer points is not used."""


def combine(weights: Tensor, basis: Tensor) -> Tensor:
    """Weighted sums of basis functions; every map of the plane here is one.

    weights (B, D, K), basis (N, K) at points shared by all maps, or (B, N, K) -> (B, D, N).
    """
    if basis.ndim == 3:
        return torch.matmul(basis, weights.mT).mT  # (B, D, N)
    # One matrix product for the whole batch is many times faster than one per map. It also
    # leaves x and y in separate planes, the layout that `sample` reads fastest.
    batch, dimensions, count = weights.shape
    planes = torch.matmul(weights.reshape(-1, count), basis.T)  # (B*D, N)
    return planes.view(batch, dimensions, len(basis))


def homogeneous(points: Tensor) -> Tensor:
    """Points (..., D) with a last coordinate of 1: (..., D + 1)."""
    return F.pad(points, (0, 1), value=1.0)


def affine_map(matrices: Tensor, points: Tensor) -> Tensor:
    """Map points (N, D) or (B, N, D) by matrices (B, D, D + 1): equation 1. Returns (B, N, D)."""
    return combine(matrices, homogeneous(points)).mT


def projective_map(matrices: Tensor, points: Tensor) -> Tensor:
    """Map points (N, 2) or (B, N, 2) by homographies (B, 3, 3). Returns (B, N, 2).

    Points whose denominator is below NEAREST_DEPTH lie on or behind the horizon: they are
    sent OUTSIDE, where the sampler reads padding, and their gradient is zero.
    """
    projected, depth = combine(matrices, homogeneous(points)).split([2, 1], dim=1)
    visible = depth > NEAREST_DEPTH  # (B, 1, N)
    # 1 / infinity is 0, and so is its gradient: where not visible, only OUTSIDE is left.
    inverse = torch.where(visible, depth, torch.inf).reciprocal()
    elsewhere = torch.where(visible, 0.0, OUTSIDE).to(depth.dtype)
    return torch.addcmul(elsewhere, projected, inverse).mT


def compose_matrices(first: Tensor, second: Tensor) -> Tensor:
    """The map that carries a point by ``second``, then by ``first``.

    Both affine, (B, D, D + 1), or both square; the result has the same shape.
    """
    rows, columns = first.shape[1:]
    if rows == columns:
        return first @ second
    linear = first[:, :, :rows] @ second  # (B, D, D + 1)
    return torch.cat([linear[:, :, :rows], linear[:, :, rows:] + first[:, :, rows:]], 2)


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


def inverse_3x3(matrices: Tensor) -> Tensor:
    """Inverses of (B, 3, 3) in closed form; unlike `torch.linalg.inv` it never waits for a GPU."""
    a, b, c = matrices.unbind(2)  # the columns, each (B, 3)
    adjugate = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1
    )  # (B, 3, 3)
    determinant = (a * adjugate[:, 0]).sum(-1)  # (B,)
    return adjugate / determinant[:, None, None]


def inverse_affine(matrices: Tensor) -> Tensor:
    """The matrices (B, 2, 3) of the inverse maps, in closed form, where ``matrices`` are affine."""
    linear, shift = matrices[:, :, :2], matrices[:, :, 2:]
    a, b, c, d = linear.flatten(1).unbind(1)  # each (B,)
    determinant = (a * d - b * c)[:, None, None]
    inverse = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) / determinant
    return torch.cat([inverse, -inverse @ shift], dim=2)


def inverse_similarity(angle_deg: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The matrices (B, 2, 3) that undo a similarity.

    The similarity: rotate by angle_deg (B,) counter-clockwise, scale by scale (B,), then move
    by shift (B, 2).
    """
    angle = torch.deg2rad(angle_deg)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # y points down, so this is the clockwise rotation on the screen.
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)  # (B, 2, 2)
    return torch.cat([linear, -linear @ shift[:, :, None]], dim=2)  # (B, 2, 3)


def small_similarities(
    count: int,
    spread: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Random similarities (B, 2, 3) near the identity.

    spread: standard deviation of the angle in radians, of the logarithm of the scale, and of both
    shifts in half sides of the image. generator: None for the device's own.
    """
    angle, log_scale, *shift = spread * torch.randn(4, count, generator=generator, device=device)
    scale = log_scale.exp()
    return inverse_similarity(torch.rad2deg(angle), scale, torch.stack(shift, dim=1))


def rotations(angles_deg: Tensor) -> Tensor:
    """Rotations of space (B, 3, 3) by three angles in degrees (B, 3).

    The third turns about z, counter-clockwise as the viewer sees it. Then the second tilts about
    y: positive, it takes what lies on the right away from the viewer. Then the first tilts about
    x: positive, it brings what lies at the bottom towards the viewer.
    """
    cos, sin = torch.deg2rad(angles_deg).cos(), torch.deg2rad(angles_deg).sin()
    (cx, cy, cz), (sx, sy, sz) = cos.unbind(1), sin.unbind(1)  # each (B,)
    one, zero = torch.ones_like(cx), torch.zeros_like(cx)
    about_x = torch.stack([one, zero, zero, zero, cx, sx, zero, -sx, cx], dim=1)
    about_y = torch.stack([cy, zero, -sy, zero, one, zero, sy, zero, cy], dim=1)
    about_z = torch.stack([cz, sz, zero, -sz, cz, zero, zero, zero, one], dim=1)
    x, y, z = (each.view(-1, 3, 3) for each in (about_x, about_y, about_z))
    return x @ y @ z


def fit_affine(points: Tensor, mapped: Tensor, reach: float = OUTSIDE - 1) -> Tensor:
    """Least-squares affine fits to maps that send points (N, D) to (B, N, D).

    Points that a map sends further than ``reach`` from the middle are left out. Returns the
    matrices (B, D + 1, D + 1) in float64; NaN where fewer than MIN_POINTS are left.
    """
    basis = homogeneous(points).double()  # (N, D + 1)
    inside = (mapped.abs().amax(-1, keepdim=True) < reach).double()  # (B, N, 1)
    normal = basis.T @ (basis * inside)  # (B, D + 1, D + 1)
    solved, singular = torch.linalg.solve_ex(normal, basis.T @ (mapped.double() * inside))
    solved[(singular != 0) | (inside.sum((1, 2)) < MIN_POINTS)] = math.nan  # (B, D + 1, D)
    last = homogeneous(torch.zeros(len(mapped), 1, points.shape[-1], dtype=torch.float64))
    return torch.cat([solved.mT, last], dim=1)
