"""Pages of the families of transforms: maps of one size, and what is left of distortions."""

import pytest
import torch

from stn_train.data.distortion import distort
from stn_train.data.distortions import DISTORTIONS
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.visualiser import families
from stn_train.visualiser.families import (
    DISPLACEMENT,
    RANDOM_MAPS,
    best_undoing,
    random_maps,
    random_maps_page,
    undoing_page,
)
from stn_train.visualiser.style import save

DIGIT = torch.zeros(1, 28, 28, dtype=torch.uint8)
DIGIT[:, 6:22, 12:16] = DIGIT[:, 18:22, 12:22] = 255
"""An L."""


def parameters_of(name, count=8):
    distortion = DISTORTIONS[name]()
    return distortion, distortion.draw(count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_random_maps_of_every_family_move_points_equally_far(name):
    transform = TRANSFORMS[name]().build()
    theta = random_maps(transform, seed=3)
    assert theta.shape == (RANDOM_MAPS, transform.parameter_count)
    points = pixel_centres((16, 16))
    distance = (transform.map_points(theta, points) - points).square().sum(-1).mean(1).sqrt()
    torch.testing.assert_close(distance, torch.full_like(distance, DISPLACEMENT), rtol=0.02, atol=0)
    assert random_maps(transform, seed=3).equal(theta)
    assert not random_maps(transform, seed=4).allclose(theta)


@pytest.mark.parametrize(
    ("family", "name"),
    [("Rigid", "R"), ("Similarity", "RTS"), ("Aff", "RTS"), ("Proj", "P"), ("TPS", "R")],
)
def test_a_family_that_holds_the_inverse_of_a_distortion_undoes_it(family, name):
    distortion, parameters = parameters_of(name)
    transform = TRANSFORMS[family]().build()
    theta, left = best_undoing(transform, distortion, parameters)
    assert left.max() < 0.1 * distortion.pixel
    digits = DIGIT.expand(8, -1, -1, -1)
    undone = sample(distort(digits, distortion, parameters), transform(theta, (28, 28)))
    assert (undone - digits / 255).abs().mean() < 0.03  # both are interpolated, one twice


def test_what_is_left_of_a_rotation_is_as_in_closed_form():
    distortion, parameters = parameters_of("R")
    angle = torch.deg2rad(parameters[:, 0])
    spread = pixel_centres(families.POINTS).square().sum(-1).mean()
    _, moved = best_undoing(TRANSFORMS["Translation"]().build(), distortion, parameters)
    torch.testing.assert_close(moved, (2 * (1 - angle.cos()) * spread).sqrt(), rtol=1e-3, atol=1e-4)
    # The best scale is the cosine of the angle; the sine is what is left.
    theta, zoomed = best_undoing(TRANSFORMS["Attention"]().build(), distortion, parameters)
    torch.testing.assert_close(theta[:, 0], angle.cos(), rtol=0, atol=1e-3)
    torch.testing.assert_close(zoomed, angle.sin().abs() * spread.sqrt(), rtol=1e-3, atol=1e-4)


def test_more_freedom_leaves_less_of_an_elastic_distortion():
    distortion, parameters = parameters_of("E")
    left = [
        best_undoing(TRANSFORMS[name]().build(), distortion, parameters)[1].mean()
        for name in ("Translation", "Rigid", "Similarity", "Aff", "TPS")
    ]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] / 3


def test_pages_have_a_row_for_each_family_and_tell_what_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(families, "UNDONE", 2)
    chosen = {name: TRANSFORMS[name] for name in ("Rigid", "TPS")}
    page = random_maps_page(chosen, DIGIT / 255)
    assert len(page.axes) == 2 * 2 * RANDOM_MAPS
    assert {"Rigid", "3 parameters", "TPS", "32 parameters"} <= {t.get_text() for t in page.texts}
    undone = undoing_page(chosen, DIGIT, {"R": DISTORTIONS["R"](), "RTS": DISTORTIONS["RTS"]()})
    assert {"R", "RTS", "Rigid"} <= {text.get_text() for text in undone.texts}
    notes = [text.get_text() for axis in undone.axes for text in axis.texts if text.get_text()]
    assert len(notes) == 4
    assert notes[0] == "0.0 px"
    for number, figure in enumerate((page, undone)):
        assert save(figure, tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
