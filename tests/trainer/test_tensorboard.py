"""TensorBoard: its files hold the numbers of metrics.jsonl."""

import sys

import pytest
import torch
from conftest import CPU
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.geometry.grids import AffineGrid
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer
from stn_train.runs.directory import RunDirectory
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer, Start
from stn_train.trainer.tensorboard import SHOWN, TensorBoard


def test_files_hold_every_number_and_pictures(tiny, splits, tmp_path):
    config, run = tiny(log={"tensorboard": True}), RunDirectory.claim(tmp_path / "run")
    train(config, splits, run, CPU)
    read = EventAccumulator(str(run.tensorboard))
    read.Reload()
    for record in run.read_metrics():
        kind, step = record.pop("kind"), record.pop("step")
        del record["pass"]
        for name, value in record.items():
            written = {each.step: each.value for each in read.Scalars(f"{kind}/{name}")}
            assert written[step] == pytest.approx(value, rel=1e-5)
    pictures = read.Images("digits/before and after")
    assert [each.step for each in pictures] == [10, 20]
    assert (pictures[0].width, pictures[0].height) == (16 * 28, 2 * 28)


def test_without_the_package_it_says_how_to_get_it(tiny, splits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoard(tmp_path, tiny().task, splits.training)


def test_a_run_that_goes_on_writes_each_step_once(tiny, splits, tmp_path):
    class Stops(Observer):
        def stepped(self, step: int) -> None:
            if step == 17:
                raise KeyboardInterrupt

    config, run = tiny(log={"tensorboard": True}), RunDirectory.claim(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, run, CPU, Stops())
    train(config, splits, run, CPU)
    read = EventAccumulator(str(run.tensorboard))
    read.Reload()
    assert [each.step for each in read.Scalars("train/loss")] == [5, 10, 15, 20]


def affine(channels: int, side: int) -> SpatialTransformer:
    """An untrained transformer, which is the identity."""
    return SpatialTransformer(nn.Flatten(), channels * side**2, AffineGrid())


def page_of(network: Network, images: Images, tiny, tmp_path) -> torch.Tensor:
    """The picture of a network, in rows (rows, C, 28, 16 * 28)."""
    config = tiny(distortion="none")
    board = TensorBoard(tmp_path, config.task, images)
    board.started(Start(config, network, 0, 1))
    board.writer.close()
    page = board.page()
    assert page.shape[-1] == SHOWN * 28
    return torch.stack(page.split(28, dim=1))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_of_two_transformers_has_a_row(channels, splits, tiny, tmp_path):
    pixels = splits.training.pixels.expand(-1, channels, -1, -1)
    images = Images(pixels, splits.training.labels, splits.training.classes)
    network = Network()
    transformers = ParallelTransformers(affine(channels, 28), affine(channels, 28))
    network.add_module("transformer", transformers)
    network.add_module("pool", nn.AvgPool2d(2))
    network.add_module("classifier", nn.Flatten())
    with torch.no_grad():
        transformers[1].regression.bias[2] = 9.0  # out of the image
    inputs, first, second = page_of(network, images, tiny, tmp_path)
    expected = torch.cat([*(pixels[:SHOWN] / 255)], dim=-1)
    torch.testing.assert_close(inputs, expected)
    pooled = nn.functional.avg_pool2d(expected, 2)
    torch.testing.assert_close(nn.functional.avg_pool2d(first, 2), pooled)  # as the classifier
    assert not second.any()


def test_feature_maps_are_shown_by_their_mean(splits, tiny, tmp_path):
    class Twice(nn.Module):
        def forward(self, images):
            return torch.cat([images, 0 * images], dim=1)

    network = Network()
    network.add_module("pool", nn.AvgPool2d(2))
    network.add_module("classifier", nn.Sequential(Twice(), affine(2, 14), nn.Flatten()))
    inputs, features = page_of(network, splits.training, tiny, tmp_path)
    small = nn.functional.avg_pool2d(inputs, 2) / 2
    torch.testing.assert_close(nn.functional.avg_pool2d(features, 2), small)
