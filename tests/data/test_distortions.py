"""Every distortion against an independent version, image by image and pixel by pixel."""

import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats
from scipy.interpolate import RBFInterpolator
from typing_extensions import override

from stn_train.config import Config
from stn_train.data.crop import Crop
from stn_train.data.distortion import Distortion, Warping, distort
from stn_train.data.distortions import (
    DISTORTIONS,
    Elastic,
    Projection,
    Rotation,
    RotationScaleTranslation,
    Translation,
    Undistorted,
    elastic_system,
)
from stn_train.data.images import Images

EVERY_DISTORTION = pytest.mark.parametrize("distortion", DISTORTIONS.values(), ids=DISTORTIONS)
WARPINGS = {name: kind for name, kind in DISTORTIONS.items() if issubclass(kind, Warping)}
EVERY_WARPING = pytest.mark.parametrize("distortion", WARPINGS.values(), ids=WARPINGS)
WHOLE = [kind for kind in DISTORTIONS.values() if kind is not Crop]  # tests/data/test_crop.py
EVERY_WHOLE = pytest.mark.parametrize("distortion", WHOLE)
SCALED = pytest.mark.parametrize("distortion", [RotationScaleTranslation, Projection, Elastic])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise_digits(count, seed=0):
    """Images with nothing regular about them, bright up to the border: uint8 (count, 28, 28)."""
    return torch.randint(1, 256, (count, 28, 28), generator=seeded(seed), dtype=torch.uint8)


def labelled(count, shape=(1, 28, 28)):
    """Noise of a shape (C, H, W), in ten classes."""
    pixels = torch.randint(256, (count, *shape), generator=seeded(0)).byte()
    return Images(pixels, torch.arange(count) % 10, tuple("0123456789"))


# The independent version. Pixels throughout, (0, 0) in the middle of the image and of the canvas,
# y down. Each function takes one image's parameters and yields where a canvas point is read from.


def read_undistorted(parameters, canvas):
    return lambda x, y: (x, y)


def read_rotated(parameters, canvas):
    return read_rotated_scaled_moved([parameters[0], 1, 0, 0], canvas)


def read_rotated_scaled_moved(parameters, canvas):
    angle_deg, scale, right, down = parameters
    # A point of the image goes counter-clockwise by the angle. With y up that is
    # x' = x cos - y sin, y' = x sin + y cos; with y down the signs of the sines change.
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    forward = np.array(
        [[scale * cos, scale * sin, right], [-scale * sin, scale * cos, down], [0, 0, 1]]
    )
    back = np.linalg.inv(forward)
    return lambda x, y: back[:2] @ [x, y, 1]


def read_moved(parameters, canvas):
    return read_rotated_scaled_moved([0, 1, *parameters], canvas)


def read_projected(parameters, canvas):
    scale, shifts = parameters[0], np.reshape(parameters[1:], (4, 2))
    half = canvas / 2
    square = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    rows, right = [], []
    for (x, y), (u, v) in zip(square + shifts, square, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    back = np.append(np.linalg.solve(rows, right), 1).reshape(3, 3)
    back /= back[2] @ [*(square + shifts)[0], 1]  # what the camera sees has a positive depth

    def read(x, y):
        u, v, depth = back @ [x, y, 1]
        return (u / depth / scale, v / depth / scale) if depth > 0 else (math.inf, math.inf)

    return read


def read_bent(parameters, canvas):
    scale, shifts = parameters[0], np.reshape(parameters[1:], (-1, 2))
    line = np.linspace(-canvas / 2, canvas / 2, math.isqrt(len(shifts)))
    control = np.array([(x, y) for y in line for x in line])
    spline = RBFInterpolator(control, control + shifts, kernel="thin_plate_spline", degree=1)
    return lambda x, y: spline([[x, y]])[0] / scale


def read_bent_inside(parameters, canvas):
    return read_bent(parameters, 0.75 * canvas)


def slowly_distorted(image, canvas, read):
    """(canvas, canvas), each pixel a weighted sum of the four around where it is read from."""
    output = np.zeros((canvas, canvas))
    for row in range(canvas):
        for column in range(canvas):
            x, y = read(column - (canvas - 1) / 2, row - (canvas - 1) / 2)
            x, y = x + 13.5, y + 13.5
            if not (-1 < x < 28 and -1 < y < 28):
                continue
            left, top = math.floor(x), math.floor(y)
            for n, m in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= n < 28 and 0 <= m < 28:
                    output[row, column] += image[n, m] * (1 - abs(x - m)) * (1 - abs(y - n))
    return output


@pytest.mark.parametrize(
    ("distortion", "reference"),
    [
        (Rotation(), read_rotated),
        (Rotation(canvas_px=33), read_rotated),
        (RotationScaleTranslation(), read_rotated_scaled_moved),
        (RotationScaleTranslation(canvas_px=28, max_angle_deg=180), read_rotated_scaled_moved),
        (Projection(), read_projected),
        (Projection(canvas_px=33, corner_std_px=5), read_projected),
        (Elastic(control_span=1.0), read_bent),
        (Elastic(canvas_px=33, control_side=3, control_span=1.0), read_bent),
        (Elastic(canvas_px=33), read_bent_inside),
        (Translation(), read_moved),
        (Translation(canvas_px=33), read_moved),
        (Undistorted(), read_undistorted),
        (Undistorted(canvas_px=33), read_undistorted),
    ],
    ids=lambda value: value.__name__ if callable(value) else repr(value),
)
def test_distort_equals_pixel_by_pixel_version(distortion, reference):
    images, parameters = noise_digits(3), distortion.draw(3, seeded(1))
    distorted = distort(images, distortion, parameters)
    canvas = distortion.canvas_px
    for image, drawn, ours in zip(images, parameters, distorted[:, 0], strict=True):
        expected = slowly_distorted(
            image.numpy() / 255, canvas, reference(drawn.double().numpy(), canvas)
        )
        assert expected.any()
        np.testing.assert_allclose(ours, expected, atol=2e-4)  # float32 coordinates


@pytest.mark.parametrize("turns", [1, -1])
def test_rotation_by_90_degrees_equals_rot90(turns):
    images = noise_digits(2)
    rotated = distort(images, Rotation(), torch.full((2, 1), 90.0 * turns))
    expected = torch.rot90(images, turns, (1, 2))[:, None] / 255  # counter-clockwise on screen
    torch.testing.assert_close(rotated, expected, rtol=0, atol=1e-5)


def test_shift_moves_the_image_right_and_down():
    images = noise_digits(1)
    parameters = torch.tensor([[0.0, 1.0, 3.0, -2.0]])
    moved = distort(images, RotationScaleTranslation(), parameters)
    expected = F.pad(images[:, None] / 255, (7 + 3, 7 - 3, 7 - 2, 7 + 2))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("canvas", [28, 30, 42, 112])
@pytest.mark.parametrize(
    "distortion", [Undistorted, Rotation, RotationScaleTranslation, Projection, Elastic]
)
def test_without_displacement_the_image_stays_in_the_middle_of_the_canvas(distortion, canvas):
    images, distortion = noise_digits(2), distortion(canvas_px=canvas)
    still = torch.zeros_like(distortion.draw(2, seeded(0)))
    if hasattr(distortion, "min_scale"):
        still[:, 1 if isinstance(distortion, RotationScaleTranslation) else 0] = 1
    margin = (canvas - 28) // 2
    expected = F.pad(images[:, None] / 255, (margin,) * 4)
    distorted = distort(images, distortion, still)
    torch.testing.assert_close(distorted, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("canvas", [28, 42])
@EVERY_WARPING
def test_distort_returns_values_from_0_to_1_and_leaves_its_arguments_alone(distortion, canvas):
    distortion = distortion(canvas_px=canvas)
    images, parameters = torch.full((64, 28, 28), 255).byte(), distortion.draw(64, seeded(0))
    before = images.clone(), parameters.clone()
    distorted = distort(images, distortion, parameters)
    assert distorted.shape == (64, 1, canvas, canvas)
    assert distorted.dtype == torch.float32
    assert distorted.min() >= 0
    assert 0.99 < distorted.max() <= 1 + 1e-6  # the weights add up to 1 within rounding
    assert images.equal(before[0])
    assert parameters.equal(before[1])
    assert distort(images, distortion, parameters).equal(distorted)


def test_corners_displaced_out_of_shape_still_give_images():
    wild = Projection(corner_std_px=28)
    parameters = wild.draw(500, seeded(0))
    assert wild.grid(parameters).isfinite().all()
    distorted = distort(noise_digits(500), wild, parameters)
    assert distorted.isfinite().all()
    assert distorted.min() >= 0
    assert distorted.max() <= 1 + 1e-6


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_elastic_passes_through_its_displaced_control_points(side):
    elastic = Elastic(control_side=side, control_span=1.0)
    parameters = elastic.draw(2, seeded(0))
    line = torch.linspace(-1, 1, side)
    control = torch.cartesian_prod(line, line).flip(1)
    read_from_px = elastic.map_points(parameters, control) * 14
    expected_px = (control * 14 + parameters[:, 1:].view(2, -1, 2)) / parameters[:, :1, None]
    # Float32 loses digits as the control points become many; a hundredth of a pixel is unseen.
    atol = 1e-2 if side > 8 else 1e-3
    torch.testing.assert_close(read_from_px, expected_px, rtol=0, atol=atol)


# Draws.


@pytest.mark.parametrize(
    ("name", "columns", "low", "high"),
    [
        ("R", [0], -90, 90),
        ("RTS", [0], -45, 45),
        ("RTS", [1], 0.7, 1.2),
        ("P", [0], 0.75, 1),
        ("E", [0], 0.75, 1),
    ],
)
def test_draws_are_uniform_in_the_papers_range(name, columns, low, high):
    drawn = DISTORTIONS[name]().draw(20_000, seeded(0))[:, columns].numpy()
    assert np.float32(low) <= drawn.min()
    assert drawn.max() <= np.float32(high)
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
    assert drawn.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.02)
    assert stats.kstest(drawn.ravel(), stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_location_keeps_the_scaled_square_on_the_canvas():
    _, scale, right, down = RotationScaleTranslation().draw(20_000, seeded(0)).T
    room_px = (42 - 28 * scale) / 2
    assert float(room_px.max()) == pytest.approx(11.2, abs=0.01)
    for shift_px in (right, down):
        assert stats.kstest((shift_px / room_px).numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    crowded = RotationScaleTranslation(canvas_px=28).draw(100, seeded(0))
    assert not crowded[crowded[:, 1] > 1, 2:].any()  # no room at all


@pytest.mark.parametrize(("name", "count", "std_px"), [("P", 8, 12.5**0.5), ("E", 32, 1.5)])
def test_displacements_are_normal_with_the_stated_deviation(name, count, std_px):
    drawn = DISTORTIONS[name]().draw(5_000, seeded(0))[:, 1:].numpy()
    assert drawn.shape[1] == count
    assert drawn.mean() == pytest.approx(0, abs=0.02 * std_px)
    assert drawn.std() == pytest.approx(std_px, rel=0.02)
    assert stats.kstest(drawn.ravel(), stats.norm(0, std_px).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["RTS", "P", "E"])
def test_parameters_of_an_image_are_independent(name):
    drawn = DISTORTIONS[name]().draw(20_000, seeded(0)).numpy()
    correlation = np.corrcoef(drawn, rowvar=False) - np.eye(drawn.shape[1])
    assert abs(correlation).max() < 0.04


def test_settings_change_the_draws():
    settings = {"min_scale": 0.5, "max_scale": 0.5, "max_angle_deg": 10.0, "max_shift_px": 0.0}
    drawn = RotationScaleTranslation(**settings).draw(1000, seeded(0))
    assert 9.9 < drawn[:, 0].abs().max() <= 10
    assert (drawn[:, 1] == 0.5).all()
    assert (drawn[:, 2:] == 0).all()


@EVERY_DISTORTION
def test_the_seed_alone_decides_every_bit(distortion):
    distortion, images = distortion(), labelled(16)
    torch.manual_seed(1)
    drawn = distortion.draws(images, seeded(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = (distortion.draws(images, seeded(seed)) for seed in (5, 6))
    assert torch.get_rng_state().equal(state)
    for values, same, different in zip(drawn, again, other, strict=True):
        assert (values.device.type, len(values)) == ("cpu", 16)
        assert same.equal(values)
        assert not values.numel() or not different.equal(values)


@EVERY_WARPING
def test_a_generator_gives_other_parameters_each_time(distortion):
    generator = seeded(5)
    first, second = (distortion().draw(16, generator) for _ in range(2))
    assert first.dtype == torch.float32
    assert not first.numel() or not first.equal(second)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("R", "1a4e04276b9b6e2c0a615376a5192578799147dcc49770e863425ca34086ebc4"),
        ("RTS", "3d5c9d17d49243ee576aaecae3eafee522ded2ec5bdf77789f6fccb633d15662"),
        ("P", "886dfb73bd39ed795c800bcafb665292e3b9bc534a3f75616a0511b9f7d18296"),
        ("E", "0aa3537d8aece755ab6a646da360c61780c3611a64f5764734b41af838e7506f"),
        ("T", "56001b3854f1b2816c9729b07250f9b4505551365c9e8dec2e480f26a8a49ce5"),
        ("TC", "808e89db44517e62b136bbb459e1f4d697cb9815768a3cedec0f4b164426948d"),
        ("none", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ],
)
def test_draws_have_not_changed(name, sha256):
    """Another hash is another test set: no result measured before compares with one after."""
    drawn = DISTORTIONS[name]().draws(labelled(16), seeded(0))
    parts = b"".join(part.contiguous().numpy().tobytes() for part in drawn)
    assert hashlib.sha256(parts).hexdigest() == sha256


# Settings.


@EVERY_DISTORTION
def test_unknown_settings_are_refused(distortion):
    with pytest.raises(ValidationError, match=r"colour\s+Extra inputs are not permitted"):
        distortion.model_validate({"colour": 1.0})


@SCALED
def test_scales_out_of_order_are_refused(distortion):
    with pytest.raises(ValidationError, match=r"min_scale 0\.9 is larger than max_scale 0\.8"):
        distortion(min_scale=0.9, max_scale=0.8)
    assert distortion(min_scale=0.8, max_scale=0.8).max_scale == 0.8


@pytest.mark.parametrize(
    ("distortion", "setting", "value"),
    [
        (Undistorted, "canvas_px", 7),
        (Undistorted, "canvas_px", 1025),
        (Undistorted, "canvas_px", 28.5),
        (Rotation, "max_angle_deg", -1.0),
        (Rotation, "max_angle_deg", 181.0),
        (Rotation, "max_angle_deg", "90"),
        (RotationScaleTranslation, "max_shift_px", -0.5),
        (RotationScaleTranslation, "min_scale", 0.0),
        (Projection, "corner_std_px", math.nan),
        (Projection, "corner_std_px", math.inf),
        (Elastic, "control_std_px", -1.0),
        (Elastic, "control_side", 1),
    ],
)
def test_settings_outside_their_range_are_refused(distortion, setting, value):
    with pytest.raises(ValidationError, match=rf"{setting}\s+Input should be"):
        distortion.model_validate({setting: value})


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(3, 28, 28),
        torch.zeros(3, 1, 28, 27).byte(),
        torch.zeros(3, 64, 64).byte(),
        torch.zeros(28, 28).byte(),
        torch.zeros(3, 1, 1, 28, 28).byte(),
    ],
    ids=lambda images: f"{images.dtype} {tuple(images.shape)}",
)
def test_other_images_than_bytes_of_the_right_size_are_refused(images):
    parameters = Rotation().draw(3, torch.Generator())
    with pytest.raises(ValueError, match=r"torch.uint8 \(B, C, 28, 28\), got"):
        distort(images, Rotation(), parameters)


# Other images than MNIST's.


@EVERY_WHOLE
def test_images_of_another_size_get_a_canvas_in_proportion(distortion):
    whole = distortion()
    assert whole.image_px == 28
    for image_px in (8, 14, 32, 64, 224):
        fitted = whole.fitted(image_px)
        assert fitted.image_px == image_px
        assert fitted.canvas_px == round(whole.canvas_px * image_px / 28)
        back = fitted.fitted(28)
        assert (back.canvas_px, back.image_px) == (whole.canvas_px, 28)
    assert whole.image_px == 28  # it stays as it was


def test_rts_of_64_px_images_has_a_canvas_of_96_px():
    assert RotationScaleTranslation().fitted(64).canvas_px == 96


@EVERY_WHOLE
def test_a_canvas_that_was_given_stays(distortion):
    given = distortion(canvas_px=70)
    assert given.fitted(64).canvas_px == given.fitted(28).fitted(64).canvas_px == 70
    with pytest.raises(ValueError, match=r"canvas_px is 70; .* 80 px"):
        given.fitted(80)


def test_images_whose_canvas_would_be_too_large_are_refused():
    with pytest.raises(ValueError, match=r"canvas_px is 1536; .* 1024"):
        RotationScaleTranslation().fitted(1024)
    assert Rotation().fitted(1024).canvas_px == 1024


@pytest.mark.parametrize("distortion", [kind for kind in WHOLE if issubclass(kind, Warping)])
def test_a_distortion_of_a_larger_image_is_the_same_map_of_the_plane(distortion):
    small, large = distortion(), distortion().fitted(56)
    drawn = small.draw(3, seeded(0))
    twice = drawn.clone()  # with lengths in pixels doubled
    if isinstance(small, RotationScaleTranslation):
        twice[:, 2:] *= 2
    elif isinstance(small, Translation):
        twice *= 2
    elif isinstance(small, Projection | Elastic):
        twice[:, 1:] *= 2
    points = 2 * torch.rand(50, 2, generator=seeded(1)) - 1
    expected = small.map_points(drawn, points)
    torch.testing.assert_close(large.map_points(twice, points), expected, rtol=0, atol=1e-4)
    side = large.canvas_px
    assert large.grid(twice).shape == (3, side, side, 2)


@pytest.mark.parametrize("size", [32, 64])
@EVERY_DISTORTION
def test_images_of_three_channels_are_distorted_channel_by_channel(distortion, size):
    distortion = distortion().fitted(size)
    images = labelled(5, (3, size, size))
    draws = distortion.draws(images, seeded(0))
    coloured = distortion.apply(images, slice(None), draws)
    assert coloured.shape == (5, 3, distortion.canvas_px, distortion.canvas_px)
    for channel in range(3):
        grey = Images(images.pixels[:, channel : channel + 1], images.labels, images.classes)
        expected = distortion.apply(grey, slice(None), draws)
        torch.testing.assert_close(coloured[:, channel : channel + 1], expected)


@EVERY_WARPING
def test_apply_is_distort_of_the_images_of_an_index(distortion):
    distortion, images = distortion(), labelled(6)
    (parameters,) = distortion.draws(images, seeded(0))
    for index in (slice(1, 4), torch.tensor([4, 0, 2])):
        applied = distortion.apply(images, index, (parameters[index],))
        expected = distort(images.pixels[index], distortion, parameters[index])
        assert applied.equal(expected)


@pytest.mark.parametrize("count", [1, 24])
@EVERY_WARPING
def test_a_sweep_moves_smoothly_and_comes_back(distortion, count):
    swept = distortion().sweep(count)
    assert swept.shape == (count, distortion().draw(1, seeded(0)).shape[1])
    assert swept.isfinite().all()
    steps = (swept.roll(-1, 0) - swept).abs()  # the last one leads back to the first
    assert not swept.numel() or (steps.amax(0) <= 0.6 * (swept.amax(0) - swept.amin(0))).all()


class Company(Distortion):
    """Beside each image, on a canvas of twice its width, another one of the set."""

    @override
    def draws(self, images, generator):
        return (torch.randint(len(images), (len(images),), generator=generator),)

    @override
    def apply(self, images, index, draws):
        (others,) = draws
        pair = torch.cat([images.pixels[index], images.pixels[others]], dim=3) / 255
        return F.pad(pair, (0, 0, 0, self.image_px))  # square again


def test_a_distortion_may_use_other_images_of_the_set():
    images, company = labelled(6), Company(canvas_px=56)
    (others,) = company.draws(images, seeded(0))
    index = torch.tensor([4, 0, 2])
    shown = company.apply(images, index, (others[index],))
    assert shown.shape == (3, 1, 56, 56)
    for which, picture in zip(index, shown[:, 0], strict=True):
        left, right = (images.pixels[each, 0] / 255 for each in (which, others[which]))
        assert picture[:28, :28].equal(left)
        assert picture[:28, 28:].equal(right)


def test_a_config_takes_a_distortion_that_uses_other_images(monkeypatch):
    monkeypatch.setitem(DISTORTIONS, "company", Company)
    chosen = {"company": {"canvas_px": 56}}
    config = Config.model_validate({"distortion": chosen, "backbone": "FCN", "transform": "none"})
    images = labelled(6)
    draws = config.task.draw(images, seeded(0))
    batch = config.task.batch(images, slice(0, 2), tuple(draw[:2] for draw in draws))
    assert config.build_network(images.format)(batch.inputs).shape == (2, 10)


def test_what_was_cached_in_inference_mode_serves_autograd():
    elastic_system.cache_clear()
    distortion = DISTORTIONS["E"]()
    parameters = distortion.draw(2, torch.Generator().manual_seed(0))
    points = torch.rand(5, 2)
    with torch.inference_mode():
        distortion.map_points(parameters, points)
    distortion.map_points(parameters, points.requires_grad_()).sum().backward()
    assert points.grad.isfinite().all()
