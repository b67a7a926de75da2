"""Pictures: that they show what they say they show."""

import functools

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from stn_train import visualiser
from stn_train.config import Config
from stn_train.data import load_splits
from stn_train.data import test_set as fixed_test_set
from stn_train.digits import Digits
from stn_train.models import build_model
from stn_train.run_directory import Run

SMALL = {"data": {"source": "embedded", "validation": 10, "training_digits": 20, "test_digits": 60}}


@functools.cache
def some_digits() -> Digits:
    return load_splits(Config.model_validate(SMALL).data).test


def fresh_run(tmp_path, **choices) -> tuple[Run, Digits]:
    config = Config.model_validate(SMALL | choices)
    torch.manual_seed(0)
    run = Run(tmp_path / "last.pt", config, build_model(config).eval(), 0)
    return run, some_digits()


def texts(figure: Figure) -> str:
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)


def test_page_draws_each_digit_with_its_grid_and_the_prediction(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R", transform="TPS")
    figure = visualiser.digits_page(run, test, count=7)
    assert len(figure.findobj(LineCollection)) == 7
    assert len(figure.axes) == 14
    assert "ST-CNN TPS on R" in texts(figure)
    assert texts(figure).count(" %)") == 7


def test_page_of_a_baseline_has_inputs_alone(tmp_path):
    run, test = fresh_run(tmp_path, distortion="E", transform="none", backbone="FCN")
    figure = visualiser.digits_page(run, test, count=5)
    assert len(figure.axes) == 5
    assert not figure.findobj(LineCollection)


def test_grid_of_the_identity_lies_on_the_pixel_centres(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R", transform="Aff")
    distorted = fixed_test_set(test, run.config.distort, 0)
    inspected = visualiser.inspect(run, distorted, torch.arange(3))
    assert inspected.grid is not None
    x = torch.arange(28.0).expand(28, 28)
    torch.testing.assert_close(inspected.grid[0], torch.stack([x, x.T], dim=-1), atol=1e-4, rtol=0)


def test_mistakes_are_all_wrong_and_the_most_confident_comes_first(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R")
    distorted = fixed_test_set(test, run.config.distort, 0)
    index = visualiser.worst_mistakes(run, distorted)
    inspected = visualiser.inspect(run, distorted, index)
    assert len(index) > 10
    assert (inspected.labels != inspected.predictions).all()
    assert (inspected.confidences.diff() <= 1e-6).all()


def test_digits_are_taken_in_turn_from_every_class():
    labels = torch.tensor([3, 3, 0, 1, 3, 0])
    assert visualiser.one_of_each(labels).tolist() == [2, 3, 0, 5, 1, 4]


def test_class_means_show_input_and_output_of_each_class(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R")
    figure = visualiser.class_means(run, test)
    assert len(figure.axes) == 40
    shown = torch.as_tensor(figure.axes[3].images[0].get_array().data)
    images, labels = fixed_test_set(test, run.config.distort, 0).batch(slice(None))
    torch.testing.assert_close(shown, images[labels == 3, 0].mean(0))
    deviation = torch.as_tensor(figure.axes[13].images[0].get_array().data)
    torch.testing.assert_close(deviation, images[labels == 3, 0].std(0, correction=0))


def test_class_means_are_the_same_in_any_batches(tmp_path, monkeypatch):
    run, test = fresh_run(tmp_path, distortion="R", transform="Aff")
    warp, seen = run.model.warp, []

    def counted(images):
        seen.append(len(images))
        return warp(images)

    def means(batch: int) -> list[torch.Tensor]:
        monkeypatch.setattr(visualiser, "BATCH", batch)
        seen.clear()
        figure = visualiser.class_means(run, test)
        return [torch.as_tensor(axis.images[0].get_array().data) for axis in figure.axes]

    monkeypatch.setattr(run.model, "warp", counted)
    whole = means(1000)
    assert seen == [60]
    parts = means(25)
    assert seen == [25, 25, 10]
    assert len(whole) == len(parts) == 40
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_class_means_take_the_first_digits_of_a_large_set(tmp_path, monkeypatch):
    run, test = fresh_run(tmp_path, distortion="R")
    monkeypatch.setattr(visualiser, "MEANS_DIGITS", 40)
    figure = visualiser.class_means(run, test)
    assert "over 40 test digits" in texts(figure)
    shown = torch.as_tensor(figure.axes[3].images[0].get_array().data)
    images, labels = fixed_test_set(test[:40], run.config.distort, 0).batch(slice(None))
    torch.testing.assert_close(shown, images[labels == 3, 0].mean(0))
