"""Classification as a task: its shapes, loss, answers and score."""

import pytest
import torch
import torch.nn.functional as F

from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import ImageFormat, Images
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure
from stn_train.tasks.classification import Classification

FORMAT = ImageFormat((3, 28, 28), ("cat", "dog", "emu"))


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images():
    pixels = torch.randint(256, (6, 1, 28, 28), generator=seeded()).byte()
    return Images(pixels, torch.arange(6) % 3, ("cat", "dog", "emu"))


def task_on(name, **changes):
    return Classification().with_distortion(DISTORTIONS[name](**changes))


@pytest.mark.parametrize("name", DISTORTIONS)
def test_an_input_is_as_large_as_the_canvas(name, images):
    task = task_on(name, canvas_px=56)
    assert task.shape(FORMAT) == (3, 56, 56)
    draws = task.draw(images, seeded())
    batch = task.batch(images, slice(0, 4), tuple(draw[:4] for draw in draws))
    assert batch.inputs.shape == (4, *task.shape(images.format))
    assert batch.inputs.dtype == torch.float32


def test_answers_are_the_classes_of_the_images():
    task = Classification()
    assert task.classes(FORMAT) == ("cat", "dog", "emu")
    assert task.outputs(FORMAT) == 3


@pytest.mark.parametrize("name", DISTORTIONS)
def test_inputs_are_the_images_distorted_and_targets_their_labels(name, images):
    task = task_on(name)
    draws = task.draw(images, seeded())
    index = torch.tensor([4, 1, 2])
    picked = tuple(draw[index] for draw in draws)
    inputs, targets, _ = task.batch(images, index, picked)
    assert inputs.equal(task.distortion.apply(images, index, picked))
    assert targets.equal(images.labels[index])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_the_cross_entropy_with_the_smoothed_target(smoothing, images):
    logits = torch.randn(6, 3, generator=seeded())
    task = task_on("none")
    batch = task.batch(images, slice(None), task.draw(images, seeded()))
    loss = task.loss(lambda inputs: logits, batch, smoothing)
    target = F.one_hot(images.labels, 3) * (1 - smoothing) + smoothing / 3
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_loss_of_a_network_in_bfloat16_is_taken_in_float32(images):
    task = task_on("none")
    batch = task.batch(images, slice(None), task.draw(images, seeded()))
    logits = torch.randn(6, 3, generator=seeded()).bfloat16()
    loss = task.loss(lambda inputs: logits, batch, 0.0)
    assert loss.dtype == torch.float32
    assert loss.equal(F.cross_entropy(logits.float(), images.labels))


def test_score_is_whether_the_largest_output_is_wrong():
    task = Classification()
    outputs = torch.tensor([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0], [0.0, 0.0, 1.0]])
    answers = task.answers(outputs)
    assert answers.tolist() == [1, 0, 2]
    assert task.score(answers, torch.tensor([1, 2, 2])).tolist() == [False, True, False]


def test_a_task_bound_to_a_distortion_leaves_the_task_itself_alone():
    task = Classification()
    bound = task.with_distortion(DISTORTIONS["R"]())
    assert bound.distortion == DISTORTIONS["R"]()
    assert task.distortion == DISTORTIONS["none"]()
    assert type(bound) is Classification


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_measure_of_every_task_says_which_of_two_values_is_better(task):
    measure = task.measure
    assert measure.better(0.0, 1.0) is measure.lower_is_better
    assert measure.better(1.0, 0.0) is not measure.lower_is_better
    assert not measure.better(1.0, 1.0)
    assert measure.better(50.0, measure.worst)
    assert not measure.better(measure.worst, measure.worst)


def test_measure_of_what_should_be_high():
    measure = Measure("accuracy_percent", "accuracy", "%", lower_is_better=False)
    assert measure.better(2.0, 1.0)
    assert not measure.better(1.0, 2.0)
    assert measure.better(0.0, measure.worst)
