"""Examples and passes: their order and draws, and the hashes that results are identified by."""

import itertools

import pytest
import torch

from stn_train.data.distortion import distort
from stn_train.data.distortions import DISTORTIONS, Elastic, Projection
from stn_train.data.images import Images
from stn_train.runs.result import reference_results
from stn_train.tasks import TASKS
from stn_train.tasks.base import Task
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import WATCHED, Examples, draw_pass

EVERY_DISTORTION = pytest.mark.parametrize("name", DISTORTIONS)


def task_on(name, **changes):
    return Classification().with_distortion(DISTORTIONS[name](**changes))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# Hashes.

PUBLISHED = {result.cell.distortion: result.draws_sha256 for result in reference_results()}
"""The hashes of the test sets of our results, by distortion: ten draws each."""


def test_results_on_one_distortion_are_of_one_test_set():
    assert len(reference_results()) > len(PUBLISHED) > 1
    for result in reference_results():
        assert (result.data, result.test_digits) == ("mnist", 10_000)
        assert result.draws_sha256 == PUBLISHED[result.cell.distortion]
        assert result.test_sha256 == result.draws_sha256[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_draw_is_the_one_of_every_published_number(name, all_mnist):
    examples = Examples.for_test(task_on(name), all_mnist[1], 0)
    assert examples.sha256() == PUBLISHED[name][0]


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_draw_is_the_one_of_every_published_number(name, all_mnist):
    task = task_on(name)
    draws = range(len(PUBLISHED[name]))
    hashes = [Examples.for_test(task, all_mnist[1], draw).sha256() for draw in draws]
    assert hashes == PUBLISHED[name]


def noise(count=4, seed=0):
    pixels = torch.randint(1, 256, (count, 1, 28, 28), generator=seeded(seed)).byte()
    return Images(pixels, torch.arange(count), tuple("0123456789"))


def test_hash_depends_on_images_labels_distortion_and_draws():
    images, task = noise(), task_on("E")
    draws = task.draw(images, seeded(0))
    sha256 = Examples(task, images, draws).sha256()
    assert sha256 == Examples(task_on("E"), noise(), task.draw(noise(), seeded(0))).sha256()
    relabelled = Images(images.pixels, images.labels + 1, images.classes)
    others = {
        Examples(task, noise(seed=1), draws).sha256(),
        Examples(task, relabelled, draws).sha256(),
        Examples(task_on("E", canvas_px=30), images, draws).sha256(),
        Examples(task_on("P"), images, draws).sha256(),
        Examples(task, images, task.draw(images, seeded(1))).sha256(),
    }
    assert len(others | {sha256}) == 6


def test_hashes_tell_distortion_setting_draw_and_images_apart(splits):
    test = splits.test
    different = [
        Examples.for_test(task_on("R"), test, 0),
        Examples.for_test(task_on("R"), test, 1),
        Examples.for_test(task_on("R", max_angle_deg=89.0), test, 0),
        Examples.for_test(task_on("RTS"), test, 0),
        Examples.for_test(task_on("R"), test[:-1], 0),
        Examples.for_test(task_on("R"), Images(test.pixels, 9 - test.labels, test.classes), 0),
        Examples.for_test(task_on("none"), test, 0),
        Examples.for_test(task_on("none", canvas_px=30), test, 0),
    ]
    hashes = [examples.sha256() for examples in different]
    assert len(set(hashes)) == len(hashes)
    assert all(len(value) == 64 for value in hashes)


def test_tasks_do_not_share_a_hash():
    class Other(Classification):
        def identity(self):
            return Task.identity(self)  # that of any new task

    images = noise()
    both = [kind().with_distortion(Elastic()) for kind in (Classification, Other)]
    draws = both[0].draw(images, seeded(0))
    one, other = (Examples(task, images, draws).sha256() for task in both)
    assert one != other
    assert "Other" in both[1].identity()


# Fixed examples.


@EVERY_DISTORTION
def test_same_settings_give_the_same_test_set(splits, name):
    one, other = (Examples.for_test(task_on(name), splits.test, 0) for _ in range(2))
    assert one.sha256() == other.sha256()
    assert one.batch(slice(0, 20)).inputs.equal(other.batch(slice(0, 20)).inputs)


def test_test_set_depends_on_neither_seed_nor_state_of_the_run(splits):
    torch.manual_seed(1)
    one = Examples.for_test(task_on("P"), splits.test, 3)
    torch.manual_seed(2)
    draw_pass(task_on("R"), splits.training, 5, 0, 0)
    assert Examples.for_test(task_on("P"), splits.test, 3).sha256() == one.sha256()


def test_purposes_draws_and_seeds_differ(splits):
    images, task = splits.test[:100], task_on("R")
    drawn = [
        Examples.for_test(task, images, 0).draws[0],
        Examples.for_test(task, images, 1).draws[0],
        Examples.for_validation(task, images).draws[0],
        Examples.watched(task, images).draws[0],
        draw_pass(task, images, 0, 0, 0).draws[0],
        draw_pass(task, images, 0, 0, 1).draws[0],
        draw_pass(task, images, 1, 0, 0).draws[0],
    ]
    for one, other in itertools.combinations(drawn, 2):
        assert (one != other).float().mean() > 0.95


def test_a_few_images_are_watched(splits):
    examples = Examples.watched(task_on("R"), splits.training)
    assert len(examples) == WATCHED
    assert examples.images.pixels.equal(splits.training.pixels[:WATCHED])
    assert len(Examples.watched(task_on("R"), splits.training[:7])) == 7


@EVERY_DISTORTION
def test_an_image_is_the_same_in_any_batch(splits, name):
    examples = Examples.for_test(task_on(name), splits.test, 0)
    whole, labels, _ = examples.batch(slice(None))
    shuffled = torch.randperm(len(examples), generator=seeded(0))[:37]
    part, part_labels, _ = examples.batch(shuffled)
    torch.testing.assert_close(part, whole[shuffled], rtol=0, atol=1e-6)
    assert torch.equal(part_labels, labels[shuffled])


def test_a_batch_is_the_images_distorted_and_their_labels(splits):
    examples = Examples.for_test(task_on("P"), splits.test, 0)
    inputs, targets, _ = examples.batch(slice(10, 15))
    assert (inputs.shape, inputs.dtype) == ((5, 1, 28, 28), torch.float32)
    (parameters,) = examples.draws
    expected = distort(splits.test.pixels[10:15], Projection(), parameters[10:15])
    assert torch.equal(inputs, expected)
    assert torch.equal(targets, splits.test.labels[10:15])
    assert 0 <= float(inputs.min()) < float(inputs.max()) <= 1


# Passes.


def test_a_pass_shows_every_image_once_with_its_own_draw(splits):
    task, images = task_on("RTS"), splits.training
    order, (drawn,) = draw_pass(task, images, 7, 2, 5)
    assert order.sort().values.equal(torch.arange(len(images)))
    (other,) = draw_pass(task, images, 7, 3, 5).draws
    other_order = draw_pass(task, images, 7, 3, 5).order
    assert not order.equal(other_order)
    # The same draw for the same image, whatever the order.
    assert drawn[order.argsort()].equal(other[other_order.argsort()])


def test_a_pass_is_drawn_the_same_whatever_was_drawn_before(splits):
    task = task_on("RTS")
    for number in range(3):
        draw_pass(task, splits.training, 7, number, number)
    later, alone = (draw_pass(task, splits.training, 7, 5, 5) for _ in range(2))
    assert later.order.equal(alone.order)
    assert later.draws[0].equal(alone.draws[0])


@pytest.mark.parametrize(("size", "lengths"), [(50, [50] * 10), (300, [300, 200]), (501, [500])])
def test_batches_of_a_pass_are_its_parts_in_order(splits, size, lengths):
    passed = draw_pass(task_on("R"), splits.training, 1, 0, 0)
    parts = passed.batches(size)
    assert [len(part.order) for part in parts] == lengths
    assert torch.cat([part.order for part in parts]).equal(passed.order)
    assert torch.cat([part.draws[0] for part in parts]).equal(passed.draws[0])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_draws_of_every_task_have_one_entry_an_image(task, splits):
    bound = task().with_distortion(DISTORTIONS["T" if task.locates else "R"]())
    draws = bound.draw(splits.test, seeded(0))
    assert all(len(draw) == len(splits.test) for draw in draws)
    examples = Examples(bound, splits.test, draws)
    batch = examples.batch(slice(0, 3))
    assert batch.inputs.shape == (3, *bound.shape(splits.test.format))
    assert len(batch.targets) == 3
    assert len(examples.sha256()) == 64


def test_draws_lie_where_the_images_lie(splits):
    there = splits.test.to(torch.device("meta"))
    assert all(draw.is_meta for draw in Examples.for_test(task_on("E"), there, 0).draws)
    passed = draw_pass(task_on("E"), there, 1, 0, 0)
    assert passed.order.is_meta
    assert all(draw.is_meta for draw in passed.draws)
