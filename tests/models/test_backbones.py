"""Backbones, layer by layer: sizes, weights, dropout; SingleChannelConv2d against nn.Conv2d."""

import pytest
import torch
from torch import nn

from stn_train.models.backbones import (
    BACKBONES,
    Backbone,
    Convolutional,
    FullyConnected,
    SingleChannelConv2d,
    Tutorial,
)
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


@pytest.mark.parametrize("backbone", [FullyConnected, Convolutional])
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


# SingleChannelConv2d.


def twins(filters, side, dtype=torch.float64):
    """The convolution and torch's own, with the same weights."""
    torch.manual_seed(0)
    reference = nn.Conv2d(1, filters, side).to(dtype)
    ours = SingleChannelConv2d(filters, side).to(dtype)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


@pytest.mark.parametrize(
    ("batch", "filters", "side", "size"),
    [
        (3, 4, 5, (28, 28)),
        (2, 3, 3, (7, 12)),
        (2, 3, 3, (12, 7)),
        (1, 2, 4, (4, 9)),  # a single row of output
        (2, 2, 5, (5, 5)),  # a single pixel of output
        (2, 1, 1, (3, 4)),
        (1, 3, 2, (2, 2)),
    ],
)
def test_equals_conv2d_forward_and_backward(batch, filters, side, size):
    ours, reference = twins(filters, side)
    images = torch.randn(batch, 1, *size, dtype=torch.float64)
    theirs = images.clone().requires_grad_()
    images.requires_grad_()
    output, expected = ours(images), reference(theirs)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(expected)
    output.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(images.grad, theirs.grad)
    torch.testing.assert_close(ours.weight.grad, reference.weight.grad)
    torch.testing.assert_close(ours.bias.grad, reference.bias.grad)


def test_equals_conv2d_in_float32():
    ours, reference = twins(6, 9, torch.float32)
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(ours(images), reference(images), rtol=0, atol=1e-5)


def test_passes_gradcheck():
    ours, _ = twins(2, 3)
    images = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)

    def convolve(images, weight, bias):
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, images)

    assert torch.autograd.gradcheck(convolve, (images, ours.weight, ours.bias))


def test_starts_from_the_same_weights_as_conv2d():
    torch.manual_seed(3)
    expected = nn.Conv2d(1, 4, 5).state_dict()
    torch.manual_seed(3)
    ours = SingleChannelConv2d(4, 5).state_dict()
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        assert ours[name].equal(tensor)


def test_weights_load_into_conv2d_and_back():
    ours, fresh = SingleChannelConv2d(4, 5), nn.Conv2d(1, 4, 5)
    fresh.load_state_dict(ours.state_dict())
    images = torch.rand(2, 1, 9, 8)
    torch.testing.assert_close(fresh(images), ours(images))
    again = SingleChannelConv2d(4, 5)
    again.load_state_dict(fresh.state_dict())
    assert again(images).equal(ours(images))


def test_an_image_of_several_channels_is_not_taken_for_one():
    with pytest.raises((RuntimeError, IndexError)):
        SingleChannelConv2d(4, 5)(torch.rand(2, 3, 9, 8))
