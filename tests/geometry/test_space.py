"""The affine grid and the sampler on volumes, and rotations of space."""

import math

import pytest
import torch
import torch.nn.functional as F

from stn_train.geometry.grids import AffineGrid
from stn_train.geometry.matrices import compose_matrices, inverse_similarity, rotations
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.geometry.transforms import TRANSFORMS

SIZE = (3, 5, 8)
"""(D, H, W): no two sides are the same."""


def asymmetric_volumes(dtype=torch.float32):
    """(2, 2, D, H, W) in [0, 1]: no two voxels are the same, the border is not dark."""
    count = 4 * math.prod(SIZE)
    return torch.arange(1, count + 1, dtype=dtype).view(2, 2, *SIZE) / count


def thetas(count, spread=0.3, seed=0):
    """float64 (count, 12) around the identity."""
    noise = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)).double()
    return AffineGrid(3).identity.double() + spread * noise


def test_identity_returns_the_volume():
    grid, volumes = AffineGrid(3), asymmetric_volumes()
    read = sample(volumes, grid(grid.identity.expand(2, -1), SIZE))
    torch.testing.assert_close(read, volumes, rtol=0, atol=1e-6)
    assert grid.parameter_count == 12


def test_grid_is_torchs():
    theta = thetas(4)
    wanted = F.affine_grid(theta.view(-1, 3, 4), [4, 1, *SIZE], align_corners=False)
    torch.testing.assert_close(AffineGrid(3)(theta, SIZE), wanted, rtol=0, atol=1e-12)


def test_points_are_x_y_z_slice_by_slice():
    points = pixel_centres(SIZE, dtype=torch.float64).view(*SIZE, 3)
    for position in ((0, 0, 0), (2, 1, 6), (1, 4, 7)):
        wanted = [(2 * at + 1) / side - 1 for at, side in zip(position, SIZE, strict=True)][::-1]
        assert points[position].tolist() == pytest.approx(wanted)


def test_sampler_is_trilinear_with_zeros_outside():
    volumes = asymmetric_volumes(torch.float64)
    points = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(1)).double() * 2.6 - 1.3
    read = sample(volumes, points.view(2, 50, 1, 1, 3))[..., 0, 0]  # (2, 2, 50)
    # Position of each point in voxels, and the weight of each slice, row and column for it.
    places = [((points[..., axis] + 1) * SIZE[2 - axis] - 1) / 2 for axis in (2, 1, 0)]  # (2, 50)
    slices, rows, columns = (
        (1 - (place[..., None] - torch.arange(side)).abs()).clamp(min=0)
        for place, side in zip(places, SIZE, strict=True)
    )
    wanted = torch.einsum("bnz,bny,bnx,bczyx->bcn", slices, rows, columns, volumes)
    torch.testing.assert_close(read, wanted, rtol=0, atol=1e-12)


def test_gradients_of_theta_and_volume():
    grid = AffineGrid(3)
    volume = torch.rand(1, 1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    theta = thetas(1, 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, v: sample(v, grid(t, (2, 3, 2))), (theta, volume))


def test_compose_warps_by_both():
    grid, first, second = AffineGrid(3), thetas(3, seed=1), thetas(3, seed=2)
    points = torch.rand(7, 3, dtype=torch.float64)
    twice = grid.map_points(first, grid.map_points(second, points))
    torch.testing.assert_close(grid.map_points(grid.compose(first, second), points), twice)
    bottom = torch.tensor([0, 0, 0, 1.0], dtype=torch.float64).expand(3, 1, 4)
    whole = [torch.cat([theta.view(-1, 3, 4), bottom], 1) for theta in (first, second)]
    composed = compose_matrices(*(theta.view(-1, 3, 4) for theta in (first, second)))
    torch.testing.assert_close(composed, (whole[0] @ whole[1])[:, :3])


@pytest.mark.parametrize(("dimensions", "size"), [(2, (3, 5, 8)), (3, (5, 8)), (2, (4,))])
def test_output_of_other_dimensions_is_refused(dimensions, size):
    grid = AffineGrid(dimensions)
    with pytest.raises(ValueError, match=rf"AffineGrid warps in {dimensions} dimensions, got"):
        grid(grid.identity[None], size)


def test_families_that_warp_volumes_say_so():
    for family in TRANSFORMS.values():
        if family.warps_volumes:
            assert family().build_for_volumes().dimensions == 3
        else:
            with pytest.raises(ValueError, match=f"{family.__name__} warps images alone"):
                family().build_for_volumes()
        assert family().build().dimensions == 2
    assert TRANSFORMS["Aff"].warps_volumes


# Rotations of space.


def test_rotations_are_rotations():
    angles = torch.rand(20, 3, dtype=torch.float64) * 360 - 180
    turned = rotations(angles)
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).double().expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(20).double())


def test_turn_about_z_is_the_rotation_of_the_plane():
    angles = torch.tensor([-70.0, 0, 20, 90], dtype=torch.float64)
    turned = rotations(F.pad(angles[:, None], (2, 0)))
    ones, zeros = torch.ones_like(angles), torch.zeros(4, 2, dtype=torch.float64)
    in_plane = inverse_similarity(angles, ones, zeros)[:, :, :2]
    torch.testing.assert_close(turned.mT[:, :2, :2], in_plane)
    assert turned[:, 2].equal(torch.tensor([0, 0, 1.0]).double().expand(4, 3))


@pytest.mark.parametrize(
    ("angles", "point", "moved"),
    [
        ((0, 0, 90), (1, 0, 0), (0, -1, 0)),  # counter-clockwise: what is right goes up
        ((0, 90, 0), (1, 0, 0), (0, 0, 1)),  # what is right goes away
        ((90, 0, 0), (0, 1, 0), (0, 0, -1)),  # what is below comes nearer
        ((90, 0, 90), (-1, 0, 0), (0, 0, -1)),  # the turn comes first: left, then below, then near
        ((90, 90, 0), (1, 0, 0), (0, 1, 0)),  # the tilt about y comes before that about x
    ],
)
def test_directions_of_rotations(angles, point, moved):
    turned = rotations(torch.tensor([angles], dtype=torch.float64))[0]
    found = turned @ torch.tensor(point, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(moved, dtype=torch.float64))
