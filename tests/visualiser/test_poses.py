"""Poses: against distortions and transforms whose pose is known."""

import pytest
import torch
from conftest import CPU
from untrained import deep_network, run_of, some_digits, texts, untrained_run

from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import DIGIT_PX
from stn_train.errors import ConfigError
from stn_train.geometry.matrices import square_to_quad
from stn_train.geometry.plane import pixel_centres, unit_square
from stn_train.tasks import examples as examples_of_tasks
from stn_train.tasks.examples import Examples
from stn_train.visualiser import charts
from stn_train.visualiser.poses import deviations, fit_affine, poses_undone_by, spread, undoing


def fixed(run, test):
    return Examples.for_test(run.config.task, test, 0)


def true_poses(distortion, parameters):
    side = distortion.image_px
    points = pixel_centres((side, side))
    maps = fit_affine(points, distortion.map_points(parameters, points))
    return poses_undone_by(maps, side)


@pytest.mark.parametrize("image_px", [DIGIT_PX, 40])
def test_pose_of_a_similarity_is_its_parameters(image_px):
    distortion = DISTORTIONS["RTS"]().fitted(image_px)
    parameters = distortion.draw(50, torch.Generator().manual_seed(0))
    found = torch.stack(true_poses(distortion, parameters), dim=1).float()
    torch.testing.assert_close(found, parameters, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["P", "E"])
def test_pose_of_an_undisplaced_digit_is_its_scale_alone(name):
    distortion = DISTORTIONS[name]()
    parameters = distortion.draw(20, torch.Generator().manual_seed(0))
    parameters[:, 1:] = 0
    found = true_poses(distortion, parameters)
    torch.testing.assert_close(found.scale.float(), parameters[:, 0], atol=1e-4, rtol=1e-4)
    for still in (found.angle_deg, found.right_px, found.down_px):
        assert float(still.abs().max()) < 1e-3


def test_points_behind_the_horizon_do_not_count():
    points = pixel_centres((28, 28))
    mapped = points[None].clone()
    mapped[0, :50] = 4.0
    torch.testing.assert_close(fit_affine(points, mapped)[0], torch.eye(3).double())


def undoing_rts(run, examples):
    """The theta of the affine transform that undoes each example's distortion."""
    distortion = run.config.distortion
    angle_deg, scale, right_px, down_px = examples.draws[0].T
    angle, reach = torch.deg2rad(angle_deg), distortion.image_px / distortion.canvas_px
    cos, sin = scale * angle.cos() * reach, scale * angle.sin() * reach
    right, down = (2 / distortion.image_px * px * reach for px in (right_px, down_px))
    return torch.stack([cos, sin, right, -sin, cos, down], dim=1)


def predict_always(run, theta):
    """Have the transformer predict theta, whatever it sees."""
    run.model.transformer.iterations = 1
    run.model.transformer.localise = lambda _: theta


def test_a_transformer_that_undoes_everything_leaves_nothing(tmp_path):
    run, test = untrained_run(tmp_path, distortion="RTS", transform="Aff")
    examples = fixed(run, test)
    predict_always(run, undoing_rts(run, examples))
    undone = undoing(run, examples)
    for name in undone.true._fields:
        assert spread(getattr(undone.true, name), name) > 0.1
        assert spread(getattr(undone.left, name), name) < 1e-4
        torch.testing.assert_close(
            getattr(undone.predicted, name), getattr(undone.true, name), atol=1e-3, rtol=1e-3
        )


def test_what_undoes_a_perspective_leaves_nothing(tmp_path):
    run, test = untrained_run(tmp_path, distortion="P", transform="Proj")
    examples = fixed(run, test)
    (parameters,) = examples.draws
    scale, shifts_px = parameters[:, 0], parameters[:, 1:].reshape(-1, 4, 2)
    to_quad = square_to_quad(unit_square(CPU) + shifts_px * (2 / 28))
    shrink = torch.stack([scale, scale, torch.ones_like(scale)], dim=1)
    matrices = to_quad * shrink[:, None]  # what the distortion inverts
    predict_always(run, (matrices / matrices[:, 2:, 2:]).flatten(1)[:, :8])
    undone = undoing(run, examples)
    for name in undone.true._fields:
        assert spread(getattr(undone.true, name), name) > 0.05
        assert spread(getattr(undone.left, name), name) < 1e-4


@pytest.mark.parametrize("name", ["R", "RTS", "P", "E"])
def test_poses_are_the_same_in_any_batches(name, tmp_path, monkeypatch):
    run, test = untrained_run(tmp_path, distortion=name, transform="Aff")
    examples = fixed(run, test)
    whole = undoing(run, examples)
    monkeypatch.setattr(examples_of_tasks, "MOST_AT_ONCE", 30)
    parts = undoing(run, examples)
    for kind in ("true", "predicted", "left"):
        for one, other in zip(getattr(whole, kind), getattr(parts, kind), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "theta", [(0, 0, 0, 0, 0, 0), (1, 0, 9, 0, 1, 9)], ids=["place", "outside"]
)
def test_a_collapsed_transformer_has_no_poses(theta, tmp_path):
    run, test = untrained_run(tmp_path, distortion="R", transform="Aff")
    collapsed = torch.tensor(theta).float().expand(len(test), -1).clone()
    predict_always(run, collapsed)
    undone = undoing(run, fixed(run, test))
    assert undone.predicted.angle_deg.isnan().all()
    assert undone.left.angle_deg.isnan().all()
    with pytest.raises(ConfigError, match="has collapsed"):
        charts.poses_undone(run, test)
    collapsed[:30] = torch.tensor([1, 0, 0, 0, 1, 0])
    assert f"{len(test) - 30} digits are read from" in texts(charts.poses_undone(run, test))


def test_a_transformer_of_feature_maps_has_no_poses(tmp_path):
    run = run_of(tmp_path, deep_network(), some_digits(), distortion="R")
    with pytest.raises(ConfigError, match=r"in front.* features\.1"):
        undoing(run, fixed(run, some_digits()))


def test_deviations_of_angles_go_round_the_circle():
    angles = torch.tensor([170.0, -170.0, 180.0])
    found = deviations(angles, "angle_deg")
    torch.testing.assert_close(found, torch.tensor([-10.0, 10.0, 0.0]), atol=1e-3, rtol=0)


def test_spread_within_classes_does_not_count_what_sets_them_apart():
    values, labels = torch.tensor([1.0, 1.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1])
    assert spread(values, "right_px") == pytest.approx(2.0)
    assert spread(values, "right_px", labels) == pytest.approx(0.0)
