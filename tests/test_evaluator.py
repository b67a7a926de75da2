"""Errors and their intervals, counted by hand and against the formulas."""

import json

import pytest
import torch
from torch import Tensor, nn

from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import Images
from stn_train.evaluator import (
    POSE_SPREAD,
    confusion_of,
    evaluate,
    mean_interval,
    mean_outputs,
    percent,
    predict,
    score_percent,
    wilson_interval,
)
from stn_train.geometry.matrices import small_similarities
from stn_train.tasks.base import Measure
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import MOST_AT_ONCE, Examples

NONE = Classification().with_distortion(DISTORTIONS["none"]())


def numbered(count: int, classes: int = 10) -> Images:
    """Images whose first two pixels say which they are, of each class in turn."""
    pixels = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    number = torch.arange(count)
    pixels[:, 0, 0, 0] = (number // 256).byte()
    pixels[:, 0, 0, 1] = (number % 256).byte()
    return Images(pixels, number % classes, tuple(f"class {name}" for name in range(classes)))


class Oracle(nn.Module):
    """Reads the number of an image and is right, but takes those named for the next class."""

    def __init__(self, wrong: list[int], classes: int = 10) -> None:
        super().__init__()
        self.wrong, self.classes = torch.tensor(wrong, dtype=torch.int64), classes
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.batches.append(len(images))
        pixels = (images[:, 0, 0, :2] * 255).round().long()  # (B, 2)
        number = pixels[:, 0] * 256 + pixels[:, 1]
        answer = (number + torch.isin(number, self.wrong)) % self.classes
        return nn.functional.one_hot(answer, self.classes).float()


@pytest.mark.parametrize("wrong", [[], [0], [3, 499, 500, 1236], [*range(1237)]])
def test_errors_are_counted_over_all_batches(wrong):
    evaluation = evaluate(Oracle(wrong), NONE, numbered(1237), draws=1)
    assert evaluation.test_percent == pytest.approx(100 * len(wrong) / 1237)
    assert evaluation.count == 1237
    assert evaluation.mistakes == dict.fromkeys(wrong, 1)


def test_each_image_is_seen_once_a_draw():
    model = Oracle([])
    evaluate(model, NONE, numbered(1237), draws=2)
    assert sum(model.batches) == 2 * 1237
    assert max(model.batches) == MOST_AT_ONCE


def test_mistakes_are_counted_over_draws():
    class Moody(Oracle):
        """Wrong about 3 on every draw, about 7 on the second alone."""

        def forward(self, images: Tensor) -> Tensor:
            self.wrong = torch.tensor([3, 7] if len(self.batches) == 1 else [3])
            return super().forward(images)

    seen = []
    evaluation = evaluate(
        Moody([]),
        NONE,
        numbered(20),
        draws=3,
        watched=lambda draws: (seen.append(draw) or draw for draw in draws),
    )
    assert seen == [0, 1, 2]
    assert evaluation.mistakes == {3: 3, 7: 1}
    assert evaluation.draws_percent == [5.0, 10.0, 5.0]
    assert evaluation.test_percent == 5.0
    data = evaluation.as_dict()
    assert (data["mistaken_digits"], data["mistaken_on_draws"]) == ([3, 7], [3, 1])


def test_fields_in_files_are_those_of_earlier_versions():
    data = evaluate(Oracle([3]), NONE, numbered(20), draws=1).as_dict()
    assert [*data] == [
        "test_error_percent",
        "interval_95_percent",
        "draws_mean_percent",
        "draws_mean_interval_95_percent",
        "draws_percent",
        "test_digits",
        "test_sha256",
        "draws_sha256",
        "confusion",
        "mistaken_digits",
        "mistaken_on_draws",
    ]
    assert json.loads(json.dumps(data)) == data
    assert (data["test_error_percent"], data["test_digits"]) == (5.0, 20)


def test_confusion_has_true_classes_in_rows_and_predictions_in_columns():
    evaluation = evaluate(Oracle([0, 3, 13, 99]), NONE, numbered(100), draws=1)
    confusion = torch.tensor(evaluation.confusion)
    expected = torch.diag(torch.full((10,), 10))
    for true, predicted, count in [(0, 1, 1), (3, 4, 2), (9, 0, 1)]:
        expected[true, true] -= count
        expected[true, predicted] += count
    assert torch.equal(confusion, expected)


def test_confusion_agrees_with_the_error(finished):
    evaluation = finished.result.evaluation
    confusion = torch.tensor(evaluation.confusion)
    assert confusion.sum() == evaluation.count == 200
    right = int(confusion.diagonal().sum())
    assert evaluation.test_percent == pytest.approx(100 * (200 - right) / 200)


def test_mean_and_headline_are_of_the_draws(finished, splits):
    evaluation = evaluate(finished.result.model, finished.config.task, splits.test, 5)
    assert evaluation.test_percent == evaluation.draws_percent[0]
    assert evaluation.draws_mean_percent == pytest.approx(sum(evaluation.draws_percent) / 5)
    assert len(set(evaluation.draws_percent)) > 1
    assert len(set(evaluation.draws_sha256)) == 5
    low, high = evaluation.draws_mean_interval_95_percent
    assert low < evaluation.draws_mean_percent < high


def test_number_of_draws_does_not_change_the_first(finished, splits):
    one = evaluate(finished.result.model, finished.config.task, splits.test, 1)
    two = finished.result.evaluation
    assert one.draws_percent == two.draws_percent[:1]
    assert one.confusion == two.confusion
    assert one.test_sha256 == two.test_sha256 == two.draws_sha256[0]


def test_hash_is_the_test_sets(finished, splits):
    expected = Examples.for_test(finished.config.task, splits.test, 0).sha256()
    assert finished.result.evaluation.test_sha256 == expected


def test_model_is_left_as_it_was(finished, splits):
    before = {name: value.clone() for name, value in finished.result.model.state_dict().items()}
    evaluate(finished.result.model, finished.config.task, splits.test, 1)
    after = finished.result.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_score_of_examples_is_their_share_of_wrong_answers():
    assert score_percent(Oracle([1, 2, 3]), Examples.for_validation(NONE, numbered(60))) == 5.0


@pytest.mark.parametrize("count", [1, MOST_AT_ONCE, MOST_AT_ONCE + 1])
def test_predictions_are_the_outputs_in_order(count):
    images = numbered(count)
    outputs, targets = predict(Oracle([]), Examples.for_validation(NONE, images))
    assert outputs.argmax(1).equal(images.labels)
    assert targets.equal(images.labels)
    assert not outputs.requires_grad


def test_other_numbers_of_classes_are_counted():
    evaluation = evaluate(Oracle([0], classes=3), NONE, numbered(30, classes=3), draws=1)
    assert evaluation.confusion == [[9, 1, 0], [0, 10, 0], [0, 0, 10]]


def test_a_confusion_of_pairs_counted_one_by_one():
    labels, answers = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 0, 0])
    assert confusion_of(labels, answers, 4).tolist() == [
        [2, 0, 0, 0],
        [0, 1, 1, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]


class Overlap(Classification):
    """A task whose answers are right in part, with no classes to confuse."""

    measure = Measure("overlap_percent", "overlap", "%", lower_is_better=False)

    def classes(self, images):
        return ()

    def answers(self, outputs):
        return outputs.max(1).indices.float() / 10

    def score(self, answers, targets):
        return 1 - (answers - targets / 10).abs()


def test_scores_of_a_task_may_lie_between_0_and_1():
    task = Overlap().with_distortion(NONE.distortion)
    evaluation = evaluate(Oracle([0, 3]), task, numbered(20), draws=2)
    # Two of twenty are off by a tenth.
    assert evaluation.test_percent == pytest.approx(100 * (1 - 2 * 0.1 / 20))
    assert evaluation.mistakes == {0: 2, 3: 2}
    assert evaluation.confusion is None
    assert evaluation.as_dict()["test_overlap_percent"] == evaluation.test_percent
    low, high = evaluation.interval_95_percent
    assert low < evaluation.test_percent < high
    low, high = evaluation.draws_mean_interval_95_percent
    assert low < evaluation.draws_mean_percent < high


def test_percent_is_exact():
    assert percent(torch.arange(10_000) < 57) == 0.57
    assert percent((torch.arange(10_000) < 57).double()) == 0.57
    assert percent(torch.tensor([0.25, 0.5])) == 37.5


@pytest.mark.parametrize(
    ("wrong", "count", "low", "high"),
    [
        # Solutions p of (share - p)^2 = z^2 p (1 - p) / count, found by bisection.
        (10, 1000, 0.544075, 1.830947),
        (50, 10_000, 0.379490, 0.658526),
        (0, 10_000, 0.0, 0.038400),
        (10_000, 10_000, 99.961600, 100.0),
        (1, 2, 9.453121, 90.546879),
    ],
)
def test_wilson_interval_equals_reference(wrong, count, low, high):
    assert wilson_interval(wrong, count) == pytest.approx((low, high), abs=2e-6)


@pytest.mark.parametrize(("wrong", "count"), [(0, 1), (1, 1), (3, 200), (197, 200)])
def test_ends_of_wilsons_interval_are_one_share_away_by_their_own_deviation(wrong, count):
    for end in wilson_interval(wrong, count):
        share, p = wrong / count, end / 100
        assert (share - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / count, abs=1e-9)


def test_interval_of_the_mean_counts_each_image_once():
    rates = torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64).repeat(100)
    low, high = mean_interval(rates)
    half = 1.959964 * (0.125 / 400) ** 0.5  # variance 1/8, 400 images
    assert (low, high) == pytest.approx((100 * (0.5 - half), 100 * (0.5 + half)))


def test_intervals_stay_between_0_and_100():
    assert mean_interval(torch.tensor([0.0, 0.01], dtype=torch.float64))[0] == 0.0
    assert mean_interval(torch.tensor([1.0, 0.99], dtype=torch.float64))[1] == 100.0


@pytest.mark.parametrize("count", [1, 50, 10_000])
def test_interval_of_a_mean_without_errors_is_wilsons(count):
    interval = mean_interval(torch.zeros(count, dtype=torch.float64))
    assert interval == wilson_interval(0, count)
    # Its upper end p solves p^2 = z^2 p (1 - p) / count.
    assert interval == pytest.approx((0.0, 100 * 1.959964**2 / (count + 1.959964**2)))


def test_one_error_in_one_draw_has_a_spread_of_its_own():
    rates = torch.zeros(100, dtype=torch.float64)
    rates[7] = 0.1
    half = 1.959964 * (0.01 * 0.1**2 * 0.99 / 100) ** 0.5  # variance p (1 - p) 0.1^2, p = 1/100
    assert mean_interval(rates) == pytest.approx((0.0, 100 * (0.001 + half)))


def test_outputs_over_poses_are_the_mean_of_those_of_each_view(tiny, splits):
    torch.manual_seed(0)
    network = tiny(distortion="R", transform="Aff").build_network(splits.test.format)
    inputs = torch.rand(4, 1, 28, 28)
    network.eval()
    with torch.no_grad():
        one, three = mean_outputs(network, inputs, 1), mean_outputs(network, inputs, 3)
        each = [network(inputs)]
        generator = torch.Generator().manual_seed(0)
        for view in small_similarities(2, POSE_SPREAD, generator):
            (transformer,) = network.transformers.values()
            transformer.view = view
            each.append(network(inputs))
            transformer.view = None
    assert torch.equal(one, each[0])
    torch.testing.assert_close(three, torch.stack(each).mean(0))
    assert not torch.allclose(three, one)


def test_a_network_without_a_transformer_has_no_views(tiny, splits):
    network = tiny(distortion="RTS", transform="none").build_network(splits.test.format)
    with pytest.raises(ValueError, match="spatial transformer"):
        mean_outputs(network, torch.rand(1, 1, 42, 42), 2)
