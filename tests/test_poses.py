"""Poses: against distortions and transforms whose pose is known."""

import pytest
import torch
from conftest import CPU
from test_visualiser import fresh_run, texts

from stn_train import charts
from stn_train.data import test_set as fixed_test_set
from stn_train.distortions import DISTORTIONS, PIXEL, unit_square
from stn_train.errors import ConfigError
from stn_train.geometry import pixel_centres, square_to_quad
from stn_train.poses import deviations, fit_affine, poses_undone_by, spread, undoing


def true_poses(distortion, parameters):
    points = pixel_centres((28, 28))
    return poses_undone_by(fit_affine(points, distortion.map_points(parameters, points)))


def test_pose_of_a_similarity_is_its_parameters():
    distortion = DISTORTIONS["RTS"]()
    parameters = distortion.draw(50, torch.Generator().manual_seed(0))
    poses = torch.stack(true_poses(distortion, parameters), dim=1).float()
    torch.testing.assert_close(poses, parameters, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["P", "E"])
def test_pose_of_an_undisplaced_digit_is_its_scale_alone(name):
    distortion = DISTORTIONS[name]()
    parameters = distortion.draw(20, torch.Generator().manual_seed(0))
    parameters[:, 1:] = 0
    poses = true_poses(distortion, parameters)
    torch.testing.assert_close(poses.scale.float(), parameters[:, 0], atol=1e-4, rtol=1e-4)
    for still in (poses.angle_deg, poses.right_px, poses.down_px):
        assert float(still.abs().max()) < 1e-3


def test_points_behind_the_horizon_do_not_count():
    points = pixel_centres((28, 28))
    mapped = points[None].clone()
    mapped[0, :50] = 4.0
    torch.testing.assert_close(fit_affine(points, mapped)[0], torch.eye(3).double())


def test_a_transformer_that_undoes_everything_leaves_nothing(tmp_path):
    run, test = fresh_run(tmp_path, distortion="RTS", transform="Aff")
    distorted = fixed_test_set(test, run.config.distort, 0)
    angle_deg, scale, right_px, down_px = distorted.parameters.T
    angle, reach = torch.deg2rad(angle_deg), 28 / 42
    cos, sin = scale * angle.cos() * reach, scale * angle.sin() * reach
    right, down = right_px * PIXEL * reach, down_px * PIXEL * reach
    theta = torch.stack([cos, sin, right, -sin, cos, down], dim=1)
    at = iter(theta.split(500))
    run.model.transformer.look = lambda _: next(at)
    run.model.transformer.iterations = 1
    undone = undoing(run, distorted)
    for name in undone.true._fields:
        assert spread(getattr(undone.true, name), name) > 0.1
        assert spread(getattr(undone.left, name), name) < 1e-4
        torch.testing.assert_close(
            getattr(undone.predicted, name), getattr(undone.true, name), atol=1e-3, rtol=1e-3
        )


def test_what_undoes_a_perspective_leaves_nothing(tmp_path, monkeypatch):
    run, test = fresh_run(tmp_path, distortion="P", transform="Proj")
    distorted = fixed_test_set(test, run.config.distort, 0)
    scale, shifts_px = distorted.parameters[:, 0], distorted.parameters[:, 1:].reshape(-1, 4, 2)
    to_quad = square_to_quad(unit_square(CPU) + shifts_px * PIXEL)
    shrink = torch.stack([scale, scale, torch.ones_like(scale)], dim=1)
    matrices = to_quad * shrink[:, None]  # what the distortion inverts
    theta = (matrices / matrices[:, 2:, 2:]).flatten(1)[:, :8]
    run.model.transformer.look = lambda _: theta
    run.model.transformer.iterations = 1
    undone = undoing(run, distorted)
    for name in undone.true._fields:
        assert spread(getattr(undone.true, name), name) > 0.05
        assert spread(getattr(undone.left, name), name) < 1e-4


@pytest.mark.parametrize(
    "theta", [(0, 0, 0, 0, 0, 0), (1, 0, 9, 0, 1, 9)], ids=["place", "outside"]
)
def test_a_collapsed_transformer_has_no_poses(theta, tmp_path):
    run, test = fresh_run(tmp_path, distortion="R", transform="Aff")
    collapsed = torch.tensor(theta).float().expand(len(test), -1).clone()
    run.model.transformer.iterations = 1
    run.model.transformer.look = lambda _: collapsed
    undone = undoing(run, fixed_test_set(test, run.config.distort, 0))
    assert undone.predicted.angle_deg.isnan().all()
    assert undone.left.angle_deg.isnan().all()
    with pytest.raises(ConfigError, match="has collapsed"):
        charts.poses_undone(run, test)
    collapsed[:30] = torch.tensor([1, 0, 0, 0, 1, 0])
    assert "30 digits are read from one place or outside" in texts(charts.poses_undone(run, test))


def test_deviations_of_angles_go_round_the_circle():
    angles = torch.tensor([170.0, -170.0, 180.0])
    found = deviations(angles, "angle_deg")
    torch.testing.assert_close(found, torch.tensor([-10.0, 10.0, 0.0]), atol=1e-3, rtol=0)


def test_spread_within_classes_does_not_count_what_sets_them_apart():
    values, labels = torch.tensor([1.0, 1.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1])
    assert spread(values, "right_px") == pytest.approx(2.0)
    assert spread(values, "right_px", labels) == pytest.approx(0.0)
