"""Addition: what is shown, what is asked, and that it is the same for everybody."""

import pytest
import torch

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import ImageFormat
from stn_train.runs.directory import load_run
from stn_train.table.paper import TABLES, published_for
from stn_train.tasks.addition import Addition
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples, draw_pass
from stn_train.visualiser.animation import Page, sweep_frames
from stn_train.visualiser.charts import pictures_of
from stn_train.visualiser.pages import digits_page, grid_colours, inspect

MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))


def addition(distortion="RTS"):
    return Addition().with_distortion(DISTORTIONS[distortion]())


@pytest.fixture(scope="module")
def digits(all_mnist):
    return all_mnist[1][:300]


def test_the_answers_are_the_sums_of_two_digits():
    assert addition().classes(MNIST) == tuple(map(str, range(19)))
    assert addition().outputs(MNIST) == 19
    assert addition().shape(MNIST) == (2, 42, 42)
    assert addition("R").shape(ImageFormat((3, 28, 28), ("a", "b"))) == (6, 28, 28)


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_each_channel_is_a_digit_distorted_by_itself(distortion, digits):
    task = addition(distortion)
    draws = task.draw(digits, torch.Generator().manual_seed(3))
    index = torch.tensor([5, 0, 299, 5])
    inputs, sums, _ = task.batch(digits, index, tuple(each[index] for each in draws))
    *both, partners = draws
    half = len(both) // 2
    for row, first in enumerate(index.tolist()):
        second = int(partners[first])
        assert int(sums[row]) == int(digits.labels[first]) + int(digits.labels[second])
        for channel, digit, own in ((0, first, both[:half]), (1, second, both[half:])):
            alone = task.distortion.apply(
                digits, torch.tensor([digit]), tuple(each[first : first + 1] for each in own)
            )
            torch.testing.assert_close(inputs[row, channel], alone[0, 0], rtol=0, atol=1e-5)


def test_a_slice_is_the_same_as_its_indices(digits):
    examples = Examples.for_test(addition(), digits, 0)
    for part in (slice(290, None), slice(7, 19)):
        sliced = examples.batch(part)
        indexed = examples.batch(torch.arange(300)[part])
        assert sliced.inputs.equal(indexed.inputs)
        assert sliced.targets.equal(indexed.targets)


def test_a_pass_shows_every_digit_once_beside_a_partner_drawn_anew(digits):
    passes = [draw_pass(addition(), digits, 1, number, number) for number in (0, 1)]
    partners = []
    for each in passes:
        assert each.order.sort().values.equal(torch.arange(300))
        partners.append(each.draws[-1][each.order.argsort()])
        assert 0 <= int(partners[-1].min()) <= int(partners[-1].max()) < 300
        assert 150 < len(partners[-1].unique()) < 230  # 300 (1 - 1/e) = 190 of 300 draws
    assert float((partners[0] == partners[1]).float().mean()) < 0.05
    first, second, _ = passes[0].draws
    correlation = torch.corrcoef(torch.stack([first[:, 0], second[:, 0]]))[0, 1]
    assert abs(float(correlation)) < 0.2  # the two angles


def test_test_pairs_are_fixed_and_hashed(digits):
    one, same, other = (Examples.for_test(addition(), digits, draw) for draw in (0, 0, 1))
    assert one.sha256() == same.sha256() != other.sha256()
    assert all(a.equal(b) for a, b in zip(one.draws, same.draws, strict=True))
    plain = Examples.for_test(Classification().with_distortion(one.task.distortion), digits, 0)
    assert plain.sha256() != one.sha256()
    swapped = Examples(one.task, digits, (*one.draws[:-1], one.draws[-1].flip(0)))
    assert swapped.sha256() != one.sha256()


def test_the_test_set_of_the_paper_has_not_changed(all_mnist):
    """The hash that results carry."""
    examples = Examples.for_test(addition(), all_mnist[1], 0)
    assert examples.sha256() == "2a1b558477f10a92644ca5dc81206f33ed0cf9299a63f4e64166549bc5629a66"


# The table, and a run with two transformers.


def test_published_errors_are_those_of_appendix_a_1():
    printed = {
        "FCN": 47.7,
        "CNN": 14.7,
        "ST-FCN Aff": 22.6,
        "ST-FCN Proj": 18.5,
        "ST-FCN TPS": 19.1,
        "2xST-FCN Aff": 9.0,
        "2xST-FCN Proj": 5.9,
        "2xST-FCN TPS": 5.8,
    }
    table = TABLES["addition"]
    assert {cell.model: table.published(cell) for cell in table.cells} == printed
    config = Config(
        task="addition",
        distortion="RTS",
        backbone="FCN",
        transform="TPS",
        transformers={"front": {"count": 2}},
    )
    assert published_for(config) == 5.8
    assert published_for(Config(distortion="RTS", backbone="FCN", transform="TPS")) == 0.8


@pytest.fixture(scope="module")
def two(tmp_path_factory, splits, tiny):
    """A short run of two transformers that add."""
    from conftest import CPU, Finished

    from stn_train.runs.directory import RunDirectory
    from stn_train.trainer.loop import train

    config = tiny(
        task="addition",
        distortion="RTS",
        transformers={"front": {"count": 2}},
        data={"test_digits": 50},
        train={"epochs": 1},
    )
    run = RunDirectory.claim(tmp_path_factory.mktemp("addition") / "two")
    return Finished(config, run, train(config, splits, run, CPU))


def test_a_run_is_of_its_cell_and_can_be_read_again(two, splits):
    result = two.result.result
    assert (result.task, result.cell) == ("addition", Cell("RTS", "FCN", "2xAff"))
    assert (len(result.confusion), sum(map(sum, result.confusion))) == (19, 200)
    records = [each for each in two.run.read_metrics() if each["kind"] == "transformer"]
    assert {"theta_spread.transformer.0", "theta_spread.transformer.1"} <= records[0].keys()
    again = load_run(two.run.path)
    expected = two.result.model.eval()(torch.zeros(2, 2, 42, 42))
    assert again.model(torch.zeros(2, 2, 42, 42)).equal(expected)


def test_pictures_show_the_grid_of_each_transformer_in_a_colour_of_its_own(two, splits):
    run = load_run(two.run.path)
    assert pictures_of(run.config) == ["grid", "means", "classes", "curves"]
    examples = Examples.for_test(run.config.task, splits.test, 0)
    inspected = inspect(run, examples, torch.arange(3))
    assert inspected.inputs.shape == (3, 2, 42, 42)
    assert [*inspected.grids] == [*inspected.outputs] == ["transformer.0", "transformer.1"]
    assert len(set(grid_colours(inspected).values())) == 2
    page = digits_page(run, splits.test, count=2)
    assert len(page.subfigs[1].subfigs[0].axes) == 3  # the input, and what each makes of it
    frame = next(sweep_frames(run, splits.test))
    drawn = Page(frame.inspected)
    assert [len(lines) for lines in drawn.lines] == [2] * len(frame.inspected.inputs)
