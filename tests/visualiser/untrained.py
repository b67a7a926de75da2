"""What the tests of pictures draw: models that have learnt nothing, on a few digits."""

import functools

import torch
from matplotlib.figure import Figure
from torch import nn
from typing_extensions import override

from stn_train.config import Config
from stn_train.data.distortion import Distortion
from stn_train.data.images import Images
from stn_train.data.sources import load_splits
from stn_train.geometry.grids import AffineGrid
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer
from stn_train.runs.directory import Run
from stn_train.tasks.classification import Classification

SMALL = {"data": {"training_digits": 20, "validation": 10, "test_digits": 100}}


@functools.cache
def some_digits() -> Images:
    return load_splits(Config.model_validate(SMALL).data).test


def untrained_run(tmp_path, **choices) -> tuple[Run, Images]:
    config, test = Config.model_validate(SMALL | choices), some_digits()
    torch.manual_seed(0)
    model = config.build_network(test.format).eval()
    return Run(tmp_path / "last.pt", config, model, 0, test.format), test


def run_of(tmp_path, network: Network, test: Images, **choices) -> Run:
    """A run with a network that no config builds."""
    config = Config.model_validate(SMALL | choices)
    return Run(tmp_path / "last.pt", config, network.eval(), 0, test.format)


def in_colour(test: Images) -> Images:
    """Digits in three channels: red, half as much green, no blue."""
    shares = torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    return Images((test.pixels * shares).byte(), test.labels, test.classes)


def affine(channels: int, side: int) -> SpatialTransformer:
    """An untrained transformer, which is the identity."""
    localisation = nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, 4), nn.ReLU())
    return SpatialTransformer(localisation, 4, AffineGrid())


def parallel_network(channels: int = 1, count: int = 2) -> Network:
    """Transformers side by side in front of a linear classifier of 28 x 28 px."""
    network = Network()
    transformers = [affine(channels, 28) for _ in range(count)]
    network.add_module("transformer", ParallelTransformers(*transformers))
    network.add_module("pool", nn.AvgPool2d(2))
    layers = nn.Sequential(nn.Flatten(), nn.Linear(count * channels * 14**2, 10))
    network.add_module("classifier", layers)
    return network


def deep_network() -> Network:
    """A transformer behind a convolution of 28 x 28 px."""
    network = Network()
    network.add_module("features", nn.Sequential(nn.Conv2d(1, 3, 5), affine(3, 24)))
    network.add_module("classifier", nn.Sequential(nn.Flatten(), nn.Linear(3 * 24**2, 10)))
    return network


class Faded(Distortion):
    """A distortion that is no map of the plane: less bright by a random factor."""

    @override
    def draws(self, images, generator):
        return (torch.rand(len(images), generator=generator),)

    @override
    def apply(self, images, index, draws):
        return images.pixels[index] / 255 * draws[0][:, None, None, None]


class WithoutClasses(Classification):
    """A task whose answers are numbers, not classes."""

    @override
    def classes(self, images):
        return ()

    @override
    def outputs(self, images):
        return 1

    @override
    def answers(self, outputs):
        return outputs[:, 0]


def texts(figure: Figure) -> str:
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)
