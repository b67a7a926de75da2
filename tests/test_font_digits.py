"""The embedded digits: their number, look and use."""

import shutil
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.ft2font import FT2Font

from stn_train.errors import DataError
from stn_train.font_digits import (
    FINE,
    REACH,
    TEST_FACES,
    TRAIN_FACES,
    load_glyphs,
    outline_distance,
    rasterise,
    render_font_digits,
    stroke_width,
)

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


@pytest.fixture(scope="module")
def digits():
    return render_font_digits(1000, 300, seed=0)


def test_images_are_bytes_and_labels_are_classes(digits):
    for part, count in zip(digits, (1000, 300), strict=True):
        assert part.images.shape == (count, 28, 28)
        assert part.images.dtype == torch.uint8
        assert part.labels.shape == (count,)
        assert part.labels.dtype == torch.int64
        assert part.images.amax((1, 2)).min() > 200


def test_classes_come_equally_often_in_shuffled_order(digits):
    for part in digits:
        assert part.labels.bincount(minlength=10).unique().tolist() == [len(part) // 10]
        assert not torch.equal(part.labels, torch.arange(len(part)) % 10)
    uneven, _ = render_font_digits(37, 1, seed=0)
    assert uneven.labels.bincount(minlength=10).tolist() == [4] * 7 + [3] * 3


def test_the_seed_decides_every_bit(digits):
    again = render_font_digits(1000, 300, seed=0)
    other = render_font_digits(1000, 300, seed=1)
    for part, same, different in zip(digits, again, other, strict=True):
        assert part.sha256() == same.sha256()
        assert part.sha256() != different.sha256()


def test_one_side_of_the_split_does_not_depend_on_the_size_of_the_other(digits):
    assert render_font_digits(10, 300, seed=0)[1].sha256() == digits[1].sha256()
    assert render_font_digits(1000, 10, seed=0)[0].sha256() == digits[0].sha256()


def test_no_two_digits_are_the_same(digits):
    images = torch.cat([part.images for part in digits]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


def test_digits_lie_centred_in_a_dark_frame(digits):
    for part in digits:
        assert part.images[:, [0, -1]].max() <= 10
        assert part.images[:, :, [0, -1]].max() <= 10
        mean = part.images.double().mean(0)
        line = torch.arange(28) - 13.5
        assert abs((mean.sum(0) @ line.double()) / mean.sum()) < 0.5
        assert abs((mean.sum(1) @ line.double()) / mean.sum()) < 0.5
        assert mean[4:24, 4:24].sum() > 0.95 * mean.sum()


def test_classes_can_be_told_apart_across_faces(digits):
    train, test = digits
    means = torch.stack([train.images[train.labels == c].double().mean(0) for c in range(10)])
    nearest = torch.cdist(test.images.double().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test.labels).double().mean() > 0.85


def test_no_test_face_is_a_train_face():
    assert not set(TRAIN_FACES) & set(TEST_FACES)
    assert len({*TRAIN_FACES, *TEST_FACES}) == len(TRAIN_FACES) + len(TEST_FACES)


@pytest.mark.parametrize("face", [*TRAIN_FACES, *TEST_FACES])
def test_every_face_has_the_ten_digits(face):
    path = FONTS / f"{face}.ttf"
    if not path.is_file():
        pytest.skip(f"matplotlib {matplotlib.__version__} does not ship {face}")
    font = FT2Font(str(path))
    assert all(font.get_char_index(ord(digit)) for digit in "0123456789")


def test_glyphs_are_upright_and_fill_twenty_pixels():
    ink = rasterise(FONTS / "DejaVuSans.ttf")
    for glyph in ink:
        rows, columns = glyph.any(1).nonzero(), glyph.any(0).nonzero()
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert abs(max(height, width) - 20 * FINE) <= 2
        assert abs(rows[0] + rows[-1] - (28 * FINE - 1)) <= 1
        assert abs(columns[0] + columns[-1] - (28 * FINE - 1)) <= 1
    middle = 14 * FINE
    top, bottom = ink[:, :middle].sum((1, 2)), ink[:, middle:].sum((1, 2))
    left, right = ink[:, :, :middle].sum((1, 2)), ink[:, :, middle:].sum((1, 2))
    assert bottom[6] > top[6]
    assert top[9] > bottom[9]
    assert right[3] > left[3]


def test_outline_distance_of_a_disc_is_the_distance_from_its_circle():
    line = torch.arange(112) - 55.5
    radius = (line[:, None].square() + line.square()).sqrt()
    expected = (30 - radius).clamp(0.5 - REACH, REACH - 0.5) / FINE
    disc = (radius < 30).expand(10, -1, -1)
    torch.testing.assert_close(
        outline_distance(disc), expected.expand(10, -1, -1), rtol=0, atol=1 / FINE
    )


def test_stroke_width_of_a_bar_is_its_width():
    bar = torch.zeros(10, 112, 112, dtype=torch.bool)
    bar[:, 16:96, 50 : 50 + 3 * FINE] = True
    # The ends of the bar count as outline too: 2 * 20 * 3 / (20 + 3 + 20 + 3).
    torch.testing.assert_close(
        stroke_width(outline_distance(bar)[None]), torch.full((1, 10), 2.61), rtol=0.05, atol=0
    )


def test_faces_that_matplotlib_does_not_ship_are_left_out(monkeypatch, tmp_path):
    folder = tmp_path / "fonts" / "ttf"
    folder.mkdir(parents=True)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"has none of the faces DejaVuSans, "):
        render_font_digits(10, 10, seed=0)
    shutil.copy(FONTS / "cmr10.ttf", folder)
    assert load_glyphs(TRAIN_FACES).shape == (1, 10, 112, 112)


@pytest.mark.parametrize(("train", "test"), [(0, 10), (10, -1)])
def test_at_least_one_digit_on_either_side(train, test):
    with pytest.raises(ValueError, match=f"got train={train}, test={test}"):
        render_font_digits(train, test, seed=0)
