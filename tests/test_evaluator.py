"""Errors and their intervals, counted by hand and against the formulas."""

import pytest
import torch
from torch import Tensor, nn

from stn_train.data import test_set as fixed_test_set
from stn_train.data import validation_set
from stn_train.digits import Digits
from stn_train.distortions import DISTORTIONS
from stn_train.evaluator import error_percent, evaluate, mean_interval, percent, wilson_interval

NONE = DISTORTIONS["none"]()


def numbered(count: int) -> Digits:
    """Digits whose first two pixels say which they are, labelled 0 to 9 in turn."""
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    number = torch.arange(count)
    images[:, 0, 0] = (number // 256).byte()
    images[:, 0, 1] = (number % 256).byte()
    return Digits(images, number % 10)


class Oracle(nn.Module):
    """Reads the number of a digit and is right, but takes those named for the next class."""

    def __init__(self, wrong: list[int]) -> None:
        super().__init__()
        self.wrong = torch.tensor(wrong, dtype=torch.int64)
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.batches.append(len(images))
        pixels = (images[:, 0, 0, :2] * 255).round().long()  # (B, 2)
        number = pixels[:, 0] * 256 + pixels[:, 1]
        answer = (number + torch.isin(number, self.wrong)) % 10
        return nn.functional.one_hot(answer, 10).float()


@pytest.mark.parametrize("wrong", [[], [0], [3, 499, 500, 1236], [*range(1237)]])
def test_errors_are_counted_over_all_batches(wrong):
    evaluation = evaluate(Oracle(wrong), numbered(1237), NONE, draws=1)
    assert evaluation.test_error_percent == pytest.approx(100 * len(wrong) / 1237)
    assert evaluation.digits == 1237


def test_each_digit_is_seen_once_a_draw():
    model = Oracle([])
    evaluate(model, numbered(1237), NONE, draws=2)
    assert sum(model.batches) == 2 * 1237


def test_confusion_has_true_digits_in_rows_and_predictions_in_columns():
    evaluation = evaluate(Oracle([0, 3, 13, 99]), numbered(100), NONE, draws=1)
    confusion = torch.tensor(evaluation.confusion)
    expected = torch.diag(torch.full((10,), 10))
    for true, predicted, count in [(0, 1, 1), (3, 4, 2), (9, 0, 1)]:
        expected[true, true] -= count
        expected[true, predicted] += count
    assert torch.equal(confusion, expected)


def test_confusion_agrees_with_the_error(finished):
    evaluation = finished.result.evaluation
    confusion = torch.tensor(evaluation.confusion)
    assert confusion.sum() == evaluation.digits == 200
    right = int(confusion.diagonal().sum())
    assert evaluation.test_error_percent == pytest.approx(100 * (200 - right) / 200)


def test_mean_and_headline_are_of_the_draws(finished, splits):
    evaluation = evaluate(finished.result.model, splits.test, finished.config.distort, 5)
    assert evaluation.test_error_percent == evaluation.draws_percent[0]
    assert evaluation.draws_mean_percent == pytest.approx(sum(evaluation.draws_percent) / 5)
    assert len(set(evaluation.draws_percent)) > 1
    assert len(set(evaluation.draws_sha256)) == 5
    low, high = evaluation.draws_mean_interval_95_percent
    assert low < evaluation.draws_mean_percent < high


def test_number_of_draws_does_not_change_the_first(finished, splits):
    one = evaluate(finished.result.model, splits.test, finished.config.distort, 1)
    two = finished.result.evaluation
    assert one.draws_percent == two.draws_percent[:1]
    assert one.confusion == two.confusion
    assert one.test_sha256 == two.test_sha256 == two.draws_sha256[0]


def test_hash_is_the_test_sets(finished, splits):
    expected = fixed_test_set(splits.test, finished.config.distort, 0).sha256()
    assert finished.result.evaluation.test_sha256 == expected


def test_model_is_left_as_it_was(finished, splits):
    before = {name: value.clone() for name, value in finished.result.model.state_dict().items()}
    evaluate(finished.result.model, splits.test, finished.config.distort, 1)
    after = finished.result.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_error_of_a_set_is_its_share_of_wrong_predictions():
    assert error_percent(Oracle([1, 2, 3]), validation_set(numbered(60), NONE)) == 5.0


def test_percent_is_exact():
    assert percent(torch.arange(10_000) < 57) == 0.57


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


def test_interval_of_the_mean_counts_each_digit_once():
    rates = torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64).repeat(100)
    low, high = mean_interval(rates)
    half = 1.959964 * (0.125 / 400) ** 0.5  # variance 1/8, 400 digits
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
