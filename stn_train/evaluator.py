"""How well a network does on fixed draws of the test images, with its uncertainty.

Legend: N images, B batch, D draws, K classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stn_train.data.images import Images
from stn_train.geometry.matrices import small_similarities
from stn_train.models.network import Network
from stn_train.tasks.base import Measure, Task
from stn_train.tasks.examples import FIXED_SEED, Examples


@dataclass(frozen=True)
class Evaluation:
    """What a network scored on test images. By the task's measure: an error, or a share right."""

    measure: Measure
    count: int
    """Test images."""
    draws_percent: list[float]
    """The score on each fixed draw, in %."""
    interval_95_percent: tuple[float, float]
    """Wilson's interval for the rate behind the first draw, in %."""
    draws_mean_interval_95_percent: tuple[float, float]
    """The interval for the mean over draws, in %; the draws share their images, and it counts each
    image once."""
    confusion: list[list[int]] | None
    """First draw: how often the class of the row was taken for the class of the column; None where
    the task has no classes."""
    test_sha256: str
    """Identifies the test images and their first draw."""
    draws_sha256: list[str]
    """The same for each draw."""
    mistakes: dict[int, int]
    """Which test images were answered wrongly, and on how many of the draws."""

    @property
    def test_percent(self) -> float:
        """The score on the first draw, in %: the headline."""
        return self.draws_percent[0]

    @property
    def draws_mean_percent(self) -> float:
        """The mean score over the draws, in %."""
        return sum(self.draws_percent) / len(self.draws_percent)

    def as_dict(self) -> dict[str, Any]:
        """The fields as `result.json` and ``stn-eval --json`` show them."""
        return {
            f"test_{self.measure.key}": self.test_percent,
            "interval_95_percent": list(self.interval_95_percent),
            "draws_mean_percent": self.draws_mean_percent,
            "draws_mean_interval_95_percent": list(self.draws_mean_interval_95_percent),
            "draws_percent": self.draws_percent,
            "test_digits": self.count,
            "test_sha256": self.test_sha256,
            "draws_sha256": self.draws_sha256,
            "confusion": self.confusion,
            "mistaken_digits": [*self.mistakes.keys()],
            "mistaken_on_draws": [*self.mistakes.values()],
        }


Z_95 = 1.959964
"""The normal distribution's quantile of 97.5 %: 95 % lie between minus this and this."""

POSE_SPREAD = 0.05
"""Of the poses that `evaluate` averages over: 2.9 degrees, 5 % of the size, 0.7 of 28 pixels."""


def evaluate(
    network: nn.Module,
    task: Task,
    test: Images,
    draws: int,
    poses: int = 1,
    watched: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Evaluation:
    """Measure a network on the first ``draws`` fixed draws; network and images on one device.

    poses: with more than one, the network's outputs are means over what its transformer shows: its
    own pose, and others near it, always the same ones (`small_similarities` of POSE_SPREAD).
    watched: is given the draws and gives them back one by one, as `tqdm` does.
    """
    scored, hashes, confusion = [], [], None
    for draw in watched(range(draws)):
        examples = Examples.for_test(task, test, draw)
        answers, targets = answer(network, examples, poses)
        scored.append(task.score(answers, targets))
        hashes.append(examples.sha256())
        if draw == 0 and task.classes(test.format):
            confusion = confusion_of(targets, answers, len(task.classes(test.format))).tolist()
    scores = torch.stack(scored).cpu().double()  # (D, N); MPS has no float64
    right = 0.0 if task.measure.lower_is_better else 1.0
    times = (scores != right).sum(0)  # (N,)
    mistaken = times.nonzero().flatten()
    return Evaluation(
        measure=task.measure,
        count=len(test),
        draws_percent=[percent(draw) for draw in scores],
        interval_95_percent=wilson_interval(float(scores[0].sum()), len(test)),
        draws_mean_interval_95_percent=mean_interval(scores.mean(0)),
        confusion=confusion,
        test_sha256=hashes[0],
        draws_sha256=hashes,
        mistakes=dict(zip(mistaken.tolist(), times[mistaken].tolist(), strict=True)),
    )


def confusion_of(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How often each class (the row) was taken for each (the column): (K, K)."""
    pairs = labels * classes + predictions  # (N,)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


@torch.inference_mode()
def predict(network: nn.Module, examples: Examples) -> tuple[Tensor, Tensor]:
    """A network's outputs (N, ...) for examples, and what is right (N, ...), on their device."""
    outputs, targets = zip(*batch_by_batch(network, examples), strict=True)
    return torch.cat(outputs), torch.cat(targets)


@torch.inference_mode()
def answer(network: nn.Module, examples: Examples, poses: int = 1) -> tuple[Tensor, Tensor]:
    """A network's answers (N, ...) to examples, and what is right (N, ...)."""
    pairs = [
        (examples.task.answers(outputs), targets)
        for outputs, targets in batch_by_batch(network, examples, poses)
    ]
    answers, targets = zip(*pairs, strict=True)
    return torch.cat(answers), torch.cat(targets)


def batch_by_batch(
    network: nn.Module, examples: Examples, poses: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """A network's outputs (B, ...) and what is right (B, ...), for as many as fit at once."""
    network.eval()
    for part in examples.parts():
        batch = examples.batch(part)
        yield mean_outputs(network, batch.inputs, poses), batch.targets


def mean_outputs(network: nn.Module, inputs: Tensor, poses: int) -> Tensor:
    """A network's outputs for inputs, the mean over so many poses of what its transformer shows."""
    outputs: Tensor = network(inputs)
    if poses > 1:
        assert isinstance(network, Network)
        generator = torch.Generator().manual_seed(FIXED_SEED)
        for view in small_similarities(poses - 1, POSE_SPREAD, generator).to(inputs.device):
            with network.seen_through(view):
                outputs = outputs + network(inputs)
        outputs = outputs / poses
    return outputs


def score_percent(network: nn.Module, examples: Examples) -> float:
    """The mean score of a network's answers to examples, in %."""
    return percent(examples.task.score(*answer(network, examples)))


def percent(scores: Tensor) -> float:
    """The mean of scores (N,), in %; added up, then divided once."""
    total = scores.sum()
    exact = int(total) if total == total.round() else float(total)  # booleans are counted
    return 100 * exact / len(scores)


def wilson_interval(wrong: float, count: int) -> tuple[float, float]:
    """95 % interval of a rate, in %, from a count of independent events (Wilson 1927)."""
    z = Z_95
    share = wrong / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def mean_interval(rates: Tensor) -> tuple[float, float]:
    """95 % interval, in %, of the mean of each image's own rate (N,), images independent."""
    mean = float(rates.mean())
    if rates.min() == rates.max() and mean in (0, 1):  # no spread to judge by
        return wilson_interval(round(mean) * len(rates), len(rates))
    half = Z_95 * float(rates.std(correction=0)) / math.sqrt(len(rates))
    return 100 * max(0.0, mean - half), 100 * min(1.0, mean + half)
