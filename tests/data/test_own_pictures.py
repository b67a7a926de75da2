"""Pictures of one's own: conversions against MNIST itself, and what is refused."""

import pytest
import torch
from PIL import Image, ImageDraw

from stn_train.data.own_pictures import SUFFIXES, as_digit, ink, pictures_in
from stn_train.data.pictures import open_picture
from stn_train.data.sources import SOURCES
from stn_train.errors import DataError


def bar(mode="L", size=(60, 90), paper=255, pen=0, at=(10, 5, 16, 45)) -> Image.Image:
    """A picture with an upright bar of 6 x 40 px."""
    picture = Image.new(mode, size, paper)
    ImageDraw.Draw(picture).rectangle((at[0], at[1], at[2] - 1, at[3] - 1), fill=pen)
    return picture


def assert_is_bar(digit: torch.Tensor) -> None:
    """20 px high, 3 wide, in the middle of 28 x 28, white on black."""
    expected = torch.zeros(28, 28)
    expected[4:24, 13:16] = 255
    assert digit.dtype == torch.uint8
    assert digit.shape == (1, 28, 28)
    assert float((digit[0] - expected).abs().max()) <= 1


@pytest.mark.parametrize(
    "picture",
    [
        bar(),
        bar(paper=0, pen=255),
        bar(paper=120, pen=250),
        bar(paper=200, pen=90),
        bar("RGB", paper=(250, 240, 200), pen=(20, 20, 90)),
        bar("RGBA", paper=(0, 0, 0, 0), pen=(0, 0, 0, 255)),
        bar("RGBA", paper=(255, 255, 255, 0), pen=(255, 255, 255, 255)),
        bar("LA", paper=(9, 0), pen=(10, 255)),
        bar("1", paper=1),
        bar(size=(300, 50)),
        bar(at=(40, 45, 46, 85)),
    ],
    ids=[
        *("black on white", "white on black", "grey", "dark on grey", "ink", "transparent"),
        *("white, transparent", "grey and opacity", "one bit", "wide", "elsewhere"),
    ],
)
def test_a_bar_is_centred_and_scaled_whatever_it_is_drawn_on(picture):
    assert_is_bar(as_digit(picture, 28))


def test_grain_and_shadows_are_background():
    generator = torch.Generator().manual_seed(0)
    shade = torch.linspace(0.85, 1, 90)[:, None] * 220 + 8 * torch.rand(90, 60, generator=generator)
    shade[5:45, 10:16] = 10
    assert_is_bar(as_digit(Image.fromarray(shade.byte().numpy()), 28))


def test_a_thin_stroke_stays_bright():
    picture = Image.new("L", (800, 800), 255)
    ImageDraw.Draw(picture).line((400, 100, 400, 700), fill=0, width=3)
    digit = as_digit(picture, 28)
    assert digit.max() == 255
    assert int((digit.amax(2) > 100).sum()) == 20


@pytest.mark.parametrize("shade", [0, 77, 255])
def test_a_plain_picture_is_black(shade):
    assert not as_digit(Image.new("L", (30, 20), shade), 28).any()


def test_a_file_that_shows_nothing_is_named(tmp_path):
    Image.new("L", (30, 20), 200).save(tmp_path / "plain.png")
    with pytest.raises(DataError, match=r"plain\.png is plain: nothing"):
        SOURCES["mnist"]().picture(tmp_path / "plain.png", (1, 28, 28))


def test_a_single_pixel_fills_the_box():
    picture = Image.new("L", (9, 9))
    picture.putpixel((2, 7), 255)
    assert int((as_digit(picture, 28) == 255).sum()) == 400


def test_digits_of_mnist_stay_as_they_are(all_mnist):
    """They were made in this way; shifted by a pixel they would differ by 16 of 255."""
    _, test = all_mnist
    digits = test.pixels[:200]
    for polarity in (digits, 255 - digits):
        again = torch.stack([as_digit(Image.fromarray(each[0].numpy()), 28) for each in polarity])
        away = (again.float() - digits.float()).abs().mean((1, 2, 3))
        assert float((away < 3).float().mean()) > 0.9  # else the edge of its box was faint
        enlarged = [Image.fromarray(each[0].numpy()).resize((140, 140)) for each in polarity]
        larger = torch.stack([as_digit(each, 28) for each in enlarged])
        assert float((larger.float() - digits.float()).abs().mean((1, 2, 3)).median()) < 8


def test_the_centre_of_mass_lies_in_the_middle():
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).polygon([(5, 5), (35, 5), (5, 35)], fill=255)
    digit = as_digit(picture, 28)[0].double()
    places = torch.arange(28)
    for profile in (digit.sum(0), digit.sum(1)):
        assert float((places * profile).sum() / profile.sum()) == pytest.approx(14, abs=0.5)


def test_ink_is_a_share_of_the_greatest_difference():
    found = ink(bar(paper=200, pen=100))
    assert sorted(found.unique().tolist()) == [0, 1]


# Sources.


@pytest.mark.parametrize("name", ["mnist", "emnist", "kmnist", "qmnist", "fashion_mnist"])
def test_sources_of_28_px_make_digits(name, tmp_path):
    bar().save(tmp_path / "bar.png")
    pixels = SOURCES[name]().picture(tmp_path / "bar.png", (1, 28, 28))
    height = int(pixels[0].amax(1).count_nonzero())
    assert height == (28 if name == "fashion_mnist" else 20)


def test_a_folders_own_conversion_is_used(tmp_path):
    picture = bar("RGB", size=(40, 40), paper=(10, 200, 30), pen=(90, 0, 0))
    picture.save(tmp_path / "bar.png")
    source = SOURCES["folder"](path=str(tmp_path), size=40, colour=True)
    pixels = source.picture(tmp_path / "bar.png", (3, 40, 40))
    assert pixels[:, 39, 39].tolist() == [10, 200, 30]
    assert pixels[:, 20, 12].tolist() == [90, 0, 0]


# Files and folders.


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        open_picture(tmp_path / "a.png")


def test_a_missing_file_and_a_folder_are_told_as_such(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        open_picture(tmp_path)


def write(*paths) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        bar().save(path, format="PNG")


def test_pictures_lie_in_the_folder_or_in_those_of_classes(tmp_path):
    write(tmp_path / "flat" / "b.PNG", tmp_path / "flat" / "a.jpeg", tmp_path / "flat" / ".c.png")
    (tmp_path / "flat" / "notes.txt").write_text("no picture")
    found = pictures_in(tmp_path / "flat", ["x"])
    assert [(each.path.name, each.label) for each in found] == [("a.jpeg", None), ("b.PNG", None)]
    write(tmp_path / "deep" / "T_top" / "more" / "a.png", tmp_path / "deep" / "bag" / "b.png")
    (tmp_path / "deep" / ".git").mkdir()
    found = pictures_in(tmp_path / "deep", ["bag", "T/top"])
    assert [(each.path.name, each.label) for each in found] == [("a.png", 1), ("b.png", 0)]


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    with pytest.raises(DataError, match="nothing is no folder"):
        pictures_in(tmp_path / "nothing", ["0"])
    with pytest.raises(DataError, match=rf"holds no picture: .*\{SUFFIXES[0]}"):
        pictures_in(tmp_path, ["0"])
    (tmp_path / "0").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        pictures_in(tmp_path, ["0"])
    write(tmp_path / "cat" / "a.png", tmp_path / "dog" / "a.png")
    with pytest.raises(DataError, match=r"no class of the model: cat, dog\n.* are 0, 1; "):
        pictures_in(tmp_path, ["0", "1"])
    write(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"both pictures, a\.png for one, and folders"):
        pictures_in(tmp_path, ["0", "cat", "dog"])
