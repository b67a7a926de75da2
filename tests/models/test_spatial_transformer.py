"""The spatial transformer as a layer: where it stands, what it returns, where gradients go."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_train.geometry.grids import AffineGrid, FixedAttentionGrid, ProjectiveGrid
from stn_train.geometry.meshes import TPSGrid
from stn_train.geometry.plane import KERNELS, pixel_centres, sample
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.spatial_transformer import (
    OutputLayer,
    ParallelTransformers,
    SpatialTransformer,
)

EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
FEATURES = 6


def convolutional(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, FEATURES),
        nn.Tanh(),
    )


def fully_connected(channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 5 * 8, FEATURES), nn.Tanh())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@EVERY_TRANSFORM
@pytest.mark.parametrize("localisation", [convolutional, fully_connected])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_a_new_one_returns_maps_of_any_channel_count_unchanged(transform, localisation, channels):
    transformer = SpatialTransformer(localisation(channels), FEATURES, transform().build())
    maps = torch.rand(2, channels, 5, 8)
    torch.testing.assert_close(transformer(maps), maps, rtol=0, atol=1e-6)


@EVERY_TRANSFORM
def test_between_two_layers_a_new_one_changes_nothing(transform):
    before, after = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 3)
    transformer = SpatialTransformer(convolutional(16), FEATURES, transform().build())
    images = torch.rand(2, 3, 7, 10)
    with_transformer = nn.Sequential(before, transformer, after)(images)
    torch.testing.assert_close(with_transformer, after(before(images)), rtol=0, atol=1e-5)


@EVERY_TRANSFORM
@pytest.mark.parametrize("output_size", [None, (5, 8), (3, 11), (1, 1)])
def test_warp_returns_output_theta_and_grid(transform, output_size):
    transform = transform().build()
    transformer = SpatialTransformer(convolutional(3), FEATURES, transform, output_size)
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 3, 5, 8)
    output, theta, grid = transformer.warp(maps)
    height, width = output_size or (5, 8)
    assert output.shape == (2, 3, height, width)
    assert theta.shape == (2, transform.parameter_count)
    assert grid.shape == (2, height, width, 2)
    assert transformer(maps).equal(output)
    # Theta follows from the maps, the grid from theta, the output from maps and grid.
    regression = transformer.regression
    expected = F.linear(transformer.localisation(maps), regression.weight, regression.bias)
    torch.testing.assert_close(theta, expected)
    assert not torch.allclose(theta[0], theta[1])
    assert grid.equal(transform(theta, (height, width)))
    assert output.equal(sample(maps, grid))


def test_warp_equals_torch_affine_grid_and_grid_sample():
    transformer = SpatialTransformer(convolutional(3), FEATURES, AffineGrid(), (4, 9))
    nn.init.normal_(transformer.regression.weight, std=0.5)
    maps = torch.rand(2, 3, 5, 8)
    output, theta, _ = transformer.warp(maps)
    grid = F.affine_grid(theta.view(2, 2, 3), [2, 3, 4, 9], align_corners=False)
    expected = F.grid_sample(maps, grid, align_corners=False)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_maps_are_read_with_the_kernel_that_is_asked_for(kernel):
    transformer = SpatialTransformer(
        convolutional(3), FEATURES, AffineGrid(), iterations=2, sampling=kernel
    )
    nn.init.normal_(transformer.regression.weight, std=0.3)
    maps = torch.rand(2, 3, 5, 8)
    theta = transformer.localise(maps)
    seen = sample(maps, transformer.transform(theta, (5, 8)), kernel)
    theta = transformer.transform.compose(theta, transformer.localise(seen))
    warp = transformer.warp(maps)
    torch.testing.assert_close(warp.theta, theta)
    assert warp.output.equal(sample(maps, warp.grid, kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_kernels_but_the_integer_one_let_it_learn(kernel):
    transformer = SpatialTransformer(convolutional(3), FEATURES, AffineGrid(), sampling=kernel)
    nn.init.normal_(transformer.regression.weight, std=0.3)
    maps = torch.rand(2, 3, 5, 8)
    transformer(maps).square().sum().backward()
    assert bool(transformer.regression.bias.grad.any()) == (kernel != "integer")


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="integer, bilinear, bicubic, got 'nearest'"):
        SpatialTransformer(nn.Flatten(), 64, AffineGrid(), sampling="nearest")


def test_a_window_of_fixed_scale_refines_its_place():
    transformer = SpatialTransformer(
        convolutional(1), FEATURES, FixedAttentionGrid(0.5), (4, 6), iterations=2
    )
    maps = torch.rand(2, 1, 8, 12)
    middle = maps[:, :, 2:6, 3:9]
    torch.testing.assert_close(transformer(maps), middle, rtol=0, atol=1e-6)
    nn.init.normal_(transformer.regression.weight, std=0.1)
    first = transformer.localise(maps)
    correction = transformer.localise(transformer.read(maps, first, (8, 12)).output)
    torch.testing.assert_close(transformer.warp(maps).theta, first + 0.5 * correction)


def test_every_map_of_a_batch_is_warped_on_its_own():
    transformer = SpatialTransformer(convolutional(3), FEATURES, ProjectiveGrid())
    nn.init.normal_(transformer.regression.weight, std=0.5)
    maps = torch.rand(4, 3, 5, 8)
    one_by_one = torch.cat([transformer(one[None]) for one in maps])
    torch.testing.assert_close(transformer(maps), one_by_one, rtol=0, atol=1e-5)


@EVERY_TRANSFORM
def test_at_the_start_gradients_reach_the_regression_and_the_input(transform):
    transformer = SpatialTransformer(convolutional(3), FEATURES, transform().build())
    maps = torch.rand(2, 3, 5, 8, requires_grad=True)
    transformer(maps).square().sum().backward()
    assert transformer.regression.weight.grad.any(dim=1).all()  # each of the P parameters
    assert transformer.regression.bias.grad.all()
    assert maps.grad.all()


@EVERY_TRANSFORM
def test_gradcheck_of_the_maps_by_way_of_the_sampler_and_of_theta(transform):
    transformer = SpatialTransformer(
        convolutional(2), FEATURES, transform().build(), (3, 4)
    ).double()
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    pixels = ((transformer.warp(maps).grid + 1) * torch.tensor([8, 5]) - 1) / 2
    assert (pixels - pixels.round()).abs().min() > 1e-4  # away from the kinks
    assert torch.autograd.gradcheck(transformer, maps)


@EVERY_TRANSFORM
def test_after_one_step_gradients_reach_every_localisation_parameter(transform):
    transformer = SpatialTransformer(convolutional(3), FEATURES, transform().build())
    maps = torch.rand(2, 3, 5, 8)
    optimiser = torch.optim.SGD(transformer.parameters(), lr=1e-3)

    def backward():
        optimiser.zero_grad()
        transformer(maps).square().sum().backward()
        return {name: p.grad.any() for name, p in transformer.localisation.named_parameters()}

    assert not any(backward().values())  # the regression's weights are zero
    optimiser.step()
    reached = backward()
    assert all(reached.values()), reached


@EVERY_TRANSFORM
def test_state_dict_holds_the_learnt_weights_only(transform):
    transformer = SpatialTransformer(convolutional(3), FEATURES, transform().build())
    assert set(transformer.state_dict()) == {name for name, _ in transformer.named_parameters()}


@EVERY_TRANSFORM
def test_coordinates_stay_float32_under_autocast(transform):
    transformer = SpatialTransformer(convolutional(3), FEATURES, transform().build())
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 3, 5, 8)
    plain = transformer.warp(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert transformer.localisation(maps).dtype == torch.bfloat16
        cast = transformer.warp(maps)
    for value, expected in zip(cast, plain, strict=True):
        assert value.dtype == torch.float32
        assert not value.equal(expected)
        torch.testing.assert_close(value, expected, rtol=0, atol=0.05)
    # Given theta, the grid is the exact one: only the localisation network is rounded.
    assert cast.grid.equal(transformer.transform(cast.theta, (5, 8)))


@EVERY_TRANSFORM
def test_a_bfloat16_network_returns_bfloat16_maps_from_an_exact_grid(transform):
    transformer = SpatialTransformer(convolutional(3), FEATURES, transform().build()).bfloat16()
    maps = torch.rand(2, 3, 56, 56).bfloat16()
    output, theta, grid = transformer.warp(maps)
    assert (output.dtype, theta.dtype, grid.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@EVERY_TRANSFORM
def test_a_further_iteration_composes_its_correction(transform):
    transform = transform().build()
    transformer = SpatialTransformer(convolutional(1), FEATURES, transform, (6, 4), iterations=3)
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 1, 5, 8)
    theta = transformer.localise(maps)
    for _ in range(2):
        seen = sample(maps, transform(theta, (5, 8)))
        theta = transform.compose(theta, transformer.localise(seen))
    warp = transformer.warp(maps)
    torch.testing.assert_close(warp.theta, theta)
    torch.testing.assert_close(warp.output, sample(maps, transform(theta, (6, 4))))
    warp.output.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in transformer.parameters())


@EVERY_TRANSFORM
def test_with_iterations_a_new_one_is_still_the_identity(transform):
    transformer = SpatialTransformer(convolutional(1), FEATURES, transform().build(), iterations=2)
    maps = torch.rand(2, 1, 5, 8)
    output = transformer(maps)
    torch.testing.assert_close(output, maps, rtol=0, atol=1e-6)
    output.square().sum().backward()
    gradients = [weight.grad for weight in transformer.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_localisation_network_sees_the_maps_in_the_size_of_pooled_ones():
    localisation = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4, FEATURES))  # 5 x 8 pooled by 2
    transformer = SpatialTransformer(localisation, FEATURES, AffineGrid(), iterations=2, pool=2)
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(3, 1, 5, 8)
    small = F.avg_pool2d(maps, 2)
    theta = transformer.localise(small)
    seen = sample(maps, transformer.transform(theta, (2, 4)))  # with all the detail there is
    theta = transformer.transform.compose(theta, transformer.localise(seen))
    output, found, _ = transformer.warp(maps)
    torch.testing.assert_close(found, theta)
    assert output.shape == maps.shape


def test_a_localisation_network_of_another_width_is_told():
    transformer = SpatialTransformer(nn.Flatten(), 100, AffineGrid())
    with pytest.raises(ValueError, match=r"must return \(B, 100\), got \(2, 64\)"):
        transformer(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"pool": 0}, {"iterations": -1}], ids=str)
def test_iterations_and_pool_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        SpatialTransformer(nn.Flatten(), 64, AffineGrid(), **wrong)


def test_regression_is_marked_as_an_output():
    transformer = SpatialTransformer(nn.Flatten(), 64, AffineGrid())
    assert isinstance(transformer.regression, OutputLayer)


# In parallel.


def two_kinds(channels):
    """An affine and a projective one, with weights that do something."""
    kinds = [AffineGrid(), ProjectiveGrid()]
    both = [SpatialTransformer(convolutional(channels), FEATURES, kind) for kind in kinds]
    for transformer in both:
        nn.init.normal_(transformer.regression.weight, std=0.3)
    return both


@pytest.mark.parametrize("channels", [1, 3])
def test_parallel_transformers_each_warp_the_same_maps(channels):
    first, second = two_kinds(channels)
    maps = torch.rand(2, channels, 5, 8)
    warped = ParallelTransformers(first, second)(maps)
    assert warped.shape == (2, 2 * channels, 5, 8)
    assert warped[:, :channels].equal(first(maps))
    assert warped[:, channels:].equal(second(maps))
    assert not warped[:, :channels].equal(warped[:, channels:])


def test_parallel_transformers_may_share_a_localisation_network():
    shared = convolutional(3)
    first, second = (SpatialTransformer(shared, FEATURES, AffineGrid()) for _ in range(2))
    parallel = ParallelTransformers(first, second)
    assert parallel[0].localisation is parallel[1].localisation
    apart = ParallelTransformers(
        *(SpatialTransformer(convolutional(3), FEATURES, AffineGrid()) for _ in range(2))
    )
    weights = sum(parameter.numel() for parameter in shared.parameters())
    numbers = [sum(p.numel() for p in module.parameters()) for module in (parallel, apart)]
    assert numbers[1] - numbers[0] == weights  # shared ones are there once

    optimiser = torch.optim.SGD(parallel.parameters(), lr=1e-3)
    maps = torch.rand(2, 3, 5, 8)
    for _ in range(2):  # at first the regressions' weights are zero
        optimiser.zero_grad()
        parallel(maps).square().sum().backward()
        optimiser.step()
    assert all(parameter.grad.any() for parameter in shared.parameters())


def test_gradients_of_a_shared_localisation_network_add_up():
    shared = convolutional(1).double()
    both = [SpatialTransformer(shared, FEATURES, TPSGrid()).double() for _ in range(2)]
    for transformer in both:
        nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 1, 5, 8, dtype=torch.float64)
    weight = shared[0].weight
    (together,) = torch.autograd.grad(ParallelTransformers(*both)(maps).square().sum(), weight)
    alone = [torch.autograd.grad(each(maps).square().sum(), weight)[0] for each in both]
    torch.testing.assert_close(together, alone[0] + alone[1])


def test_parallel_transformers_survive_their_state_dict():
    parallel = ParallelTransformers(*two_kinds(3))
    fresh = ParallelTransformers(*two_kinds(3))
    fresh.load_state_dict(parallel.state_dict())
    maps = torch.rand(2, 3, 5, 8)
    assert fresh(maps).equal(parallel(maps))
    assert {name.split(".")[0] for name in parallel.state_dict()} == {"0", "1"}


def test_no_parallel_transformer_is_not_enough():
    with pytest.raises(ValueError, match="at least one"):
        ParallelTransformers()


@EVERY_TRANSFORM
def test_a_view_moves_the_points_of_the_output(transform):
    transformer = SpatialTransformer(fully_connected(1), FEATURES, transform().build())
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 1, 5, 8)
    plain = transformer.warp(maps)
    transformer.view = torch.tensor([[0.9, -0.2, 0.1], [0.3, 1.1, -0.2]])
    seen = transformer.warp(maps)
    points = pixel_centres((5, 8))
    moved = points @ transformer.view[:, :2].T + transformer.view[:, 2]
    expected = transformer.transform.map_points(plain.theta, moved).view(2, 5, 8, 2)
    torch.testing.assert_close(seen.theta, plain.theta)
    torch.testing.assert_close(seen.grid, expected)
    transformer.view = torch.eye(2, 3)
    torch.testing.assert_close(transformer(maps), plain.output)


def test_a_view_through_an_affine_transformer_is_a_composition():
    transformer = SpatialTransformer(fully_connected(1), FEATURES, AffineGrid(), iterations=2)
    nn.init.normal_(transformer.regression.weight, std=0.1)
    maps = torch.rand(2, 1, 5, 8)
    theta = transformer.warp(maps).theta
    transformer.view = torch.tensor([[0.9, -0.2, 0.1], [0.3, 1.1, -0.2]])
    both = transformer.transform.compose(theta, transformer.view.view(1, 6).expand(2, 6))
    torch.testing.assert_close(transformer.warp(maps).grid, transformer.transform(both, (5, 8)))


def test_jitter_shows_each_image_in_a_pose_of_its_own_in_training_alone():
    transformer = SpatialTransformer(fully_connected(1), FEATURES, TPSGrid(), jitter=0.05)
    maps = torch.rand(64, 1, 5, 8)
    offsets = transformer.warp(maps).grid - transformer.eval().warp(maps).grid
    assert torch.equal(
        transformer(maps), transformer.read(maps, transformer.warp(maps).theta, (5, 8)).output
    )
    middle = offsets.mean((1, 2))  # (B, 2): the shift
    torch.testing.assert_close(middle.std(0), torch.tensor([0.05, 0.05]), rtol=0.3, atol=0)
    assert len(middle.unique(dim=0)) == 64
