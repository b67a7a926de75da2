"""The networks of the paper: they build, they count what is documented, they start as identity."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from stn_train.config import SMALLEST_INPUT, SMALLEST_LOOK, Config
from stn_train.distortions import DISTORTIONS
from stn_train.models import build_backbone, build_model, parameter_count
from stn_train.transforms import TRANSFORMS

# Counted by hand, layer by layer, from the sizes in the paper's appendix A.4.
CLASSIFIER = {
    ("FCN", 28): 269_322,  # 784 -> 256 -> 256 -> 10
    ("FCN", 42): 520_202,  # 1764 -> 256 -> 256 -> 10
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
THETA = {"Aff": 6, "Proj": 8, "TPS": 32}
CANVAS = {"R": 28, "RTS": 42, "P": 28, "E": 28}
CELLS = list(itertools.product(CANVAS, ["FCN", "CNN"], ["none", "Aff", "Proj", "TPS"]))


def model_of(distortion, backbone, transform, seed=0, **model):
    config = {"distortion": distortion, "backbone": backbone, "transform": transform}
    config["recipe"] = "paper"  # its networks
    torch.manual_seed(seed)
    return build_model(Config.model_validate({**config, "model": model}))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("backbone", ["FCN", "CNN"])
@pytest.mark.parametrize("distortion", ["R", "RTS", "P", "E"])
def test_transformers_of_the_default_recipe_have_no_more_than_400_000_weights(
    distortion, backbone, transform
):
    config = Config(distortion=distortion, backbone=backbone, transform=transform)
    assert parameter_count(build_model(config)) <= 400_000


def images_of(distortion, count=2):
    """Noise (count, 1, C, C), bright up to the border."""
    return torch.rand(count, 1, CANVAS[distortion], CANVAS[distortion])


def test_there_are_32_cells_and_no_other_names():
    assert len(CELLS) == 32
    assert set(DISTORTIONS) == {*CANVAS, "none"}
    assert set(TRANSFORMS) == set(THETA)


@pytest.mark.parametrize(("distortion", "backbone", "transform"), CELLS)
def test_every_cell_builds_runs_and_counts_as_by_hand(distortion, backbone, transform):
    model = model_of(distortion, backbone, transform)
    logits = model(images_of(distortion))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    canvas = CANVAS[distortion]
    if transform == "none":
        expected = CLASSIFIER[backbone, canvas]
    else:  # the classifier sees 28 px: RTS is pooled
        regression = (FEATURES[backbone] + 1) * THETA[transform]
        expected = CLASSIFIER[backbone, 28] + LOCALISATION[backbone, canvas] + regression
    assert parameter_count(model) == expected


@pytest.mark.parametrize("distortion", ["R", "P", "E"])
@pytest.mark.parametrize("backbone", ["FCN", "CNN", "tutorial"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_new_transformer_shows_the_classifier_the_image_itself(distortion, backbone, transform):
    model, images = model_of(distortion, backbone, transform).eval(), images_of(distortion)
    warp = model.warp(images)
    # On noise, whose steps are as large as they can be; 28 px are 28 times a float32's last bit.
    torch.testing.assert_close(warp.output, images, rtol=0, atol=5e-6)
    assert warp.theta.shape == (2, THETA[transform])
    assert warp.grid.shape == (2, 28, 28, 2)
    torch.testing.assert_close(model(images), model.classifier(warp.output))


@pytest.mark.parametrize("backbone", ["FCN", "CNN", "tutorial"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_on_rts_the_output_is_sampled_at_56_px_and_pooled_to_28(backbone, transform):
    model, images = model_of("RTS", backbone, transform).eval(), images_of("RTS")
    warp = model.warp(images)
    assert warp.grid.shape == (2, 56, 56, 2)
    enlarged = F.interpolate(images, (56, 56), mode="bilinear", align_corners=False)
    expected = F.avg_pool2d(enlarged, 2)
    assert warp.output.shape == expected.shape == (2, 1, 28, 28)
    # interpolate repeats the border where the sampler goes to zero.
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(warp.output[inside], expected[inside], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images), model.classifier(warp.output))


@pytest.mark.parametrize("backbone", ["FCN", "CNN", "tutorial"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_literal_reading_of_rts_pools_42_px_to_21(backbone, transform):
    model = model_of("RTS", backbone, transform, st_output_px=42, st_pool=2).eval()
    images = images_of("RTS")
    warp = model.warp(images)
    torch.testing.assert_close(warp.output, F.avg_pool2d(images, 2), rtol=0, atol=5e-6)
    assert model(images).shape == (2, 10)


def test_sizes_in_the_config_change_the_networks():
    assert parameter_count(model_of("R", "FCN", "none", hidden=128)) == 118_282
    assert parameter_count(model_of("R", "CNN", "none", filters=(32, 16))) == 28_378
    small = model_of("R", "CNN", "Aff", localisation_filters=8, localisation_features=10)
    assert parameter_count(small) == CLASSIFIER["CNN", 28] + 208 + 1_608 + 90 + 66


def test_the_tutorial_network_counts_as_pytorchs():
    assert parameter_count(model_of("R", "tutorial", "none")) == 21_840
    assert parameter_count(model_of("R", "tutorial", "Aff")) == 27_360


@pytest.mark.parametrize("backbone", SMALLEST_INPUT)
def test_the_seed_decides_the_first_weights(backbone):
    model, same = model_of("R", backbone, "Aff", seed=1), model_of("R", backbone, "Aff", seed=1)
    other = model_of("R", backbone, "Aff", seed=2)
    weights = model.state_dict()
    assert weights
    for name, tensor in same.state_dict().items():
        assert tensor.equal(weights[name])
    assert not other.classifier[-1].weight.equal(model.classifier[-1].weight)


def test_the_classifier_starts_alike_with_and_without_a_transformer():
    plain, transformed = model_of("R", "CNN", "none"), model_of("R", "CNN", "TPS")
    for name, tensor in plain.classifier.state_dict().items():
        assert tensor.equal(transformed.classifier.state_dict()[name])


def test_a_model_without_a_transformer_has_nothing_to_warp():
    with pytest.raises(ValueError, match="this model has no spatial transformer"):
        model_of("R", "FCN", "none").warp(images_of("R"))


@pytest.mark.parametrize("backbone", ["FCN", "CNN"])
def test_dropout_leaves_out_last_features_in_training_alone(backbone):
    model = model_of("R", backbone, "none", dropout=0.25)
    seen = {}
    model.classifier[-1].register_forward_pre_hook(lambda _, inputs: seen.update(last=inputs[0]))
    images = images_of("R", 300)
    model.eval()(images)
    alive = seen["last"] > 0
    model.train()(images)
    left_out = seen["last"][alive] == 0
    assert float(left_out.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_localisation_network_of_an_fcn_may_see_the_image_pooled():
    whole, pooled = (
        model_of("RTS", "FCN", "Aff"),
        model_of("RTS", "FCN", "Aff", localisation_pool=2),
    )
    saved = parameter_count(whole.transformer) - parameter_count(pooled.transformer)
    assert saved == 32 * (42**2 - 21**2)


@pytest.mark.parametrize("backbone", SMALLEST_LOOK)
def test_smallest_look_is_the_smallest(backbone):
    settings = {"backbone": backbone, "distortion": "none", "transform": "Aff"}
    config = Config.model_validate(settings)
    least = SMALLEST_LOOK[backbone]
    assert build_backbone(config, least, 28).localisation(torch.rand(2, 1, least, least)).ndim == 2
