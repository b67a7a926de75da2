"""What is measured of spatial transformers, against maps whose pose is known; and the verdicts."""

import math

import pytest
import torch
from conftest import CPU, ROOT
from torch import nn

from stn_train import diagnosis
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import Images
from stn_train.diagnosis import Circumstances, circumstances, describe, judge, watched
from stn_train.geometry.grids import AffineGrid, ProjectiveGrid
from stn_train.geometry.meshes import TPSGrid
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import (
    OutputLayer,
    ParallelTransformers,
    SpatialTransformer,
    Warp,
)
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples


def similarity(scale: float, angle_deg: float, x: float = 0.0, y: float = 0.0) -> list[float]:
    """The theta that turns an image counter-clockwise and reads an area of a size at a place."""
    cos, sin = (scale * trig(math.radians(angle_deg)) for trig in (math.cos, math.sin))
    return [cos, -sin, x, sin, cos, y]  # y points down


def warp(*thetas: list[float], transform=None, size=(20, 20)) -> Warp:
    theta = torch.tensor(thetas)
    grid = (transform or AffineGrid())(theta, size)
    return Warp(torch.zeros(len(theta), 1, *size), theta, grid)


def test_the_pose_of_similarities_is_measured():
    thetas = similarity(0.5, 10, 0.3, 0.4), similarity(0.7, 50, -0.3, -0.4)
    found = describe(warp(*thetas))
    assert found["outside_share"] == pytest.approx(
        float((AffineGrid()(torch.tensor(thetas), (20, 20)).abs() > 1).any(-1).double().mean())
    )
    assert found["theta_spread"] == pytest.approx(
        sum(abs(a - b) / 2 for a, b in zip(*thetas, strict=True)) / 6
    )
    expected = {"scale": 0.6, "scale_spread": 0.1, "angle_deg": 30, "angle_spread_deg": 20}
    expected |= {"shift": 0.5, "shift_spread": 0.5}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key


def test_a_positive_angle_turns_the_image_counter_clockwise():
    picture = torch.zeros(1, 1, 20, 20)
    picture[..., 10, 15:] = 1  # to the right of the middle
    transformer = SpatialTransformer(nn.Flatten(), 400, AffineGrid())
    with torch.no_grad():
        transformer.regression.bias.copy_(torch.tensor(similarity(1.0, 90)))
    done = transformer.warp(picture)
    assert describe(done)["angle_deg"] == pytest.approx(90, abs=1e-3)
    assert done.output[..., :8, :].sum() > 3  # on top now


def test_angles_are_averaged_across_half_a_turn():
    found = describe(warp(similarity(1.0, 170), similarity(1.0, -170)))
    assert abs(found["angle_deg"]) == pytest.approx(180, abs=1e-3)
    assert found["angle_spread_deg"] == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.01, 4.0, 50.0])
def test_a_collapsed_grid_has_a_scale_too(scale):
    assert describe(warp(similarity(scale, 0)))["scale"] == pytest.approx(scale, abs=1e-5)


def test_a_grid_far_away_has_a_place():
    found = describe(warp(similarity(1.0, 0, 30, 40)))
    assert (found["outside_share"], found["shift"]) == (1.0, pytest.approx(50, rel=1e-4))


def test_the_horizon_of_a_projective_map_does_not_decide():
    theta = [0.5, 0, 0, 0, 0.5, 0, 0.98, 0.0]  # the left edge lies almost on it
    found = describe(warp(theta, transform=ProjectiveGrid()))
    assert 0.3 < found["scale"] < 2


def test_the_pose_of_a_spline_is_that_of_its_control_points():
    transform = TPSGrid()
    affine = torch.tensor(similarity(0.8, 25, 0.1, 0)).view(2, 3)
    theta = (transform.control @ affine[:, :2].T + affine[:, 2]).flatten()
    found = describe(warp(theta.tolist(), transform=transform))
    assert found["scale"] == pytest.approx(0.8, abs=1e-4)
    assert found["angle_deg"] == pytest.approx(25, abs=1e-2)


def test_volumes_have_a_scale_and_no_angle():
    theta = (0.5 * torch.eye(3, 4)).flatten().tolist()
    found = describe(warp(theta, transform=AffineGrid(3), size=(6, 6, 6)))
    assert found["scale"] == pytest.approx(0.5)
    assert "angle_deg" not in found


# Gradients.


def network_of(count: int) -> Network:
    """Transformers side by side in front of a linear layer."""
    network = Network()
    each = [
        SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5, AffineGrid())
        for _ in range(count)
    ]
    for transformer in each:
        nn.init.normal_(transformer.regression.weight, std=0.01)
    network.add_module("transformer", each[0] if count == 1 else ParallelTransformers(*each))
    network.add_module("classifier", nn.Sequential(nn.Flatten(), OutputLayer(64 * count, 3)))
    return network


@pytest.mark.parametrize("count", [1, 2])
def test_norms_are_those_of_the_newest_gradient(count):
    torch.manual_seed(0)
    network, images = network_of(count), torch.rand(5, 1, 8, 8)
    assert "classifier_gradient_norm" not in watched(network.trace(images).warps, network)
    network(images).square().sum().backward()
    record = watched(network.trace(images).warps, network)

    def norm(module: nn.Module) -> float:
        parts = [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
        return float(torch.cat(parts).norm())

    assert record["classifier_gradient_norm"] == pytest.approx(norm(network.classifier))
    own = [norm(each.localisation) for each in network.transformers.values()]
    assert record["localisation_gradient_norm"] == pytest.approx(sum(own) / count)
    for name, value in zip(network.transformers, own, strict=True) if count > 1 else ():
        assert record[f"localisation_gradient_norm.{name}"] == pytest.approx(value)
        one = diagnosis.of_transformer(record, name)
        assert one["localisation_gradient_norm"] == pytest.approx(value)


# Verdicts.

ON_R = Circumstances(turned_deg=52.0)
FROZEN = Circumstances(turned_deg=52.0, rate_scale=0.0)
HEALTHY = {
    **{"outside_share": 0.1, "theta_spread": 0.2, "scale": 0.9, "angle_spread_deg": 45.0},
    **{"localisation_gradient_norm": 0.2, "classifier_gradient_norm": 0.5},
}

VERDICTS = [
    ({}, ON_R, "healthy"),
    ({"outside_share": 0.6}, ON_R, "healthy"),
    ({"outside_share": 0.951}, ON_R, "black"),
    ({"outside_share": 0.7, "scale": 1.8}, ON_R, "zooms out"),
    ({"outside_share": 0.7, "scale": 1.0}, ON_R, "looks past the image"),
    ({"scale": 0.1}, ON_R, "reads a spot"),
    ({"scale": 0.33}, ON_R, "healthy"),  # a digit of 28 px on 84 px
    ({"localisation_gradient_norm": 1e-4}, ON_R, "gets no gradient"),
    ({"localisation_gradient_norm": 0.0, "theta_spread": 0.0}, FROZEN, "does not move"),
    ({"localisation_gradient_norm": 0.0, "classifier_gradient_norm": 0.0}, ON_R, "healthy"),
    ({"theta_spread": 0.001}, ON_R, "does not move"),
    ({"theta_spread": 0.001}, Circumstances(varied=False), "healthy"),
    ({"angle_spread_deg": 5.0}, ON_R, "does not turn"),
    ({"angle_spread_deg": 5.0}, Circumstances(turned_deg=3.0), "healthy"),
    ({"angle_spread_deg": 0.0}, ON_R._replace(can_turn=False), "cannot turn"),
]


@pytest.mark.parametrize(("measured", "given", "name"), VERDICTS, ids=str)
def test_the_verdict_follows_from_the_numbers(measured, given, name):
    finding = judge({**HEALTHY, **measured}, given)
    assert finding.name == name
    assert finding.healthy == (name == "healthy") == (not finding.advice)
    assert finding.collapsed == (
        name in ("black", "zooms out", "looks past the image", "reads a spot")
    )


def test_what_earlier_versions_measured_is_judged():
    assert judge({"outside_share": 0.1, "theta_spread": 0.2}, ON_R).healthy
    assert judge({"outside_share": 0.1}, ON_R).healthy
    assert judge({"outside_share": 0.99, "theta_spread": 0.2}).name == "black"
    assert judge({"outside_share": 0.7, "theta_spread": 0.2}).collapsed


def test_advice_depends_on_what_was_tried():
    black = {**HEALTHY, "outside_share": 1.0}
    assert "localisation_learning_rate_scale=0.1" in judge(black).advice
    assert judge(black, Circumstances(rate_scale=30)).advice.count("rate_scale=1,") == 1
    bright = judge({**HEALTHY, "outside_share": 0.7, "scale": 2}, Circumstances(background=0.9))
    assert "brightness of 0.90" in bright.advice
    still = {**HEALTHY, "theta_spread": 0.0}
    assert "raise it" in judge(still, Circumstances(rate_scale=0)).advice
    assert "lower" in judge(still, Circumstances(rate_scale=30)).advice
    assert "st_iterations" in judge(still).advice
    assert "st_iterations" not in judge(still, Circumstances(iterations=2)).advice
    assert "brightness" in judge(still, Circumstances(background=0.5)).advice


def test_every_bound_is_documented_with_its_value():
    page = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    bounds = [name for name in vars(diagnosis) if name.isupper()]
    assert len(bounds) == 9
    for name in bounds:
        value = getattr(diagnosis, name)
        assert f"`{name}` = {value:g}" in page
    for _, _, name in VERDICTS:
        assert f"**{name}**" in page


# Circumstances.

ONE = SpatialTransformer(nn.Flatten(), 784, AffineGrid(), iterations=3)


@pytest.mark.parametrize(
    ("name", "turned_deg"), [("none", 0), ("R", 90 / 3**0.5), ("RTS", 45 / 3**0.5), ("T", 0)]
)
def test_what_a_distortion_does_is_known_from_its_draws(splits, name, turned_deg):
    task = Classification().with_distortion(DISTORTIONS[name]())
    examples = Examples.for_test(task, splits.test, 0)
    found = circumstances(examples, ONE, 1.0)
    assert found.turned_deg == pytest.approx(turned_deg, rel=0.1, abs=0.1)
    assert found.varied == (name != "none")
    assert found.background == 0
    bright = Images(255 - splits.test.pixels, splits.test.labels, splits.test.classes)
    inverted = circumstances(Examples.for_test(task, bright, 0), ONE, 0.1)
    assert inverted.background == 1
    assert (inverted.rate_scale, inverted.iterations) == (0.1, 3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_which_transforms_can_turn(name):
    transform = TRANSFORMS[name]().build().to(CPU)
    assert diagnosis.turns(transform) == (name not in ("Translation", "Attention"))
