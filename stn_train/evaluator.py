"""How often a model is wrong, on fixed draws of the test distortion, with its uncertainty.

Legend: N digits, D draws.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stn_train.data import DistortedDigits, test_set
from stn_train.digits import CLASSES, Digits
from stn_train.distortions import Distortion

BATCH = 500
"""Images at once: they and their activations stay in the processor's cache. A constant, since
the last bit of a logit can depend on it and the number reported must not."""


@dataclass(frozen=True)
class Evaluation:
    """A model's errors on test digits."""

    digits: int
    draws_percent: list[float]
    """The error on each fixed draw, in %."""
    interval_95_percent: tuple[float, float]
    """Wilson's interval for the error rate behind the first draw, in %."""
    draws_mean_interval_95_percent: tuple[float, float]
    """The interval for the mean over draws, in %; the draws share their digits, and it counts each
    digit once."""
    confusion: list[list[int]]
    """First draw: how often the digit of the row was taken for the digit of the column."""
    test_sha256: str
    """Identifies the test digits and their first draw."""
    draws_sha256: list[str]
    """The same for each draw."""
    mistakes: dict[int, int]
    """Which test digits were taken for another, and on how many of the draws."""

    @property
    def test_error_percent(self) -> float:
        """The error on the first draw, in %: the headline."""
        return self.draws_percent[0]

    @property
    def draws_mean_percent(self) -> float:
        """The mean error over the draws, in %."""
        return sum(self.draws_percent) / len(self.draws_percent)

    def as_dict(self) -> dict[str, Any]:
        """The fields as `result.json` and ``stn-eval --json`` show them."""
        return {
            "test_error_percent": self.test_error_percent,
            "interval_95_percent": list(self.interval_95_percent),
            "draws_mean_percent": self.draws_mean_percent,
            "draws_mean_interval_95_percent": list(self.draws_mean_interval_95_percent),
            "draws_percent": self.draws_percent,
            "test_digits": self.digits,
            "test_sha256": self.test_sha256,
            "draws_sha256": self.draws_sha256,
            "confusion": self.confusion,
            "mistaken_digits": [*self.mistakes.keys()],
            "mistaken_on_draws": [*self.mistakes.values()],
        }


def evaluate(model: nn.Module, test: Digits, distortion: Distortion, draws: int) -> Evaluation:
    """Measure a model on the first ``draws`` fixed draws; model and digits on one device."""
    wrong, hashes = [], []
    for draw in range(draws):
        distorted = test_set(test, distortion, draw)
        predicted = predict(model, distorted).argmax(1)  # (N,)
        wrong.append(predicted != test.labels)
        hashes.append(distorted.sha256())
        if draw == 0:
            confusion = confusion_of(test.labels, predicted)
    errors = torch.stack(wrong).cpu().double()  # (D, N); MPS has no float64
    times = errors.sum(0).int()  # (N,)
    mistaken = times.nonzero().flatten()
    return Evaluation(
        digits=len(test),
        draws_percent=[percent(draw) for draw in errors],
        interval_95_percent=wilson_interval(int(errors[0].sum()), len(test)),
        draws_mean_interval_95_percent=mean_interval(errors.mean(0)),
        confusion=confusion.tolist(),
        test_sha256=hashes[0],
        draws_sha256=hashes,
        mistakes=dict(zip(mistaken.tolist(), times[mistaken].tolist(), strict=True)),
    )


def confusion_of(labels: Tensor, predictions: Tensor) -> Tensor:
    """How often each class (the row) was taken for each (the column): (10, 10)."""
    pairs = labels * CLASSES + predictions  # (N,)
    return torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)


@torch.inference_mode()
def predict(model: nn.Module, distorted: DistortedDigits) -> Tensor:
    """Logits (N, 10) of distorted digits, on their device."""
    model.eval()
    parts = [slice(start, start + BATCH) for start in range(0, len(distorted), BATCH)]
    return torch.cat([model(distorted.batch(part)[0]) for part in parts])


def error_percent(model: nn.Module, distorted: DistortedDigits) -> float:
    """Share of wrong predictions, in %."""
    return percent(predict(model, distorted).argmax(1) != distorted.digits.labels)


def percent(wrong: Tensor) -> float:
    """Share of true among booleans (N,), in %; counted, then divided once."""
    return 100 * int(wrong.sum()) / len(wrong)


def wilson_interval(wrong: int, count: int) -> tuple[float, float]:
    """95 % interval of an error rate, in %, from a count of independent errors (Wilson 1927)."""
    z = 1.959964
    share = wrong / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def mean_interval(rates: Tensor) -> tuple[float, float]:
    """95 % interval, in %, of the mean of each digit's own error rate (N,), digits independent."""
    mean = float(rates.mean())
    if rates.min() == rates.max() and mean in (0, 1):  # no spread to judge by
        return wilson_interval(round(mean) * len(rates), len(rates))
    half = 1.959964 * float(rates.std(correction=0)) / math.sqrt(len(rates))
    return 100 * max(0.0, mean - half), 100 * min(1.0, mean + half)
