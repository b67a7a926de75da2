"""Networks as configs build them: their weights, sizes, names, and the trace of what happens."""

import hashlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_train.config import Config
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import ImageFormat
from stn_train.geometry.grids import AffineGrid, ProjectiveGrid
from stn_train.geometry.transforms import TRANSFORMS, Affine
from stn_train.models.assembly import build_network
from stn_train.models.backbones import BACKBONES, FullyConnected
from stn_train.models.network import Network, parameter_count
from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer
from stn_train.models.transformer_settings import TransformerSettings

MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))
EVERY_BACKBONE = pytest.mark.parametrize("backbone", BACKBONES)
EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS)

# Counted by hand, layer by layer, from the sizes in the paper's appendix A.4.
CLASSIFIER = {
    ("FCN", 21): 181_514,  # 441 -> 256 -> 256 -> 10
    ("FCN", 28): 269_322,  # 784 -> 256 -> 256 -> 10
    ("FCN", 42): 520_202,  # 1764 -> 256 -> 256 -> 10
    ("CNN", 21): 206_666,  # 64 9x9, 64 7x7, 1x1x64 -> 10
    ("CNN", 28): 208_586,  # 64 9x9, 64 7x7, 2x2x64 -> 10
    ("CNN", 42): 229_066,  # 64 9x9, 64 7x7, 6x6x64 -> 10
}
LOCALISATION = {
    ("FCN", 28): 27_232,  # 784 -> 32 -> 32 -> 32
    ("FCN", 42): 58_592,  # 1764 -> 32 -> 32 -> 32
    ("CNN", 28): 10_960,  # 20 5x5, 20 5x5, 1x1x20 -> 20
    ("CNN", 42): 20_560,  # 20 5x5, 20 5x5, 5x5x20 -> 20
}
FEATURES = {"FCN": 32, "CNN": 20}
THETA = {"none": 0, "Aff": 6, "Proj": 8, "TPS": 32}
CANVAS = {"R": 28, "RTS": 42, "P": 28, "E": 28}
CELLS = list(itertools.product(CANVAS, FEATURES, THETA))


def config_of(distortion, backbone, transform, recipe="paper", **changes):
    names = {"distortion": distortion, "backbone": backbone, "transform": transform}
    return Config.model_validate({**names, "recipe": recipe, **changes})


def network_of(distortion, backbone, transform, recipe="paper", seed=0, images=MNIST, **changes):
    torch.manual_seed(seed)
    return config_of(distortion, backbone, transform, recipe, **changes).build_network(images)


def images_of(distortion, count=2, channels=1):
    """Noise (count, channels, C, C), bright up to the border."""
    side = DISTORTIONS[distortion]().canvas_px
    return torch.rand(count, channels, side, side)


# What checkpoints hold.


def sha256(network):
    """SHA-256 of the names and values of a state_dict, in order."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("cell", "recipe", "expected"),
    [
        (
            ("RTS", "FCN", "Aff"),
            "default",
            "cac633d0938d416efd809498816068153a55abc9790f11effeff68937eccfd00",
        ),
        (
            ("P", "CNN", "TPS"),
            "default",
            "448a27db40d7d6c6f2ed194d2ae598b929f37dd0d95de858515d2bb94f4a6860",
        ),
        (
            ("E", "FCN", "none"),
            "paper",
            "3a01346328732ff7b6fce2cff7426064d810ff4315e005a46cc9541abd5e9cd0",
        ),
        (
            ("R", "CNN", "Proj"),
            "paper",
            "4738ba2cb3e38db5e8e36d8a01233135615515fa12eed1c7fb9fa98a8b8ee683",
        ),
        (
            ("none", "tutorial", "Proj"),
            "default",
            "40a4f6b82c5f5ed9575eebe9afcd0d24ab84832ab5736cf6232bcade72432970",
        ),
        (
            ("RTS", "CNN", "none"),
            "default",
            "ae2ab39600713882c19e455eabc804f08e7043b3bfd5528587c5fe0d9eee3144",
        ),
    ],
    ids=str,
)
def test_first_weights_of_a_seed_have_not_changed(cell, recipe, expected):
    """The names and bits of the version that measured the results that ship."""
    assert sha256(network_of(*cell, recipe, seed=1)) == expected


LAYERS = {
    "FCN": (["localisation.1", "localisation.3", "localisation.5"], ["1", "3", "6"]),
    "CNN": (["localisation.0", "localisation.3", "localisation.6"], ["0", "3", "8"]),
}
"""The layers with weights: of the localisation network, and of the classifier."""


def weights_and_biases(stage, layers):
    return [f"{stage}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.mark.parametrize("distortion", CANVAS)
@pytest.mark.parametrize("backbone", LAYERS)
def test_names_in_the_state_dict_are_those_of_checkpoints(distortion, backbone):
    localisation, classifier = LAYERS[backbone]
    plain = weights_and_biases("classifier", classifier)
    assert [*network_of(distortion, backbone, "none").state_dict()] == plain
    transformed = weights_and_biases("transformer", [*localisation, "regression"]) + plain
    for transform in TRANSFORMS:
        assert [*network_of(distortion, backbone, transform).state_dict()] == transformed


@EVERY_BACKBONE
def test_the_seed_decides_the_first_weights(backbone):
    one, same, other = (sha256(network_of("R", backbone, "Aff", seed=s)) for s in (1, 1, 2))
    assert one == same != other


def test_the_classifier_starts_alike_with_and_without_a_transformer():
    plain, transformed = (network_of("R", "CNN", transform) for transform in ("none", "TPS"))
    for name, tensor in plain.classifier.state_dict().items():
        assert tensor.equal(transformed.classifier.state_dict()[name])


# Sizes.


@pytest.mark.parametrize(("distortion", "backbone", "transform"), CELLS)
def test_every_cell_builds_runs_and_counts_as_by_hand(distortion, backbone, transform):
    network = network_of(distortion, backbone, transform)
    logits = network(images_of(distortion))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    canvas = CANVAS[distortion]
    if transform == "none":
        expected = CLASSIFIER[backbone, canvas]
    else:
        seen = {28: 28, 42: 21}[canvas]  # by the classifier: RTS is pooled
        regression = (FEATURES[backbone] + 1) * THETA[transform]
        expected = CLASSIFIER[backbone, seen] + LOCALISATION[backbone, canvas] + regression
    assert parameter_count(network) == expected


@EVERY_TRANSFORM
@pytest.mark.parametrize("backbone", FEATURES)
@pytest.mark.parametrize("distortion", CANVAS)
def test_transformers_of_the_default_recipe_have_no_more_than_400_000_weights(
    distortion, backbone, transform
):
    assert parameter_count(network_of(distortion, backbone, transform, "default")) <= 400_000


def test_the_tutorial_network_counts_as_pytorchs():
    assert parameter_count(network_of("R", "tutorial", "none")) == 21_840
    assert parameter_count(network_of("R", "tutorial", "Aff")) == 27_360


def test_localisation_network_of_an_fcn_may_see_the_image_pooled():
    whole, pooled = (
        network_of("RTS", "FCN", "Aff", model=model) for model in ({}, {"localisation_pool": 2})
    )
    saved = parameter_count(whole.transformer) - parameter_count(pooled.transformer)
    assert saved == 32 * (42**2 - 21**2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transform", [*TRANSFORMS, "none"])
@EVERY_BACKBONE
def test_networks_take_images_of_any_channels_and_classes(backbone, transform, channels):
    images = ImageFormat((channels, 28, 28), ("cat", "dog", "emu"))
    network = network_of("RTS", backbone, transform, images=images)
    inputs = images_of("RTS", channels=channels)
    assert network(inputs).shape == (2, 3)
    for warp in network.trace(inputs).warps.values():
        assert warp.output.shape[:2] == (2, channels)


# What a transformer in front does at the start.


@pytest.mark.parametrize("distortion", ["R", "P", "E"])
@EVERY_BACKBONE
@EVERY_TRANSFORM
def test_a_new_transformer_shows_the_classifier_the_image_itself(distortion, backbone, transform):
    network, images = network_of(distortion, backbone, transform).eval(), images_of(distortion)
    trace = network.trace(images)
    warp = trace.warps["transformer"]
    # On noise, whose steps are as large as they can be; 28 px are 28 times a float32's last bit.
    torch.testing.assert_close(warp.output, images, rtol=0, atol=5e-6)
    assert warp.theta.shape == (2, network.transformer.transform.parameter_count)
    assert warp.grid.shape == (2, 28, 28, 2)
    assert trace.stage_inputs["classifier"].equal(warp.output)
    assert network.shown(warp.output) is warp.output


@EVERY_BACKBONE
@EVERY_TRANSFORM
def test_unless_told_otherwise_rts_is_sampled_at_56_px_and_pooled_to_28(backbone, transform):
    untold = {"st_output_px": None, "st_pool": None}
    network, images = network_of("RTS", backbone, transform, model=untold), images_of("RTS")
    network.eval()
    trace = network.trace(images)
    assert trace.warps["transformer"].grid.shape == (2, 56, 56, 2)
    enlarged = F.interpolate(images, (56, 56), mode="bilinear", align_corners=False)
    expected = F.avg_pool2d(enlarged, 2)
    shown = network.shown(trace.warps["transformer"].output)
    assert shown.shape == expected.shape == (2, 1, 28, 28)
    assert shown.equal(trace.stage_inputs["classifier"])
    # interpolate repeats the border where the sampler goes to zero.
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(shown[inside], expected[inside], rtol=0, atol=1e-5)


@EVERY_BACKBONE
@EVERY_TRANSFORM
def test_the_literal_reading_of_rts_pools_42_px_to_21(backbone, transform):
    literal = {"st_output_px": "input"}
    network, images = network_of("RTS", backbone, transform, model=literal), images_of("RTS")
    trace = network.eval().trace(images)
    shown = network.shown(trace.warps["transformer"].output)
    torch.testing.assert_close(shown, F.avg_pool2d(images, 2), rtol=0, atol=5e-6)
    assert trace.outputs.shape == (2, 10)


# The trace.


def moved(network):
    """A network whose transformers do something."""
    torch.manual_seed(1)
    for transformer in network.transformers.values():
        nn.init.normal_(transformer.regression.weight, std=0.1)
    return network.eval()


def stage(localised_px, channels, grid=AffineGrid, output_size=None):
    """A spatial transformer for maps of a size."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * localised_px**2, 6), nn.Tanh())
    return SpatialTransformer(layers, 6, grid(), output_size)


def named(**stages):
    network = Network()
    for name, each in stages.items():
        network.add_module(name, each)
    return moved(network)


def test_trace_of_a_baseline_has_no_warp():
    network, images = network_of("R", "FCN", "none").eval(), images_of("R")
    assert network.transformers == {}
    trace = network.trace(images)
    assert trace.outputs.equal(network(images))
    assert trace.warps == {}
    assert [*trace.stage_inputs] == ["classifier"]
    assert trace.stage_inputs["classifier"] is images


@pytest.mark.parametrize("distortion", ["R", "RTS"])
@EVERY_BACKBONE
def test_trace_of_a_transformer_in_front(distortion, backbone):
    network, images = moved(network_of(distortion, backbone, "Aff")), images_of(distortion)
    trace = network.trace(images)
    assert trace.outputs.equal(network(images))
    assert [*network.transformers] == [*trace.warps] == ["transformer"]
    expected = network.transformer.warp(images)
    for value, wanted in zip(trace.warps["transformer"], expected, strict=True):
        assert value.equal(wanted)
    assert [*trace.stage_inputs] == [name for name, _ in network.named_children()]
    assert trace.stage_inputs["classifier"].equal(network.shown(expected.output))


def test_trace_of_two_parallel_transformers():
    pair = ParallelTransformers(stage(28, 1), stage(28, 1, ProjectiveGrid))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(2 * 28 * 28, 10))
    network = named(attend=pair, classifier=classifier)
    images = images_of("R")
    trace = network.trace(images)
    assert [*network.transformers] == [*trace.warps] == ["attend.0", "attend.1"]
    assert trace.outputs.equal(network(images))
    outputs = [warp.output for warp in trace.warps.values()]
    assert trace.stage_inputs["classifier"].equal(torch.cat(outputs, dim=1))
    for transformer, warp in zip(pair, trace.warps.values(), strict=True):
        assert warp.theta.equal(transformer.warp(images).theta)
    assert trace.warps["attend.1"].theta.shape == (2, 8)


def test_trace_of_a_transformer_deep_inside_the_classifier():
    deep = stage(12, 4, output_size=(6, 9))
    features = nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.Sequential(deep))
    classifier = nn.Sequential(features, nn.Flatten(), nn.Linear(4 * 6 * 9, 10))
    network = named(transformer=stage(28, 1), classifier=classifier)
    images = images_of("R")
    trace = network.trace(images)
    assert [*trace.warps] == ["transformer", "classifier.0.2.0"]
    assert network.transformers["classifier.0.2.0"] is deep
    assert trace.outputs.equal(network(images))
    warp = trace.warps["classifier.0.2.0"]
    assert warp.output.shape == (2, 4, 6, 9)
    seen = features[1](features[0](trace.warps["transformer"].output))
    torch.testing.assert_close(warp.output, deep(seen))
    assert trace.stage_inputs["classifier"].equal(trace.warps["transformer"].output)


@pytest.mark.parametrize("training", [True, False])
def test_trace_leaves_the_network_as_it_was(training):
    network = moved(network_of("RTS", "CNN", "TPS")).train(training)
    before = sha256(network)
    network.trace(images_of("RTS"))
    assert network.training is training
    assert sha256(network) == before
    assert not any(module._forward_hooks for module in network.modules())


def test_trace_takes_its_hooks_away_after_an_error():
    network = network_of("R", "FCN", "Aff")
    with pytest.raises(RuntimeError):
        network.trace(torch.rand(2, 1, 5, 5))
    assert not any(module._forward_hooks for module in network.modules())


def test_the_config_chooses_the_sampling_kernel():
    smooth = network_of("R", "FCN", "Aff", model={"sampling": "bicubic"})
    assert smooth.transformer.sampling == "bicubic"
    assert network_of("R", "FCN", "Aff").transformer.sampling == "bilinear"
    images = images_of("R")
    assert not moved(smooth)(images).equal(moved(network_of("R", "FCN", "Aff"))(images))


def test_iterations_are_one_warp_of_a_trace():
    network = moved(network_of("RTS", "FCN", "Aff", model={"st_iterations": 3}))
    trace = network.trace(images_of("RTS"))
    assert [*trace.warps] == ["transformer"]
    assert network.transformer.iterations == 3


# build_network for itself.


def test_a_baseline_builds_no_localisation_network():
    class Counting(FullyConnected):
        def localisation(self, shape):
            raise AssertionError("not for a baseline")

    network = build_network(Counting(), None, TransformerSettings(), (1, 28, 28), 10, 28)
    assert [*network._modules] == ["classifier"]


def test_settings_that_leave_too_little_to_see_are_refused_by_name():
    cnn = BACKBONES["CNN"]()
    for settings, key in [
        (TransformerSettings(st_output_px=20), "model.st_output_px is 20"),
        (TransformerSettings(st_output_px=43, st_pool=2), "model.st_output_px is 43"),
        (TransformerSettings(localisation_pool=4), "model.localisation_pool is 4"),
    ]:
        with pytest.raises(ValueError, match=key):
            build_network(cnn, Affine(), settings, (1, 28, 28), 10, 28)


@EVERY_BACKBONE
def test_an_image_that_is_not_square_is_taken(backbone):
    settings = TransformerSettings(st_output_px=28, st_pool=1)
    network = build_network(BACKBONES[backbone](), Affine(), settings, (1, 42, 60), 10, 28)
    assert network(torch.rand(2, 1, 42, 60)).shape == (2, 10)
