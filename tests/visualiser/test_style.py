"""What pictures have in common: images as matplotlib takes them, names, saving."""

import pytest
import torch
from matplotlib.figure import Figure

from stn_train.visualiser import style


def test_one_channel_is_grey_three_are_colours_others_their_mean():
    image = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))
    assert style.pixels_of(image[:1]).tolist() == image[0].tolist()
    colours = torch.as_tensor(style.pixels_of(image[:3], brightest=2.0))
    torch.testing.assert_close(colours, image[:3].permute(1, 2, 0) / 2)
    torch.testing.assert_close(torch.as_tensor(style.pixels_of(image)), image.mean(0))


def test_two_channels_have_a_colour_each_and_are_white_together():
    image = torch.zeros(2, 1, 4)
    image[0, 0, 1] = image[1, 0, 2] = 1
    image[:, 0, 3] = 1
    nothing, first, second, both = style.pixels_of(image)[0].tolist()
    assert (nothing, first, second) == ([0, 0, 0], *map(pytest.approx, style.TWO_CHANNELS))
    assert both == [1, 1, 1]
    halved = torch.as_tensor(style.pixels_of(image, brightest=2.0))
    torch.testing.assert_close(halved, torch.as_tensor(style.pixels_of(image / 2)))


def test_colours_beyond_their_range_are_cut():
    image = torch.tensor([-0.5, 0.5, 1.5])[:, None, None]
    assert style.pixels_of(image).tolist() == [[[0.0, 0.5, 1.0]]]


def test_grid_lines_run_from_border_to_border():
    grid = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(5.0), indexing="xy"), -1)
    lines = style.grid_lines(grid)  # 5 rows of 9 points
    assert len(lines) == 2 * style.GRID_LINES
    assert lines[0].tolist() == grid[0].tolist()
    assert lines[style.GRID_LINES - 1].tolist() == grid[-1].tolist()
    assert lines[-1].tolist() == grid[:, -1].tolist()


def test_only_long_names_are_cut():
    assert style.short("Ankle boot") == "Ankle boot"
    cut = style.short("a" * 40)
    assert len(cut) == style.NAME_LENGTH
    assert cut.endswith("…")


def test_long_texts_are_written_smaller():
    assert style.fitting_size("3 → 5 (99 %)", 1.3, 9) == 9
    long, longer = (style.fitting_size("x" * count, 1.3, 9) for count in (30, 60))
    assert 9 > long == pytest.approx(2 * longer)


def test_only_the_ten_digits_are_called_digits():
    assert style.word_for_images([*"0123456789"]) == "digits"
    assert style.word_for_class([*"0123456789"]) == "digit"
    assert style.word_for_images([*"01234567890"]) == "images"
    assert style.word_for_class(["bag", "shirt"]) == "class"


def test_figure_is_saved_into_a_new_folder_in_the_format_of_its_name(tmp_path):
    path = style.save(Figure(), tmp_path / "made" / "picture.PNG")
    assert path.read_bytes().startswith(b"\x89PNG")
