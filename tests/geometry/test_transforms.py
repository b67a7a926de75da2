"""Every transform against F.affine_grid, loops over points, and scipy's RBFInterpolator."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.tri import LinearTriInterpolator, Triangulation
from pydantic import ValidationError
from scipy.interpolate import RBFInterpolator

from stn_train.geometry.grids import (
    AffineGrid,
    AttentionGrid,
    FixedAttentionGrid,
    MatrixGrid,
    ProjectiveGrid,
    RigidGrid,
    SimilarityGrid,
    TranslationGrid,
)
from stn_train.geometry.matrices import NEAREST_DEPTH
from stn_train.geometry.meshes import ControlGrid, PiecewiseAffineGrid, TPSGrid
from stn_train.geometry.plane import OUTSIDE, pixel_centres, sample
from stn_train.geometry.splines import control_grid
from stn_train.geometry.transforms import (
    TRANSFORMS,
    Affine,
    Attention,
    PiecewiseAffine,
    Projective,
    Rigid,
    Similarity,
    ThinPlateSpline,
    Transform,
    Translation,
)

# Families that somebody could add: each is the few lines that its class has here.


class PolarGrid(MatrixGrid):
    """Scale, angle in radians and translation, 4 parameters, as a 3x3 matrix."""

    def __init__(self):
        super().__init__(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def matrix(self, theta):
        scale, angle, x, y = theta.unbind(1)
        cos, sin, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(x)
        entries = [cos, -sin, x, sin, cos, y, zero, zero, zero + 1]
        return torch.stack(entries, dim=1).view(-1, 3, 3)

    def theta(self, matrix):
        cos, sin, shift = matrix[:, 0, 0], matrix[:, 1, 0], matrix[:, :2, 2]
        return torch.cat([torch.stack([torch.hypot(cos, sin), torch.atan2(sin, cos)], 1), shift], 1)


class MeshGrid(ControlGrid):
    """Bilinear between a regular grid of control points."""

    def __init__(self, side=3):
        super().__init__(control_grid(side))
        self.side = side

    def basis(self, points):
        line = torch.linspace(-1, 1, self.side).to(points)
        distance = (points[..., None] - line).abs() * (self.side - 1) / 2  # (..., N, 2, side)
        x, y = (1 - distance).clamp(min=0).unbind(-2)
        return (y[..., :, None] * x[..., None, :]).flatten(-2)


GRIDS = {
    **{name: family().build for name, family in TRANSFORMS.items()},
    "TPS of 3 x 3": ThinPlateSpline(side=3).build,
    "Attention of a fixed scale": Attention(scale=1.0).build,
    **{grid.__name__: grid for grid in (PolarGrid, MeshGrid)},
}
EVERY_TRANSFORM = pytest.mark.parametrize("transform", GRIDS.values(), ids=GRIDS.keys())


def kinds_of(base):
    chosen = {name: build for name, build in GRIDS.items() if isinstance(build(), base)}
    return pytest.mark.parametrize("transform", chosen.values(), ids=chosen.keys())


def thetas(transform, count, spread, seed=0, dtype=torch.float64):
    """Parameters (count, P) around the identity."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, transform.parameter_count, generator=random, dtype=dtype)
    return transform.identity.to(dtype) + spread * noise


def points_of_each(count, points=6, seed=7, dtype=torch.float64):
    """Points (count, points, 2) in [-1, 1]^2, other ones for each image."""
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, points, 2, generator=random, dtype=dtype) - 1


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
def test_identity_maps_every_point_to_itself(transform):
    transform = transform()
    shared, each = pixel_centres((5, 8)), points_of_each(3, dtype=torch.float32)
    identity = transform.identity.expand(3, -1)
    exact = {"rtol": 0, "atol": 0} if isinstance(transform, ControlGrid) else {}
    for points in (shared, each):
        expected = points.expand(3, -1, -1)
        torch.testing.assert_close(transform.map_points(identity, points), expected, **exact)


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


# Points of each image.


@EVERY_TRANSFORM
def test_points_of_each_image_are_mapped_as_one_image_at_a_time(transform):
    transform = transform()
    theta, points = thetas(transform, 5, 0.2), points_of_each(5)
    together = transform.map_points(theta, points)
    assert together.shape == (5, 6, 2)
    alone = [transform.map_points(theta[i : i + 1], points[i])[0] for i in range(5)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


@EVERY_TRANSFORM
def test_shared_points_are_mapped_as_the_same_points_for_each_image(transform):
    transform = transform()
    theta, points = thetas(transform, 5, 0.2), pixel_centres((3, 4), dtype=torch.float64)
    shared = transform.map_points(theta, points)
    each = transform.map_points(theta, points.expand(5, -1, -1))
    torch.testing.assert_close(shared, each, rtol=1e-12, atol=1e-12)


@EVERY_TRANSFORM
def test_points_of_each_image_pass_gradcheck(transform):
    transform = transform()
    theta, points = thetas(transform, 2, 0.1).requires_grad_(), points_of_each(2).requires_grad_()
    assert torch.autograd.gradcheck(transform.map_points, (theta, points))


@EVERY_TRANSFORM
def test_no_image_at_all_is_mapped_and_composed(transform):
    transform = transform()
    theta = thetas(transform, 1, 0.2)[:0]
    assert transform(theta, (3, 4)).shape == (0, 3, 4, 2)
    assert transform.map_points(theta, points_of_each(1)[:0]).shape == (0, 6, 2)
    assert transform.compose(theta, theta).shape == theta.shape


@kinds_of(MatrixGrid)
def test_shared_points_come_in_planes(transform):
    """All x, then all y: the layout that `sample` reads fastest, forward and backward."""
    transform = transform()
    theta = thetas(transform, 4, 0.1, dtype=torch.float32)
    assert transform.map_points(theta, pixel_centres((5, 8))).mT.is_contiguous()


# Each family.


COUNTS = {
    **{Translation: 2, Rigid: 3, Attention: 3, Similarity: 4, Affine: 6, Projective: 8},
    **{PiecewiseAffine: 32, ThinPlateSpline: 32},
}


def test_parameters_are_counted_as_by_hand():
    for family, count in COUNTS.items():
        assert family().build().parameter_count == count


def by_hand(kind, theta):
    """The 3x3 matrix of one theta, entry by entry, in numpy."""
    match kind, theta.tolist():
        case "translation", (x, y):
            return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
        case "rigid", (angle, x, y):
            cos, sin = math.cos(angle), math.sin(angle)
            return np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
        case "similarity", (a, b, x, y):
            return np.array([[a, -b, x], [b, a, y], [0, 0, 1]])
    raise AssertionError(kind)


BY_HAND = {"translation": TranslationGrid, "rigid": RigidGrid, "similarity": SimilarityGrid}


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 1)])
@pytest.mark.parametrize("kind", BY_HAND)
def test_grid_equals_affine_grid_of_the_matrix_by_hand(kind, size):
    transform = BY_HAND[kind]()
    theta = thetas(transform, 6, 1.0)
    matrices = np.stack([by_hand(kind, one)[:2] for one in theta])
    expected = F.affine_grid(torch.from_numpy(matrices), [6, 1, *size], align_corners=False)
    torch.testing.assert_close(transform(theta, size), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", BY_HAND)
def test_composition_and_inverse_are_those_of_the_matrices_by_hand(kind):
    transform = BY_HAND[kind]()
    first, second = thetas(transform, 6, 1.0), thetas(transform, 6, 1.0, seed=1)
    composed, inverse = transform.compose(first, second), transform.inverse(first)
    for number in range(6):
        one, other = by_hand(kind, first[number]), by_hand(kind, second[number])
        np.testing.assert_allclose(by_hand(kind, composed[number]), one @ other, atol=1e-13)
        np.testing.assert_allclose(
            by_hand(kind, inverse[number]), np.linalg.inv(one), rtol=1e-10, atol=1e-12
        )


def test_a_positive_angle_turns_the_image_counter_clockwise():
    quarter = torch.tensor([[math.pi / 2, 0, 0]])
    images = asymmetric_images(6, 6)
    turned = sample(images, RigidGrid()(quarter.expand(2, -1), (6, 6)))
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), rtol=0, atol=1e-5)


def test_rigid_angles_wrap_around_when_composed():
    theta = torch.tensor([[3.0, 0.0, 0.0]])
    angle = RigidGrid().compose(theta, theta)[0, 0].item()
    assert angle == pytest.approx(6 - 2 * math.pi, abs=1e-5)


def windows(theta, scale=None):
    """Matrices (B, 2, 3) of (scale, x, y), or of (x, y) with one scale for all."""
    matrices = torch.zeros(len(theta), 2, 3, dtype=theta.dtype)
    matrices[:, 0, 0] = matrices[:, 1, 1] = theta[:, 0] if scale is None else scale
    matrices[:, :, 2] = theta[:, -2:]
    return matrices


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 1)])
def test_attention_equals_affine_grid(size):
    theta = torch.tensor([[0.5, 0.1, -0.2], [2.0, 0.0, 0.3]], dtype=torch.float64)
    for transform, parameters, matrices in [
        (AttentionGrid(), theta, windows(theta)),
        (FixedAttentionGrid(0.3), theta[:, 1:], windows(theta[:, 1:], 0.3)),
    ]:
        expected = F.affine_grid(matrices, [2, 1, *size], align_corners=False)
        torch.testing.assert_close(transform(parameters, size), expected, rtol=0, atol=1e-15)


def test_a_window_of_fixed_scale_starts_at_the_middle_of_the_image():
    transform, images = FixedAttentionGrid(0.5), asymmetric_images(8, 12)
    grid = transform(transform.identity.expand(2, -1), (4, 6))
    torch.testing.assert_close(sample(images, grid), images[:, :, 2:6, 3:9], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_composed_windows_keep_their_scale_and_lie_where_both_maps_put_the_centre(scale):
    transform = FixedAttentionGrid(scale)
    first, second = thetas(transform, 5, 0.5), thetas(transform, 5, 0.5, seed=1)
    composed = transform.compose(first, second)
    centre = torch.zeros(5, 1, 2, dtype=torch.float64)
    both = transform.map_points(first, transform.map_points(second, centre))
    torch.testing.assert_close(transform.map_points(composed, centre), both)
    corners = transform.map_points(composed, torch.eye(2, dtype=torch.float64) * 2 - 1)
    torch.testing.assert_close(
        corners[:, 0, 0] - corners[:, 1, 0], torch.full((5,), 2 * scale).double()
    )
    # Nothing to correct: the window stays.
    torch.testing.assert_close(transform.compose(first, torch.zeros_like(first)), first)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan")])
def test_a_window_without_a_size_is_refused(scale):
    with pytest.raises(ValueError, match=f"scale must be above 0.*{scale}"):
        FixedAttentionGrid(scale)
    with pytest.raises(ValidationError, match="scale"):
        Attention(scale=scale)


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


def test_each_image_has_its_own_horizon():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 2, 0], [1.0, 0, 0, 0, 1, 0, 0, 2]])
    points = torch.tensor([[[-0.5, 0.25], [-0.9, 0.0], [0.5, -0.9]], [[0.25, -0.5]] * 3])
    theta, points = theta.requires_grad_(), points.requires_grad_()
    mapped = ProjectiveGrid().map_points(theta, points)
    outside = (mapped == OUTSIDE).all(-1)
    assert outside.tolist() == [[True, True, False], [True, True, True]]
    mapped.sum().backward()
    assert theta.grad.isfinite().all()
    assert theta.grad[0].any()
    assert not theta.grad[1].any()
    assert points.grad.isfinite().all()
    assert not points.grad[outside].any()


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


@kinds_of(ControlGrid)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_control_point_is_read_from_where_theta_says(transform, dtype):
    transform = transform()
    theta = thetas(transform, 5, 0.3, dtype=dtype)
    at_control = transform.map_points(theta, transform.control.to(dtype))
    torch.testing.assert_close(at_control.flatten(1), theta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [TPSGrid, PiecewiseAffineGrid])
@pytest.mark.parametrize("side", [1, 0])
def test_two_control_points_a_side_are_needed(grid, side):
    with pytest.raises(ValueError, match=f"2 x 2 control points.* {side}"):
        grid(side)


def triangles_of(side):
    """The corners of the triangles: each field cut from top left to bottom right."""
    found = []
    for i in range(side - 1):
        for j in range(side - 1):
            top, below = side * i + j, side * (i + 1) + j
            found += [(top, top + 1, below + 1), (top, below, below + 1)]
    return found


@pytest.mark.parametrize("side", [2, 3, 4, 7])
def test_piecewise_affine_grid_equals_interpolation_in_triangles(side):
    transform = PiecewiseAffineGrid(side)
    line = np.linspace(-1, 1, side)
    mesh = Triangulation(np.tile(line, side), np.repeat(line, side), triangles_of(side))
    points = pixel_centres((9, 11), dtype=torch.float64)
    theta = thetas(transform, 5, 0.3)
    mapped = transform.map_points(theta, points).numpy()
    for one, found in zip(theta.view(5, -1, 2).numpy(), mapped, strict=True):
        for dimension in range(2):
            reference = LinearTriInterpolator(mesh, one[:, dimension])(*points.numpy().T)
            assert not reference.mask.any()
            # The control points are kept in float32.
            np.testing.assert_allclose(found[:, dimension], reference.data, atol=1e-6)


@kinds_of(ControlGrid)
def test_a_control_grid_reproduces_affine_maps_inside_and_outside(transform):
    transform = transform()
    affine, points = thetas(AffineGrid(), 4, 0.4), 3 * points_of_each(4, 40)
    if isinstance(transform, MeshGrid):  # the toy knows nothing outside
        points = points / 3
    expected = AffineGrid().map_points(affine, points)
    theta = AffineGrid().map_points(affine, transform.control.double()).flatten(1)
    # The system that a spline solves is kept in float32.
    torch.testing.assert_close(transform.map_points(theta, points), expected, rtol=0, atol=3e-5)


def test_piecewise_affine_maps_are_continuous_across_edges_and_outside():
    transform = PiecewiseAffineGrid(4)
    theta = thetas(transform, 3, 0.3)
    along = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)
    for across in (-1.2, -1.0, 0.3, 1.1):
        line = torch.stack([along, torch.full_like(along, across)], dim=1)
        for points in (line, line.flip(-1)):
            steps = transform.map_points(theta, points).diff(dim=1).abs()
            assert steps.max() < 0.01  # between points 0.001 apart


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
        with pytest.raises(ValueError, match="theta") as caught:
            transform(torch.zeros(shape), (5, 8))
        assert f"(B, {count})" in str(caught.value)
        assert str(shape) in str(caught.value)


@EVERY_TRANSFORM
def test_theta_may_be_of_any_strides(transform):
    transform = transform()
    theta = thetas(transform, 3, 0.1)
    strided = theta.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(transform(strided, (5, 8)), transform(theta, (5, 8)))


# Composition.


@kinds_of(MatrixGrid)
def test_theta_of_the_matrix_of_theta_is_theta(transform):
    transform = transform()
    theta = thetas(transform, 5, 0.2)
    torch.testing.assert_close(transform.theta(transform.matrix(theta)), theta)


@kinds_of(MatrixGrid)
def test_composed_theta_maps_points_as_one_after_the_other(transform):
    transform = transform()
    first, second = thetas(transform, 5, 0.1), thetas(transform, 5, 0.1, seed=1)
    points = pixel_centres((4, 5), torch.device("cpu"), torch.float64)
    composed = transform.map_points(transform.compose(first, second), points)
    for number in range(5):
        between = transform.map_points(second[number : number + 1], points)[0]
        expected = transform.map_points(first[number : number + 1], between)[0]
        torch.testing.assert_close(composed[number], expected)
    at_once = transform.map_points(first, transform.map_points(second, points))
    torch.testing.assert_close(composed, at_once)


@kinds_of(MatrixGrid)
def test_composing_with_the_inverse_gives_the_identity(transform):
    transform = transform()
    theta = thetas(transform, 5, 0.2)
    inverse = transform.inverse(theta)
    identity = transform.identity.to(theta).expand_as(theta)
    for pair in ((theta, inverse), (inverse, theta)):
        torch.testing.assert_close(transform.compose(*pair), identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.inverse(inverse), theta)
    points = points_of_each(5) / 2
    back = transform.map_points(inverse, transform.map_points(theta, points))
    torch.testing.assert_close(back, points)


@kinds_of(MatrixGrid)
def test_inverse_passes_gradcheck(transform):
    transform = transform()
    theta = thetas(transform, 2, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(transform.inverse, theta)


def test_the_inverse_of_a_map_onto_a_point_is_not_finite_and_no_error():
    flat = torch.tensor([[0.0, 0.1, 0.2]])
    assert not AttentionGrid().inverse(flat).isfinite().all()


@kinds_of((ControlGrid, FixedAttentionGrid))
def test_families_without_inverses_offer_none(transform):
    assert not hasattr(transform(), "inverse")


@kinds_of(ControlGrid)
def test_composed_theta_agrees_with_one_after_the_other_at_the_control_points(transform):
    transform = transform()
    first, second = thetas(transform, 5, 0.1), thetas(transform, 5, 0.1, seed=1)
    composed = transform.compose(first, second).view(5, -1, 2)
    for number in range(5):
        between = second[number].view(-1, 2)
        expected = transform.map_points(first[number : number + 1], between)[0]
        torch.testing.assert_close(composed[number], expected)
    at_once = transform.map_points(first, second.view(5, -1, 2))
    torch.testing.assert_close(composed, at_once)


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
    # At a control point a spline's second derivative has a pole, and a mesh has a kink.
    if std or not isinstance(transform, ControlGrid):
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


# Families in a few lines, against references of their own.


def test_composed_maps_in_polar_form_multiply_scales_and_add_angles():
    first = torch.tensor([[2.0, 0.3, 0.1, 0.2]])
    second = torch.tensor([[0.75, 0.5, -0.4, 0.0]])
    scale, angle, _, _ = PolarGrid().compose(first, second)[0].tolist()
    assert (scale, angle) == pytest.approx((1.5, 0.8))


def test_a_mesh_moves_its_fields_as_bilinear_interpolation_does():
    transform = MeshGrid(3)
    theta = thetas(transform, 4, 0.3)
    # Values at the corners of fields: an image of 3 x 3 with align_corners.
    values = theta.view(4, 3, 3, 2).permute(0, 3, 1, 2)
    points = pixel_centres((5, 8), dtype=torch.float64)
    expected = F.grid_sample(values, points.expand(4, 1, -1, -1), align_corners=True)[:, :, 0].mT
    torch.testing.assert_close(transform.map_points(theta, points), expected, rtol=0, atol=1e-12)


# Settings.

EVERY_FAMILY = pytest.mark.parametrize("family", TRANSFORMS.values(), ids=TRANSFORMS.keys())


@EVERY_FAMILY
def test_every_family_builds_from_its_defaults_and_from_its_own_settings(family):
    settings = family()
    again = family.model_validate(settings.model_dump())
    assert again == settings
    assert again.build().parameter_count == settings.build().parameter_count
    assert settings.build() is not settings.build()


def test_file_names_differ_and_can_be_part_of_a_name():
    names = [family.file_name for family in TRANSFORMS.values()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


def test_file_name_is_no_setting():
    assert all("file_name" not in family.model_fields for family in TRANSFORMS.values())
    with pytest.raises(ValidationError, match="file_name"):
        Affine.model_validate({"file_name": "other"})


def test_a_spline_has_as_many_control_points_as_its_settings_say():
    grid = ThinPlateSpline(side=6).build()
    assert grid.parameter_count == 2 * 6 * 6
    assert grid.control.shape == (36, 2)


@pytest.mark.parametrize("side", [1, 17, 4.0, "4"])
def test_a_side_out_of_range_is_refused(side):
    for family in (ThinPlateSpline, PiecewiseAffine):
        with pytest.raises(ValidationError, match="side"):
            family.model_validate({"side": side})


@EVERY_FAMILY
def test_every_setting_is_documented(family):
    assert all(field.description for field in family.model_fields.values())


def test_a_new_family_is_one_class_with_its_settings():
    class Mesh(Transform):
        file_name = "mesh"

        side: int = 3
        """Control points a side."""

        def build(self):
            return MeshGrid(self.side)

    assert Mesh(side=5).build().parameter_count == 50
    assert Mesh().model_dump() == {"side": 3}
    assert Mesh.model_fields["side"].description == "Control points a side."


@EVERY_FAMILY
def test_a_grid_under_autocast_has_gradients_in_theta_s_own_precision(family):
    grid = family().build()
    theta = grid.identity.repeat(3, 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        points = grid(theta, (4, 5))
    (points.float() - 0.1).square().sum().backward()
    assert theta.grad.dtype == torch.float32
    assert theta.grad.isfinite().all()
    assert theta.grad.any()
