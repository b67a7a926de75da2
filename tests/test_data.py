"""Splits, streams of randomness and plans of a pass."""

import pytest
import torch

from stn_train import data
from stn_train.config import DataSettings
from stn_train.data import DistortedDigits, Splits, load_splits, validation_set
from stn_train.data import test_set as fixed_test_set
from stn_train.digits import Digits
from stn_train.distortions import DISTORTIONS, distort
from stn_train.errors import ConfigError
from stn_train.mnist import find_raw

RTS_DRAW_0_SHA256 = "c85b562c5c3afc02ded75961513756aa6a636a7c1b2ca0b9d543d94f79f5b3fd"
"""The test set of every RTS number in the README. It may change only with the distortion."""


def settings(**changes) -> DataSettings:
    return DataSettings.model_validate({"source": "embedded", "validation": 100, **changes})


def lengths(splits: Splits) -> list[int]:
    return [len(part) for part in (splits.training, splits.validation, splits.test)]


def same(one: Digits, other: Digits) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_validation_is_the_end_of_the_training_digits():
    everything = load_splits(settings(validation=0))
    split = load_splits(settings(validation=1000))
    assert same(split.training, everything.training[:-1000])
    assert same(split.validation, everything.training[-1000:])
    assert same(split.test, everything.test)


@pytest.mark.parametrize(("key", "there"), [("training_digits", 8000), ("test_digits", 2000)])
def test_more_digits_than_there_are_cannot_be_had(key, there):
    told = f"data.{key} is {there + 1}; embedded has {there}, null takes all"
    with pytest.raises(ConfigError, match=told):
        load_splits(settings(**{key: there + 1}))
    assert lengths(load_splits(settings(**{key: there}))) == [7900, 100, 2000]


def test_no_validation_leaves_all_digits_for_training():
    split = load_splits(settings(validation=0))
    assert lengths(split) == [8000, 0, 2000]


def test_smaller_sets_are_the_first_digits():
    everything = load_splits(settings(validation=0))
    split = load_splits(settings(training_digits=300, test_digits=50))
    assert lengths(split) == [200, 100, 50]
    assert same(split.training, everything.training[:200])
    assert same(split.validation, everything.training[200:300])
    assert same(split.test, everything.test[:50])


@pytest.mark.parametrize("validation", [300, 301, 10**9])
def test_validation_must_leave_digits_to_train_on(validation):
    told = f"data.validation is {validation}, but there are only 300 training digits"
    with pytest.raises(ConfigError, match=told):
        load_splits(settings(training_digits=300, validation=validation))


def test_one_training_digit_is_enough():
    split = load_splits(settings(training_digits=101, validation=100))
    assert lengths(split) == [1, 100, 2000]


def test_real_mnist_has_60000_and_10000_digits(real_mnist, monkeypatch):
    monkeypatch.setattr("stn_train.data.load_mnist", lambda data_dir: real_mnist)
    split = load_splits(DataSettings())
    assert lengths(split) == [60_000, 0, 10_000]
    raw = find_raw()
    assert raw is not None
    assert split.origin == f"MNIST from {raw}"


def test_validation_is_the_last_training_digits_and_none_by_default():
    embedded = load_splits(DataSettings(source="embedded"))
    assert lengths(embedded) == [8000, 0, 2000]
    split = load_splits(DataSettings(source="embedded", validation=1000))
    assert lengths(split) == [7000, 1000, 2000]
    assert same(split.validation, embedded.training[7000:])


def test_splits_tell_the_folder_that_mnist_was_read_from(monkeypatch, tmp_path):
    digits = data.render_font_digits(8000, 2000, 0)
    monkeypatch.setattr(data, "load_mnist", lambda _: digits)
    monkeypatch.setattr(data, "find_raw", lambda named: named / "MNIST" / "raw")
    told = load_splits(DataSettings(), tmp_path).origin
    assert told == f"MNIST from {tmp_path / 'MNIST' / 'raw'}"


def test_splits_tell_that_digits_are_rendered(splits):
    assert splits.origin == "embedded: rendered from matplotlib's fonts"


def test_splits_move_to_a_device_as_a_whole(splits):
    moved = splits.to(torch.device("meta"))
    for part, there in zip(splits[:3], moved[:3], strict=True):
        assert (there.images.device.type, there.labels.device.type) == ("meta", "meta")
        assert there.images.shape == part.images.shape
    assert moved.origin == splits.origin
    stayed = splits.to(torch.device("cpu"))
    assert all(same(part, there) for part, there in zip(splits[:3], stayed[:3], strict=True))


# Draws.


def test_real_test_set_is_the_one_of_every_published_number(real_mnist):
    _, test = real_mnist
    assert fixed_test_set(test, DISTORTIONS["RTS"](), 0).sha256() == RTS_DRAW_0_SHA256


@pytest.mark.parametrize("name", DISTORTIONS)
def test_same_settings_give_the_same_test_set(splits, name):
    one, other = (fixed_test_set(splits.test, DISTORTIONS[name](), 0) for _ in range(2))
    assert one.sha256() == other.sha256()
    assert torch.equal(one.batch(slice(0, 20))[0], other.batch(slice(0, 20))[0])


def test_test_set_depends_on_neither_seed_nor_state_of_the_run(splits):
    torch.manual_seed(1)
    one = fixed_test_set(splits.test, DISTORTIONS["P"](), 3)
    torch.manual_seed(2)
    DistortedDigits.drawn(splits.training, DISTORTIONS["R"](), 5, "training", 0)
    assert fixed_test_set(splits.test, DISTORTIONS["P"](), 3).sha256() == one.sha256()


def test_hash_tells_distortion_parameter_draw_and_digits_apart(splits):
    rotation = DISTORTIONS["R"]
    different = [
        fixed_test_set(splits.test, rotation(), 0),
        fixed_test_set(splits.test, rotation(), 1),
        fixed_test_set(splits.test, rotation(max_angle_deg=89.0), 0),
        fixed_test_set(splits.test, DISTORTIONS["RTS"](), 0),
        fixed_test_set(splits.test[:-1], rotation(), 0),
        fixed_test_set(Digits(splits.test.images, 9 - splits.test.labels), rotation(), 0),
        fixed_test_set(splits.test, DISTORTIONS["none"](), 0),
        fixed_test_set(splits.test, DISTORTIONS["none"](canvas_px=30), 0),
    ]
    hashes = [digits.sha256() for digits in different]
    assert len(set(hashes)) == len(hashes)
    assert all(len(value) == 64 for value in hashes)


def test_purposes_draws_and_seeds_differ(splits):
    digits, rotation = splits.test[:100], DISTORTIONS["R"]()
    parameters = [
        fixed_test_set(digits, rotation, 0).parameters,
        fixed_test_set(digits, rotation, 1).parameters,
        validation_set(digits, rotation).parameters,
        DistortedDigits.drawn(digits, rotation, 0, "training", 0).parameters,
        DistortedDigits.drawn(digits, rotation, 0, "training", 1).parameters,
        DistortedDigits.drawn(digits, rotation, 1, "training", 0).parameters,
    ]
    for number, one in enumerate(parameters):
        for other in parameters[number + 1 :]:
            assert (one != other).float().mean() > 0.95


def test_a_pass_is_drawn_the_same_whatever_was_drawn_before(splits):
    rotation = DISTORTIONS["RTS"]()
    for number in range(3):
        DistortedDigits.drawn(splits.training, rotation, 7, "training", number)
    later = DistortedDigits.drawn(splits.training, rotation, 7, "training", 5)
    alone = DistortedDigits.drawn(splits.training, rotation, 7, "training", 5)
    assert torch.equal(later.parameters, alone.parameters)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_digit_is_the_same_in_any_batch(splits, name):
    distorted = fixed_test_set(splits.test, DISTORTIONS[name](), 0)
    whole, labels = distorted.batch(slice(None))
    shuffled = torch.randperm(len(distorted), generator=torch.Generator().manual_seed(0))[:37]
    part, part_labels = distorted.batch(shuffled)
    torch.testing.assert_close(part, whole[shuffled], rtol=0, atol=1e-6)
    assert torch.equal(part_labels, labels[shuffled])


def test_a_batch_is_the_digits_distorted_and_their_labels(splits):
    kind = DISTORTIONS["E"]()
    distorted = fixed_test_set(splits.test, kind, 0)
    images, labels = distorted.batch(slice(10, 15))
    assert (images.shape, images.dtype) == ((5, 1, 28, 28), torch.float32)
    expected = distort(splits.test.images[10:15], kind, distorted.parameters[10:15])
    assert torch.equal(images, expected)
    assert torch.equal(labels, splits.test.labels[10:15])
    assert 0 <= float(images.min()) < float(images.max()) <= 1
