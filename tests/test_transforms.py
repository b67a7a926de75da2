"""Every transform against F.affine_grid, loops over points, and scipy's RBFInterpolator."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator

from stn_train.geometry import NEAREST_DEPTH, pixel_centres, sample
from stn_train.transforms import TRANSFORMS, AffineGrid, ProjectiveGrid, TPSGrid

EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())


def thetas(transform, count, spread, seed=0, dtype=torch.float64):
    """Parameters (count, P) around the identity."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, transform.parameter_count, generator=random, dtype=dtype)
    return transform.identity.to(dtype) + spread * noise


def asymmetric_images(height=5, width=8):
    """(2, 3, H, W) in [0, 1]: no two pixels are the same, the border is not dark."""
    return torch.arange(1.0, 6 * height * width + 1).view(2, 3, height, width) / (
        6 * height * width
    )


@EVERY_TRANSFORM
def test_identity_returns_the_input(transform):
    transform, images = transform(), asymmetric_images()
    grid = transform(transform.identity.expand(2, -1), (5, 8))
    assert grid.shape == (2, 5, 8, 2)
    torch.testing.assert_close(sample(images, grid), images, rtol=0, atol=1e-6)


@EVERY_TRANSFORM
def test_identity_to_a_third_of_the_size_reads_every_third_pixel(transform):
    transform, images = transform(), asymmetric_images(6, 9)
    grid = transform(transform.identity.expand(2, -1), (2, 3))
    torch.testing.assert_close(sample(images, grid), images[:, :, 1::3, 1::3], rtol=0, atol=1e-6)


@EVERY_TRANSFORM
def test_identity_to_three_times_the_size_equals_interpolate(transform):
    transform, images = transform(), asymmetric_images()
    output = sample(images, transform(transform.identity.expand(2, -1), (15, 24)))
    torch.testing.assert_close(output[:, :, 1::3, 1::3], images, rtol=0, atol=1e-6)
    expected = F.interpolate(images, (15, 24), mode="bilinear", align_corners=False)
    # interpolate repeats the border where sample goes to zero.
    inside = np.s_[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(output[inside], expected[inside], rtol=0, atol=1e-6)


@EVERY_TRANSFORM
def test_grid_passes_gradcheck(transform):
    transform = transform()
    theta = thetas(transform, 2, 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda theta: transform(theta, (3, 4)), theta)


@EVERY_TRANSFORM
def test_sampled_image_passes_gradcheck_away_from_the_kinks(transform):
    transform, images = transform(), asymmetric_images().double().sin()
    theta = thetas(transform, 2, 0.1).requires_grad_()
    pixels = ((transform(theta, (3, 4)) + 1) * torch.tensor([8, 5]) - 1) / 2
    assert (pixels - pixels.round()).abs().min() > 1e-4
    assert torch.autograd.gradcheck(lambda theta: sample(images, transform(theta, (3, 4))), theta)


@EVERY_TRANSFORM
def test_a_grid_has_nothing_to_learn_or_to_save(transform):
    transform = transform()
    assert not list(transform.parameters())
    assert not transform.state_dict()


@pytest.mark.parametrize(("name", "count"), [("Aff", 6), ("Proj", 8), ("TPS", 32)])
def test_parameter_count_is_the_papers(name, count):
    assert TRANSFORMS[name]().parameter_count == count


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 1)])
def test_affine_grid_equals_torch_affine_grid(size):
    transform = AffineGrid()
    theta = thetas(transform, 4, 0.5)
    expected = F.affine_grid(theta.view(4, 2, 3), [4, 1, *size], align_corners=False)
    torch.testing.assert_close(transform(theta, size), expected, rtol=0, atol=1e-14)


def homography_grid(theta, height, width):
    """The homography worked out point by point."""
    a, b, c, d, e, f, g, h = theta
    grid = np.empty((height, width, 2))
    for i in range(height):
        for j in range(width):
            x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            w = g * x + h * y + 1
            assert w > NEAREST_DEPTH
            grid[i, j] = (a * x + b * y + c) / w, (d * x + e * y + f) / w
    return grid


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 1)])
def test_projective_grid_equals_homography_in_loops(size):
    transform = ProjectiveGrid()
    theta = thetas(transform, 4, 0.2)
    expected = [homography_grid(one, *size) for one in theta.tolist()]
    np.testing.assert_allclose(transform(theta, size).numpy(), expected, atol=1e-13)


def test_projective_grid_without_perspective_equals_affine_grid():
    theta = thetas(AffineGrid(), 4, 0.5)
    projective = ProjectiveGrid()(F.pad(theta, (0, 2)), (5, 8))
    torch.testing.assert_close(projective, AffineGrid()(theta, (5, 8)))


def test_projective_points_behind_the_camera_read_as_padding_with_finite_gradients():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 2, 0]]).requires_grad_()  # 2 x + 1 = 0 at x = -0.5
    output = sample(torch.ones(1, 1, 4, 9), ProjectiveGrid()(theta, (4, 9)))
    assert (output[..., :2] == 0).all()
    assert (output[..., 4:] > 0).all()
    output.sum().backward()
    assert theta.grad.isfinite().all()
    assert theta.grad.any()


@pytest.mark.parametrize("side", [2, 3, 4, 6])
def test_tps_grid_equals_rbf_interpolator(side):
    transform = TPSGrid(side)
    line = np.linspace(-1, 1, side)
    control = np.array([(x, y) for y in line for x in line])
    points = pixel_centres((5, 8), dtype=torch.float64).numpy()
    theta = thetas(transform, 5, 0.3)
    for one, grid in zip(theta.numpy(), transform(theta, (5, 8)).numpy(), strict=True):
        reference = RBFInterpolator(
            control, one.reshape(-1, 2), kernel="thin_plate_spline", degree=1
        )
        # The control points and the solved system are kept in float32.
        np.testing.assert_allclose(grid.reshape(-1, 2), reference(points), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tps_passes_through_its_control_points(dtype):
    transform = TPSGrid()
    theta = thetas(transform, 5, 0.3, dtype=dtype)
    at_control = transform.map_points(theta, transform.control.to(dtype))
    torch.testing.assert_close(at_control.flatten(1), theta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [1, 0])
def test_tps_needs_two_control_points_a_side(side):
    with pytest.raises(ValueError, match=f"at least 2 x 2 control points, got {side}"):
        TPSGrid(side)


@EVERY_TRANSFORM
def test_theta_of_another_shape_is_refused(transform):
    transform = transform()
    count = transform.parameter_count
    shapes = [
        (count,),
        (2, count - 1),
        (2, count + 1),
        (2, 2 * count),
        (1, 2, count),
        (2, count, 1),
    ]
    for shape in shapes:
        with pytest.raises(ValueError, match="theta must be") as caught:
            transform(torch.zeros(shape), (5, 8))
        assert str(caught.value) == f"theta must be (B, {count}), got {shape}"


@EVERY_TRANSFORM
def test_theta_may_be_of_any_strides(transform):
    transform = transform()
    theta = thetas(transform, 3, 0.1)
    strided = theta.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(transform(strided, (5, 8)), transform(theta, (5, 8)))


# Composition.


@pytest.mark.parametrize("transform", [AffineGrid(), ProjectiveGrid()])
def test_composed_theta_maps_points_as_one_after_the_other(transform):
    first, second = thetas(transform, 5, 0.1), thetas(transform, 5, 0.1, seed=1)
    points = pixel_centres((4, 5), torch.device("cpu"), torch.float64)
    composed = transform.map_points(transform.compose(first, second), points)
    for number in range(5):
        between = transform.map_points(second[number : number + 1], points)[0]
        expected = transform.map_points(first[number : number + 1], between)[0]
        torch.testing.assert_close(composed[number], expected)


def test_composed_tps_agrees_with_one_after_the_other_at_the_control_points():
    transform = TPSGrid()
    first, second = thetas(transform, 5, 0.1), thetas(transform, 5, 0.1, seed=1)
    composed = transform.compose(first, second).view(5, 16, 2)
    for number in range(5):
        between = second[number].view(16, 2)
        expected = transform.map_points(first[number : number + 1], between)[0]
        torch.testing.assert_close(composed[number], expected)


@EVERY_TRANSFORM
def test_composing_with_the_identity_changes_nothing(transform):
    transform = transform()
    theta = thetas(transform, 3, 0.2).float()
    identity = transform.identity.expand_as(theta)
    torch.testing.assert_close(transform.compose(theta, identity), theta)
    torch.testing.assert_close(transform.compose(identity, theta), theta)


@EVERY_TRANSFORM
@pytest.mark.parametrize("std", [0.0, 0.1])
def test_composition_passes_gradcheck(transform, std):
    transform = transform()
    first = thetas(transform, 2, 0.1).requires_grad_()
    second = thetas(transform, 2, std, seed=1).requires_grad_()
    if std or not isinstance(transform, TPSGrid):  # a spline's second derivative has a pole there
        assert torch.autograd.gradcheck(transform.compose, (first, second))
    transform.compose(first, second).sum().backward()
    assert first.grad.isfinite().all()
    assert second.grad.isfinite().all()


def test_projective_composition_beyond_the_horizon_is_finite():
    transform = ProjectiveGrid()
    first = torch.tensor([[1.0, 0, 0, 0, 1, 0, 3, 0]], requires_grad=True)
    second = torch.tensor([[1.0, 0, -1, 0, 1, 0, 0, 0]], requires_grad=True)  # depth 1 - 3
    composed = transform.compose(first, second)
    composed.sum().backward()
    assert composed.isfinite().all()
    assert first.grad.isfinite().all()
    assert second.grad.isfinite().all()
