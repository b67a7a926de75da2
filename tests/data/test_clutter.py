"""Translated and cluttered images, against a version that adds pixel by pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.data.clutter import Clutter
from stn_train.data.distortions import Translation
from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples, draw_pass


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(count=12, channels=1, side=28):
    """Images with nothing regular about them, in ten classes."""
    pixels = torch.randint(256, (count, channels, side, side), generator=seeded(0)).byte()
    return Images(pixels, torch.arange(count) % 10, tuple("0123456789"))


def drawn(distortion, images, seed=1):
    return distortion.draws(images, seeded(seed))


def apply_all(distortion, images, draws):
    return distortion.apply(images, slice(None), draws)


def slowly_cluttered(images, which, draws, clutter):
    """One image: pieces first, one after another, then the image; each sum clipped at once."""
    place, sources, cuts, puts = (draw.tolist() for draw in draws)
    pixels = images.pixels.numpy()
    channels, side = pixels.shape[1], clutter.canvas_px
    canvas = np.zeros((channels, side, side), int)
    size = clutter.patch_px
    squares = [
        (pixels[source][:, y : y + size, x : x + size], put)
        for source, (x, y), put in zip(sources, cuts, puts, strict=True)
    ]
    for values, (left, top) in [*squares, (pixels[which], place)]:
        _, height, width = values.shape
        for row in range(height):
            for column in range(width):
                there = canvas[:, top + row, left + column]
                there[:] = np.minimum(there + values[:, row, column], 255)
    return canvas.astype(np.float32) / np.float32(255)


@pytest.mark.parametrize(
    ("clutter", "channels", "side"),
    [
        (Clutter(), 1, 28),
        (Clutter(canvas_px=84, patches=16), 1, 28),
        (Clutter(patches=40, patch_px=11), 3, 28),
        (Clutter(patch_px=5), 3, 33),
        (Clutter(patches=2), 1, 8),
        (Clutter(canvas_px=28, patches=2, patch_px=28), 1, 28),  # whole images on top of each other
        (Clutter(patches=0), 1, 28),
    ],
    ids=repr,
)
def test_clutter_equals_the_pixel_by_pixel_version(clutter, channels, side):
    images, clutter = noise(5, channels, side), clutter.fitted(side)
    draws = drawn(clutter, images)
    for index in (torch.tensor([4, 0, 2]), slice(1, 3)):
        ours = clutter.apply(images, index, tuple(draw[index] for draw in draws))
        whole = torch.arange(5)[index].tolist()
        assert len(ours) == len(whole)
        for which, cluttered in zip(whole, ours, strict=True):
            own = tuple(draw[which] for draw in draws)
            expected = slowly_cluttered(images, which, own, clutter)
            np.testing.assert_array_equal(cluttered, expected)


def test_sums_are_clipped_at_white():
    white = Images(torch.full((3, 1, 28, 28), 255).byte(), torch.zeros(3).long(), ("white",))
    clutter = Clutter(patches=200)
    canvas = apply_all(clutter, white, drawn(clutter, white))
    assert canvas.unique().tolist() == [0.0, 1.0]


def test_the_image_lies_wholly_inside_at_every_place():
    """With no pieces: all of its pixels, and nothing else, at each of three places each way."""
    images = noise(4000, side=8)
    clutter = Clutter(patches=0, canvas_px=10).fitted(8)
    draws = drawn(clutter, images)
    canvas = apply_all(clutter, images, draws)
    torch.testing.assert_close(canvas.sum((1, 2, 3)) * 255, images.pixels.sum((1, 2, 3)).float())
    counts = torch.bincount(draws[0][:, 0] * 3 + draws[0][:, 1], minlength=9)
    assert (counts - 4000 / 9).abs().max() < 4 * (4000 / 9) ** 0.5  # every place as often


def test_draws_reach_from_edge_to_edge_each_value_as_often():
    images = noise(3000)
    place, sources, cut, put = drawn(Clutter(), images)
    assert (place.shape, sources.shape) == ((3000, 2), (3000, 6))
    assert cut.shape == put.shape == (3000, 6, 2)
    for values, most in ((place, 60 - 28), (sources, 2999), (cut, 28 - 6), (put, 60 - 6)):
        assert (values.min(), values.max()) == (0, most)
        mean = values.double().mean()
        deviation = ((most + 1) ** 2 - 1) / 12
        assert abs(mean - most / 2) < 4 * (deviation / values.numel()) ** 0.5


def test_an_empty_piece_is_not_drawn_again():
    """Where half of the images are empty, half of the pieces are."""
    images = noise(2000)
    images.pixels[::2] = 0
    clutter = Clutter()
    place, sources, cut, put = drawn(clutter, images)
    assert abs((sources % 2 == 0).double().mean() - 0.5) < 4 * 0.5 / sources.numel() ** 0.5
    empty = torch.arange(0, 2000, 2)[(sources[::2] % 2 == 0).all(1)]
    assert len(empty) > 5  # about 1000 / 2**6: all six pieces are of empty images
    picked = tuple(draw[empty] for draw in (place, sources, cut, put))
    assert not clutter.apply(images, empty, picked).any()


def test_pieces_may_be_of_any_image_of_the_set_whichever_are_shown():
    images = noise(50)
    _, sources, *_ = drawn(Clutter(), images)
    assert set(sources[:20].flatten().tolist()) > set(range(45, 50))


# Translation.


@pytest.mark.parametrize("canvas", [60, 61, 84, 28])
def test_translation_is_the_image_moved_by_whole_pixels(canvas):
    images, translation = noise(20), Translation(canvas_px=canvas)
    (shifts,) = drawn(translation, images)
    canvases = apply_all(translation, images, (shifts,))
    room = canvas - 28
    left_top = shifts + room / 2
    assert left_top.equal(left_top.round())
    for image, (left, top), moved in zip(
        images.pixels, left_top.int().tolist(), canvases, strict=True
    ):
        expected = F.pad(image, (left, room - left, top, room - top)) / 255
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_translation_is_clutter_without_pieces():
    images = noise()
    moved = apply_all(Translation(), images, drawn(Translation(), images))
    bare = Clutter(patches=0)
    torch.testing.assert_close(
        moved, apply_all(bare, images, drawn(bare, images)), rtol=0, atol=1e-4
    )
    with_pieces = apply_all(Clutter(), images, drawn(Clutter(), images))  # the same places
    assert (with_pieces >= moved - 1e-4).all()


# Examples: their hash, and their independence of batches.


def examples(images, **settings):
    task = Classification().with_distortion(Clutter(**settings))
    return Examples.for_test(task, images, 0)


def test_hash_tells_settings_and_the_images_that_pieces_are_cut_from():
    images, other = noise(), noise()
    other.pixels[7, 0, 3, 3] ^= 255
    task = examples(images).task
    found = {
        examples(images).sha256(),
        examples(images, patches=5).sha256(),
        examples(images, patch_px=5).sha256(),
        examples(images, canvas_px=61).sha256(),
        examples(other).sha256(),
        Examples.for_test(task, images, 1).sha256(),
        Examples.for_test(task.with_distortion(Translation()), images, 0).sha256(),
    }
    assert len(found) == 7
    assert examples(noise()).sha256() == examples(images).sha256()


def test_hash_tells_where_pieces_come_from_and_lie():
    images = noise()
    whole = examples(images)
    hashes = {whole.sha256()}
    for number in range(4):
        draws = [draw.clone() for draw in whole.draws]
        draws[number].view(-1)[0] += 1
        hashes.add(Examples(whole.task, images, tuple(draws)).sha256())
    assert len(hashes) == 5


@pytest.mark.parametrize("size", [1, 5, 12])
def test_any_batch_gives_the_same_images(size):
    shown = examples(noise())
    whole = shown.batch(slice(None)).inputs
    parts = [shown.batch(slice(start, start + size)).inputs for start in range(0, 12, size)]
    assert torch.cat(parts).equal(whole)


@pytest.mark.parametrize("size", [1, 5])
def test_a_pass_does_not_depend_on_the_size_of_its_batches(size):
    images, task = noise(), Classification().with_distortion(Clutter())
    passed = draw_pass(task, images, 3, 0, 0)
    whole = task.batch(images, passed.order, passed.draws).inputs
    parts = [task.batch(images, part.order, part.draws).inputs for part in passed.batches(size)]
    assert torch.cat(parts).equal(whole)


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"canvas_px": 27}, r"canvas_px is 27; for images of 28 px it must be 28 to 1024"),
        ({"patch_px": 29}, r"patch_px is 29; for images of 28 px it must be 1 to 28"),
        ({"patch_px": 0}, r"patch_px"),
        ({"patches": -1}, r"patches"),
        ({"patches": 6.5}, r"patches"),
        ({"patch": 6}, r"patch"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"distortion": {"TC": settings}})


def test_impossible_settings_are_told_with_the_override():
    with pytest.raises(ConfigError, match=r"patch_px is 30; for images of 28 px"):
        load_config("tc_affine", ["distortion.TC.patch_px=30"])
    with pytest.raises(ConfigError, match=r"canvas_px is 20; for images of 28 px"):
        load_config("tc_affine", ["distortion.TC.canvas_px=20"])


def test_pieces_as_large_as_small_images_are_allowed():
    config = load_config(
        "tc_affine_fcn",
        ["data.source={folder: {path: x, size: 32}}", "distortion.TC.patch_px=32"],
    )
    assert (config.distortion.patch_px, config.distortion.canvas_px) == (32, 69)


def test_translated_digits_need_no_config_of_their_own():
    config = load_config("tc_affine", ["distortion=T", "distortion.T.canvas_px=84"])
    assert config.distortion == Translation(canvas_px=84)
    assert config.title == "ST-CNN Aff on T"


def test_images_of_another_size_are_refused():
    images = noise(side=32)
    with pytest.raises(ValueError, match=r"\(B, C, 28, 28\), got torch.uint8 \(12, 1, 32, 32\)"):
        apply_all(Clutter(), images, drawn(Clutter(), images))
