"""Crops of photographs against slices of the image, and that only training images are varied."""

import pytest
import torch

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.data.crop import Crop
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import Images
from stn_train.tasks.addition import Addition
from stn_train.tasks.examples import Examples, draw_pass
from stn_train.tasks.recognition import Recognition


def photographs(count: int, side: int = 16) -> Images:
    pixels = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
    return Images(pixels.byte(), torch.arange(count) % 2, ("one", "two"))


def apply(crop: Crop, images: Images, generator: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = crop.draws(images, torch.Generator().manual_seed(generator))
    return crop.apply(images, slice(None), draws), draws[0]


@pytest.mark.parametrize(("side", "square"), [(16, 14), (16, 11), (15, 8), (16, 16)])
def test_a_crop_is_a_slice_of_the_image_or_that_mirrored(side, square):
    images, crop = photographs(500, side), Crop(canvas_px=square).fitted(side)
    cropped, draws = apply(crop, images)
    for image, ours, (left, top, mirrored) in zip(
        images.pixels, cropped, draws.int().tolist(), strict=True
    ):
        slice_of_it = image[:, top : top + square, left : left + square] / 255
        expected = slice_of_it.flip(2) if mirrored else slice_of_it
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    room = side - square
    assert draws[:, :2].min() == 0
    assert draws[:, :2].max() == room
    assert set(draws[:, 2].tolist()) == {0, 1}
    assert len(draws[:, :2].unique(dim=0)) == (room + 1) ** 2


def test_without_mirrors_none_is_mirrored():
    assert not apply(Crop(canvas_px=12, mirror=False).fitted(16), photographs(50))[1][:, 2].any()


@pytest.mark.parametrize(("side", "square", "first"), [(16, 12, 2), (15, 8, 3)])
def test_what_is_measured_is_the_middle(side, square, first):
    images, crop = photographs(3, side), Crop(canvas_px=square).fitted(side)
    task = Recognition().with_distortion(crop)
    expected = images.pixels[..., first : first + square, first : first + square] / 255
    for examples in (Examples.for_test(task, images, 4), Examples.for_validation(task, images)):
        shown = examples.batch(slice(None)).inputs
        torch.testing.assert_close(shown, expected, atol=1e-4, rtol=0)
    draws = draw_pass(task, images, 1, 0, 0).draws
    assert draws[0].shape == (3, 3)
    # Any task measures so.
    both = Examples.for_test(Addition().with_distortion(crop), images, 0).batch(slice(None)).inputs
    torch.testing.assert_close(both[:, :3], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("square", [20, 21])
def test_a_square_larger_than_the_image_has_black_around_it(square):
    images, crop = photographs(40), Crop(canvas_px=square).fitted(16)
    for distortion in (crop, crop.for_evaluation()):
        shown, _ = apply(distortion, images)
        torch.testing.assert_close(shown.sum((1, 2, 3)), images.pixels.sum((1, 2, 3)) / 255)


@pytest.mark.parametrize(("side", "square"), [(256, 224), (512, 448), (28, 26), (34, 30), (8, 8)])
def test_unless_given_a_square_has_seven_eighths_of_the_side(side, square):
    assert Crop().fitted(side).canvas_px == square
    assert Crop().fitted(99).fitted(side).canvas_px == square
    assert Crop(canvas_px=20).fitted(side).canvas_px == 20


def test_tables_tell_the_side_in_the_name():
    config = Config(distortion={"crop": {"canvas_px": 26}}, backbone="FCN", transform="none")
    assert config.cell == Cell("crop26", "FCN", "none")
    assert config.cell.title == "FCN on crop26"
    again = Cell("crop26", "FCN", "none").overrides
    assert again[0] == "distortion={crop: {canvas_px: 26}}"
    for name in DISTORTIONS:
        assert Cell(name, "FCN", "none").overrides[0] == f"distortion={name}"


def test_the_network_sees_what_is_cut_out():
    config = Config(distortion="crop", backbone="FCN", transform="Aff")
    network = config.build_network(photographs(1, 28).format)
    assert network(torch.rand(2, 3, 26, 26)).shape == (2, 2)
