"""Pages of images: that they show what they say they show."""

import pytest
import torch
from matplotlib.collections import LineCollection
from torch import nn
from untrained import (
    WithoutClasses,
    deep_network,
    in_colour,
    parallel_network,
    run_of,
    some_digits,
    texts,
    untrained_run,
)

from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.models.network import Network
from stn_train.tasks import TASKS
from stn_train.tasks import examples as examples_of_tasks
from stn_train.tasks.base import Batch
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples
from stn_train.visualiser import pages
from stn_train.visualiser.style import GRID_COLOURS


def shown(axis) -> torch.Tensor:
    """The pixels of the image on an axis."""
    return torch.as_tensor(axis.images[0].get_array().data)


def test_page_draws_each_digit_with_its_grid_and_the_prediction(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R", transform="TPS")
    figure = pages.digits_page(run, test, count=7)
    assert len(figure.findobj(LineCollection)) == 7
    assert len(figure.axes) == 14
    assert "ST-CNN TPS on R: test digits" in texts(figure)
    assert "Left: the input" in texts(figure)
    assert texts(figure).count(" %)") == 7


def test_page_of_a_baseline_has_inputs_alone(tmp_path):
    run, test = untrained_run(tmp_path, distortion="E", transform="none", backbone="FCN")
    figure = pages.digits_page(run, test, count=5)
    assert len(figure.axes) == 5
    assert not figure.findobj(LineCollection)
    assert "Left" not in texts(figure)


def test_grid_of_the_identity_lies_on_the_pixel_centres(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R", transform="Aff")
    examples = Examples.for_test(run.config.task, test, 0)
    inspected = pages.inspect(run, examples, torch.arange(3))
    (grid,) = inspected.grids.values()
    x = torch.arange(28.0).expand(28, 28)
    torch.testing.assert_close(grid[0], torch.stack([x, x.T], dim=-1), atol=1e-4, rtol=0)


def test_mistakes_are_all_wrong_and_the_most_confident_comes_first(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R")
    examples = Examples.for_test(run.config.task, test, 0)
    index = pages.worst_mistakes(run, examples)
    answers = pages.inspect(run, examples, index).answers
    assert len(index) > 10
    assert not any(answer.right for answer in answers)
    confidences = torch.tensor([answer.percent for answer in answers])
    assert (confidences.diff() <= 1e-4).all()


def test_page_of_mistakes_shows_mistakes_alone(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R")
    figure = pages.digits_page(run, test, count=4, misclassified=True)
    captions = [line for line in texts(figure).splitlines() if line.endswith(" %)")]
    assert "the most confident mistakes" in texts(figure)
    assert len(captions) == 4
    assert all(line[0] != line.split(" → ")[1][0] for line in captions)


def test_images_are_taken_in_turn_from_every_class():
    labels = torch.tensor([3, 3, 0, 1, 3, 0])
    images = Images(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), labels, tuple("abcd"))
    assert pages.one_of_each(images).tolist() == [2, 3, 0, 5, 1, 4]


# Several transformers, colours, names, other shapes.


def test_parallel_transformers_have_a_grid_and_an_output_each(tmp_path):
    run = run_of(tmp_path, parallel_network(), some_digits(), distortion="R")
    figure = pages.digits_page(run, some_digits(), count=6)
    assert len(figure.axes) == 6 * 3
    assert len(figure.findobj(LineCollection)) == 6 * 2
    assert "transformer.0, transformer.1" in texts(figure)
    for first, second in zip(figure.axes[1::3], figure.axes[2::3], strict=True):
        assert shown(first).shape == (14, 14)  # as the classifier sees it: pooled
        frames = [axis.spines["top"].get_edgecolor() for axis in (first, second)]
        assert frames[0] != frames[1]


def test_each_grid_is_drawn_where_its_own_transformer_reads(tmp_path):
    network = parallel_network()
    second = network.transformers["transformer.1"]
    second.regression.bias.data[2] = 2 / 28  # a pixel to the right
    run = run_of(tmp_path, network, some_digits(), distortion="R")
    examples = Examples.for_test(run.config.task, some_digits(), 0)
    inspected = pages.inspect(run, examples, torch.arange(3))
    grids = inspected.grids
    moved = grids["transformer.0"] + torch.tensor([1.0, 0.0])
    torch.testing.assert_close(grids["transformer.1"], moved, atol=1e-4, rtol=0)
    colours = pages.grid_colours(inspected)
    assert [colours[name] for name in grids] == [*GRID_COLOURS[:2]]


def test_there_may_be_more_transformers_than_colours(tmp_path):
    count = len(GRID_COLOURS) + 1
    run = run_of(tmp_path, parallel_network(count=count), some_digits(), distortion="R")
    figure = pages.digits_page(run, some_digits(), count=3)
    assert len(figure.findobj(LineCollection)) == 3 * count


def test_a_transformer_of_feature_maps_has_an_output_and_no_grid(tmp_path):
    run = run_of(tmp_path, deep_network(), some_digits(), distortion="R")
    assert run.model.front == []
    figure = pages.digits_page(run, some_digits(), count=5)
    assert len(figure.axes) == 5 * 2
    assert not figure.findobj(LineCollection)
    assert "features.1 (mean over channels)" in texts(figure)
    outputs = torch.stack([shown(axis) for axis in figure.axes[1::2]])
    assert outputs.shape == (5, 24, 24)
    assert (float(outputs.min()), float(outputs.max())) == (0, 1)


def test_three_channels_are_drawn_in_colour(tmp_path):
    test = in_colour(some_digits())
    run = run_of(tmp_path, parallel_network(3), test, distortion="R")
    figure = pages.digits_page(run, test, count=5)
    before, after = shown(figure.axes[0]), shown(figure.axes[1])
    assert (before.shape, after.shape) == ((28, 28, 3), (14, 14, 3))
    assert float(before[..., 0].max()) > 0.8
    assert not before[..., 2].any()
    means = pages.class_means(run, test)
    brightest = max(float(shown(axis).max()) for axis in means.axes)
    assert brightest == pytest.approx(1)


def test_classes_are_shown_by_their_shortened_names(tmp_path):
    digits = some_digits()
    test = Images(digits.pixels, digits.labels, tuple(f"class number {n}" for n in range(10)))
    run, _ = untrained_run(tmp_path, distortion="R")
    figure = pages.digits_page(run._replace(format=test.format), test, count=5)
    assert texts(figure).count("class numb… → class numb…") == 5
    assert "test images" in texts(figure)
    assert "true class" in texts(figure)


class Wide(Classification):
    """Inputs of 28 x 40 px."""

    def batch(self, images, index, draws):
        inputs, targets, _ = super().batch(images, index, draws)
        return Batch(nn.functional.pad(inputs, (6, 6)), targets)


def test_images_need_not_be_square(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "wide", Wide)
    network = Network()
    front = parallel_network().transformer[0]
    front.localisation = nn.Sequential(nn.Flatten(), nn.Linear(28 * 40, 4))
    network.add_module("transformer", front)
    network.add_module("classifier", nn.Sequential(nn.Flatten(), nn.Linear(28 * 40, 10)))
    run = run_of(tmp_path, network, some_digits(), distortion="R", task="wide")
    examples = Examples.for_test(run.config.task, some_digits(), 0)
    (grid,) = pages.inspect(run, examples, torch.arange(2)).grids.values()
    torch.testing.assert_close(grid[0, -1, -1], torch.tensor([39.0, 27.0]), atol=1e-4, rtol=0)
    figure = pages.digits_page(run, some_digits(), count=2)
    assert shown(figure.axes[0]).shape == (28, 40)
    assert figure.axes[0].get_xlim()[1] > figure.axes[0].get_ylim()[0]


def test_without_classes_there_are_pictures_but_no_mistakes(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "without", WithoutClasses)
    run, test = untrained_run(tmp_path, distortion="R", task="without")
    figure = pages.digits_page(run, test, count=5)
    assert len(figure.axes) == 10
    assert "→" not in texts(figure)
    with pytest.raises(ConfigError, match="no classes"):
        pages.digits_page(run, test, misclassified=True)
    assert len(pages.class_means(run, test).axes) == 40  # of the images' own classes


# Means.


def test_class_means_show_input_and_output_of_each_class(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R")
    figure = pages.class_means(run, test)
    assert len(figure.axes) == 40
    inputs, labels, _ = Examples.for_test(run.config.task, test, 0).batch(slice(None))
    torch.testing.assert_close(shown(figure.axes[3]), inputs[labels == 3, 0].mean(0))
    deviation = inputs[labels == 3, 0].std(0, correction=0)
    torch.testing.assert_close(shown(figure.axes[13]), deviation)
    assert figure.axes[20].get_ylabel() == "output:\nmean"


@pytest.mark.parametrize(
    ("network", "rows"),
    [
        (parallel_network, ["input", "transformer.0", "transformer.1"]),
        (deep_network, ["input", "output"]),
    ],
)
def test_class_means_have_rows_for_each_transformer(network, rows, tmp_path):
    run = run_of(tmp_path, network(), some_digits(), distortion="R")
    figure = pages.class_means(run, some_digits())
    names = [axis.get_ylabel() for axis in figure.axes[::10]]
    assert names == [f"{row}:\n{kind}" for row in rows for kind in ("mean", "deviation")]


def test_class_means_are_the_same_in_any_batches(tmp_path, monkeypatch):
    run, test = untrained_run(tmp_path, distortion="R", transform="Aff")
    trace, seen = run.model.trace, []

    def counted(inputs):
        seen.append(len(inputs))
        return trace(inputs)

    def means(batch: int) -> list[torch.Tensor]:
        monkeypatch.setattr(examples_of_tasks, "MOST_AT_ONCE", batch)
        seen.clear()
        return [shown(axis) for axis in pages.class_means(run, test).axes]

    monkeypatch.setattr(run.model, "trace", counted)
    whole = means(1000)
    assert seen == [100]
    parts = means(45)
    assert seen == [45, 45, 10]
    assert len(whole) == len(parts) == 40
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_class_means_take_the_first_images_of_a_large_set(tmp_path, monkeypatch):
    run, test = untrained_run(tmp_path, distortion="R")
    monkeypatch.setattr(pages, "MEANS_IMAGES", 40)
    figure = pages.class_means(run, test)
    assert "over 40 test digits" in texts(figure)
    inputs, labels, _ = Examples.for_test(run.config.task, test[:40], 0).batch(slice(None))
    torch.testing.assert_close(shown(figure.axes[3]), inputs[labels == 3, 0].mean(0))


def test_class_without_an_image_is_black(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R")
    figure = pages.class_means(run, test[test.labels != 4])
    assert not any(shown(axis).any() for axis in figure.axes[4::10])
    assert all(shown(axis).any() for axis in figure.axes[5::10])


def test_class_means_take_the_first_of_many_classes(tmp_path, monkeypatch):
    run, test = untrained_run(tmp_path, distortion="R")
    monkeypatch.setattr(pages, "MEANS_CLASSES", 4)
    figure = pages.class_means(run, test)
    assert len(figure.axes) == 16
    assert "the first 4 classes" in texts(figure)
