"""A new distortion or transform takes one class and one dict entry, and nothing else."""

from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Generator, Tensor

import stn_train
from stn_train import geometry
from stn_train.config import Config
from stn_train.distortions import DISTORTIONS, Distortion, distort, draw_uniform
from stn_train.models import build_model
from stn_train.transforms import TRANSFORMS, TransformGrid


class Shear(Distortion):
    """Each row moved sideways, the further from the middle the more."""

    max_shear: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The shear is uniform between minus this and this."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        return draw_uniform(-self.max_shear, self.max_shear, (count, 1), generator)

    def map_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        return torch.stack([x + parameters * y, y.expand(len(parameters), -1)], dim=-1)


class AttentionGrid(TransformGrid):
    """Isotropic scale and translation, 3 parameters: the paper's equation 2."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([1.0, 0.0, 0.0]))

    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        return theta[:, None, :1] * points + theta[:, None, 1:]

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        scale, shift = first[:, :1], first[:, 1:]
        return torch.cat([scale * second[:, :1], scale * second[:, 1:] + shift], dim=1)


EXPERIMENT = {"distortion": "Shear", "distort": {"max_shear": 0.3}, "transform": "Attention"}


@pytest.fixture
def _named(monkeypatch):
    monkeypatch.setitem(DISTORTIONS, "Shear", Shear)
    monkeypatch.setitem(TRANSFORMS, "Attention", AttentionGrid)


@pytest.mark.usefixtures("_named")
def test_config_takes_the_new_names_and_parameters():
    config = Config.model_validate(EXPERIMENT)
    assert config.distort == Shear(max_shear=0.3)
    assert config.as_dict()["distort"] == {"canvas_px": 28, "max_shear": 0.3}
    assert Config.model_validate(config.as_dict()) == config
    assert "Attention" in config.cell
    assert "Shear" in config.cell
    assert Config.model_validate({"distortion": "Shear"}).distort == Shear(max_shear=0.5)


@pytest.mark.usefixtures("_named")
@pytest.mark.parametrize(
    ("distort", "message"),
    [
        ({"max_shear": 1.5}, r"max_shear\s+Input should be less than or equal to 1"),
        ({"max_shear": "much"}, r"max_shear\s+Input should be a valid number"),
        ({"max_sheer": 0.3}, r"max_sheer\s+Extra inputs are not permitted"),
        ({"max_angle_deg": 90.0}, r"max_angle_deg\s+Extra inputs are not permitted"),
    ],
)
def test_config_refuses_wrong_parameters_of_the_new_distortion(distort, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({**EXPERIMENT, "distort": distort})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distortion": "Shear"}, r"distortion\s+one of \['R', 'RTS', 'P', 'E', 'none'\]"),
        ({"transform": "Attention"}, r"transform\s+one of \['Aff', 'Proj', 'TPS', 'none'\]"),
    ],
)
def test_config_refuses_names_that_nobody_has_added(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(wrong)


@pytest.mark.usefixtures("_named")
@pytest.mark.parametrize("backbone", ["FCN", "CNN", "tutorial"])
def test_a_model_learns_the_new_transform_on_the_new_distortion(backbone):
    config = Config.model_validate({**EXPERIMENT, "backbone": backbone})
    torch.manual_seed(0)
    digits = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    drawn = config.distort.draw(4, torch.Generator().manual_seed(0))
    images = distort(digits, config.distort, drawn)
    model = build_model(config)
    warp = model.warp(images)
    assert warp.theta.shape == (4, 3)
    torch.testing.assert_close(warp.output, images, rtol=0, atol=5e-6)
    F.cross_entropy(model(images), torch.arange(4)).backward()
    assert model.transformer.regression.bias.grad.all()
    assert model.transformer.regression.weight.grad.any(dim=1).all()


def test_the_new_distortion_equals_rows_moved_by_hand():
    digits = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    # At a shear of 1 a row 13.5 px below the middle is read from 13.5 px further right.
    sheared = distort(digits, Shear(), torch.ones(1, 1))
    for row, line in enumerate(digits[0] / 255):
        padded = F.pad(line, (14, 14))
        # Half a pixel of the shift is interpolated.
        expected = (padded[row : row + 28] + padded[row + 1 : row + 29]) / 2
        torch.testing.assert_close(sheared[0, 0, row], expected, rtol=0, atol=1e-4)


def test_the_new_transform_equals_affine_grid():
    theta = torch.tensor([[0.5, 0.1, -0.2], [2.0, 0.0, 0.3]])
    matrices = torch.zeros(2, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = theta[:, 0]
    matrices[:, :, 2] = theta[:, 1:]
    expected = F.affine_grid(matrices, [2, 1, 5, 8], align_corners=False)
    torch.testing.assert_close(AttentionGrid()(theta, (5, 8)), expected)


@pytest.mark.parametrize("name", stn_train.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(stn_train, name) is not None
    assert stn_train.HOMES.keys() == set(stn_train.__all__)


def test_maps_in_pixels_are_public():
    assert stn_train.theta_from_pixel_matrix is geometry.theta_from_pixel_matrix
    assert stn_train.pixel_matrix_from_theta is geometry.pixel_matrix_from_theta
