"""Backbones, layer by layer: sizes, weights, dropout."""

from functools import partial

import pytest
import torch

from stn_train.models.backbone import Backbone
from stn_train.models.backbones import BACKBONES, Convolutional, FullyConnected, Tutorial
from stn_train.models.network import parameter_count
from stn_train.models.spatial_transformer import OutputLayer
from stn_train.recipes import RECIPES

EVERY_BACKBONE = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


@EVERY_BACKBONE
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (42, 42), (64, 64), (30, 41)])
def test_a_classifier_and_its_localisation_take_images_of_their_shape(backbone, channels, size):
    shape, images = (channels, *size), torch.rand(2, channels, *size)
    classifier = backbone().classifier(shape, 7).eval()
    assert classifier(images).shape == (2, 7)
    localisation, features = backbone().localisation(shape)
    assert localisation(images).shape == (2, features)


@EVERY_BACKBONE
@pytest.mark.parametrize("channels", [1, 3])
def test_the_smallest_input_is_the_smallest(backbone, channels):
    def sees(build, side):
        module = build((channels, side, side))
        return module(torch.rand(2, channels, side, side)).numel() > 0

    for least_px, build in (
        (backbone.smallest_input, lambda shape: backbone().classifier(shape, 10)),
        (backbone.smallest_localisation_input, lambda shape: backbone().localisation(shape)[0]),
    ):
        assert sees(build, least_px)
        if least_px > 1:
            with pytest.raises((RuntimeError, ValueError, UserWarning)):
                sees(build, least_px - 1)


@EVERY_BACKBONE
def test_the_last_layer_of_a_classifier_alone_is_marked_as_its_output(backbone):
    classifier = backbone().classifier((1, 28, 28), 10)
    outputs = [module for module in classifier.modules() if isinstance(module, OutputLayer)]
    assert outputs == [[*classifier.modules()][-1]]
    assert outputs[0].out_features == 10
    localisation, _ = backbone().localisation((1, 28, 28))
    assert not any(isinstance(module, OutputLayer) for module in localisation.modules())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_settings_for_every_backbone(recipe):
    assert RECIPES[recipe].keys() == BACKBONES.keys()


# Counted by hand, layer by layer, from the sizes in the paper's appendix A.4.


@pytest.mark.parametrize(
    ("backbone", "px", "weights"),
    [
        (FullyConnected(), 28, 269_322),  # 784 -> 256 -> 256 -> 10
        (FullyConnected(), 42, 520_202),  # 1764 -> 256 -> 256 -> 10
        (FullyConnected(hidden=128), 28, 118_282),
        (Convolutional(), 28, 208_586),  # 64 9x9, 64 7x7, 2x2x64 -> 10
        (Convolutional(), 42, 229_066),  # 64 9x9, 64 7x7, 6x6x64 -> 10
        (Convolutional(filters=(32, 16)), 28, 28_378),
        (Convolutional(filters=(32, 16), features=12), 28, 28_378 - 650 + 65 * 12 + 13 * 10),
        (Tutorial(), 28, 21_840),  # as in PyTorch's tutorial
    ],
    ids=str,
)
def test_a_classifier_has_as_many_weights_as_counted_by_hand(backbone, px, weights):
    assert parameter_count(backbone.classifier((1, px, px), 10)) == weights


@pytest.mark.parametrize(
    ("backbone", "px", "weights"),
    [
        (FullyConnected(), 28, 27_232),  # 784 -> 32 -> 32 -> 32
        (FullyConnected(), 42, 58_592),  # 1764 -> 32 -> 32 -> 32
        (Convolutional(), 14, 10_960),  # 20 5x5, 20 5x5, 1x1x20 -> 20
        (Convolutional(), 21, 20_560),  # 20 5x5, 20 5x5, 5x5x20 -> 20
        (Convolutional(localisation_filters=8, localisation_features=10), 14, 208 + 1_608 + 90),
        (Tutorial(), 28, 5_322),  # 8 7x7, 10 5x5, 3x3x10 -> 32
    ],
    ids=str,
)
def test_a_localisation_has_as_many_weights_as_counted_by_hand(backbone, px, weights):
    localisation, _ = backbone.localisation((1, px, px))
    assert parameter_count(localisation) == weights


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [
        (FullyConnected(), 3 * 784 * 256 + 256 + 256 * 257 + 257 * 10),
        (Convolutional(), 64 * (3 * 81 + 1) + 64 * (64 * 49 + 1) + 257 * 10),
        (Tutorial(), 10 * (3 * 25 + 1) + 20 * (250 + 1) + 50 * 321 + 510),
    ],
    ids=str,
)
def test_three_channels_add_to_the_first_layer_alone(backbone, weights):
    assert parameter_count(backbone.classifier((3, 28, 28), 10)) == weights


@pytest.mark.parametrize(
    "backbone", [FullyConnected, Convolutional, partial(Convolutional, features=40)], ids=str
)
def test_dropout_leaves_out_last_features_in_training_alone(backbone):
    torch.manual_seed(0)
    classifier, seen = backbone(dropout=0.25).classifier((1, 28, 28), 10), {}
    classifier[-1].register_forward_pre_hook(lambda _, inputs: seen.update(last=inputs[0]))
    images = torch.rand(300, 1, 28, 28)
    classifier.eval()(images)
    alive = seen["last"] > 0
    classifier.train()(images)
    left_out = seen["last"][alive] == 0
    assert float(left_out.float().mean()) == pytest.approx(0.25, abs=0.02)


@EVERY_BACKBONE
def test_every_setting_has_a_bound_and_a_word_of_documentation(backbone: type[Backbone]):
    for name, field in backbone.model_fields.items():
        assert field.description, name
        with pytest.raises(ValueError, match=name):
            backbone.model_validate({name: -1})
