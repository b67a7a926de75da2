"""Digits extruded, turned and placed in cubes, against a loop over voxels."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import Images
from stn_train.tasks.classification import Classification
from stn_train.tasks.examples import Examples, draw_pass
from stn_train.tasks.extrusion import Extruded, inverse_placement

SIDE = 28
SMALL = {"side_voxels": 11, "digit_voxels": 7.0, "thickness_voxels": 2.5}


def images(count=4, channels=1):
    """Noise, bright up to the border."""
    generator = torch.Generator().manual_seed(0)
    size = (count, channels, SIDE, SIDE)
    pixels = torch.randint(1, 256, size, dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 10, tuple("0123456789"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The reference: scalars, in float64.


def turned(first, second, angle_deg):
    """Two coordinates, turned from the first axis towards the second."""
    angle = math.radians(angle_deg)
    return (
        math.cos(angle) * first - math.sin(angle) * second,
        math.sin(angle) * first + math.cos(angle) * second,
    )


def placed(point, angles):
    """A point of the image, turned in its plane and tilted."""
    about_x, about_y, about_z = angles
    x, y, z = point
    y, x = turned(y, x, about_z)  # from down to the right: counter-clockwise
    x, z = turned(x, z, about_y)  # from the right away from the viewer
    z, y = turned(z, y, about_x)  # what is away comes down, what is below comes near
    return x, y, z


def taken_back(point, angles):
    """The inverse of `placed`."""
    about_x, about_y, about_z = angles
    x, y, z = point
    z, y = turned(z, y, -about_x)
    x, z = turned(x, z, -about_y)
    y, x = turned(y, x, -about_z)
    return x, y, z


def bilinear(pixels, column, row):
    """A channel's value between its pixels, zero outside."""
    value = 0.0
    for down, right in itertools.product((0, 1), (0, 1)):
        y, x = math.floor(row) + down, math.floor(column) + right
        if 0 <= y < SIDE and 0 <= x < SIDE:
            value += (1 - abs(row - y)) * (1 - abs(column - x)) * pixels[y][x] / 255
    return value


def reference(pixels, pose, task):
    """One volume (S, S, S) of one channel, voxel by voxel."""
    *angles, right, down, away = pose
    half = (task.digit_voxels / 2, task.digit_voxels / 2, task.thickness_voxels / 2)
    corners = [
        placed([sign * length for sign, length in zip(signs, half, strict=True)], angles)
        for signs in itertools.product((-1, 1), repeat=3)
    ]
    boxes = [max(abs(corner[axis]) for corner in corners) for axis in range(3)]
    middle = task.side_voxels / 2
    shift = [
        share * max(0, middle - box) for share, box in zip((right, down, away), boxes, strict=True)
    ]
    volume = torch.zeros((task.side_voxels,) * 3, dtype=torch.float64)
    for z, y, x in itertools.product(range(task.side_voxels), repeat=3):
        point = [at + 0.5 - middle - move for at, move in zip((x, y, z), shift, strict=True)]
        u, v, w = taken_back(point, angles)
        slab = min(1.0, max(0.0, task.thickness_voxels / 2 + 0.5 - abs(w)))
        if slab:
            column, row = ((at / task.digit_voxels + 0.5) * SIDE - 0.5 for at in (u, v))
            volume[z, y, x] = slab * bilinear(pixels, column, row)
    return volume


def test_volumes_equal_a_loop_over_voxels():
    task, shown = Extruded(**SMALL, max_tilt_deg=60, max_turn_deg=180), images(2, channels=2)
    draws = task.draw(shown, seeded())
    batch = task.batch(shown, slice(None), draws)
    assert batch.inputs.shape == (2, *task.shape(shown.format)) == (2, 2, 11, 11, 11)
    assert batch.targets.equal(shown.labels)
    for number, channel in itertools.product(range(2), range(2)):
        pixels = shown.pixels[number, channel].tolist()
        wanted = reference(pixels, draws[-1][number].tolist(), task)
        assert wanted.max() > 0.5
        found = batch.inputs[number, channel].double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_an_upright_digit_is_itself_in_its_slices_and_nothing_in_the_others():
    task = Extruded(
        side_voxels=28, digit_voxels=28, thickness_voxels=4, max_tilt_deg=0, max_turn_deg=0
    )
    shown = images()
    volumes = task.batch(shown, slice(None), task.draw(shown, seeded())).inputs.clone()
    # Moved along its depth alone: there is no room in the plane. Slices that fade out have less.
    whole = (shown.pixels.float() / 255)[:, 0]
    peak = volumes.amax((1, 3, 4)) / whole.amax((1, 2))[:, None]  # (4, D): the share of each slice
    torch.testing.assert_close(volumes[:, 0], peak[..., None, None] * whole[:, None])
    torch.testing.assert_close(peak.sum(1), torch.full((4,), 4.0))  # the thickness
    assert (peak > 0).sum(1).max() <= 5


def test_a_turn_alone_is_the_rotation_of_the_plane():
    shown = images()
    task = Extruded(side_voxels=28, digit_voxels=28, max_tilt_deg=0, max_turn_deg=90)
    pose = task.draw(shown, seeded())[-1]
    pose[:, 3:] = 0
    middle = task.batch(shown, slice(None), (torch.empty(4, 0), pose)).inputs[:, :, 14]
    rotation = DISTORTIONS["R"]().fitted(SIDE)
    torch.testing.assert_close(
        middle, rotation.apply(shown, slice(None), (pose[:, 2:3],)), rtol=0, atol=1e-4
    )


def test_what_has_room_stays_inside_and_touches_the_sides_at_full_shifts():
    pose = Extruded(max_tilt_deg=40, max_turn_deg=20).draw_pose(200, seeded())
    pose[:, 3:] = pose[:, 3:].sign()
    to_image = inverse_placement(pose, 10, 2, 20)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3) * torch.tensor([10, 10, 2])
    to_cube = torch.linalg.inv(to_image[:, :, :3])
    found = (to_cube @ (corners.T - to_image[:, :, 3:])).abs().amax(2)  # (200, 3)
    torch.testing.assert_close(found, torch.full((200, 3), 20.0), rtol=0, atol=1e-3)


def test_what_is_too_large_for_the_cube_stays_in_its_middle():
    pose = Extruded().draw_pose(50, seeded())
    offset = inverse_placement(pose, 10, 10, 9)[:, :, 3]
    assert offset.abs().max() == 0


def test_draws_are_in_their_ranges():
    task = Extruded(max_tilt_deg=30, max_turn_deg=70)
    *distorted, pose = task.draw(images(500), seeded())
    assert [each.shape for each in distorted] == [(500, 0)]
    for columns, reach in ((slice(0, 2), 30), (slice(2, 3), 70), (slice(3, 6), 1)):
        part = pose[:, columns]
        assert part.abs().max() <= reach
        assert part.mean(0).abs().max() < 0.1 * reach
        assert part.std(0).min() > 0.5 * reach


def test_the_image_is_distorted_first():
    shown = images()
    task = Extruded(side_voxels=42, digit_voxels=28, max_tilt_deg=0, max_turn_deg=0)
    bound = task.with_distortion(DISTORTIONS["RTS"]())
    distorted, pose = bound.draw(shown, seeded())
    assert distorted.equal(bound.distortion.draws(shown, seeded())[0])
    pose[:, 3:] = 0
    volumes = bound.batch(shown, slice(None), (distorted, pose)).inputs
    flat = bound.distortion.apply(shown, slice(None), (distorted,))  # 42 px: as large as the cube
    torch.testing.assert_close(volumes[:, :, 21], flat, rtol=0, atol=1e-4)


def test_examples_are_the_same_every_time_and_hashed_with_the_task():
    shown = images()
    hashes = {
        Examples.for_test(task.with_distortion(DISTORTIONS["none"]()), shown, draw).sha256()
        for task in (Classification(), Extruded(), Extruded(max_tilt_deg=30))
        for draw in (0, 1)
        for _ in range(2)
    }
    assert len(hashes) == 5  # undistorted images have nothing drawn
    task = Extruded()
    passes = [draw_pass(task, shown, 1, number, number) for number in (0, 0, 1)]
    assert passes[0].draws[-1].equal(passes[1].draws[-1])
    assert not passes[0].draws[-1].equal(passes[2].draws[-1])


@pytest.mark.parametrize("name", ["digit_voxels", "thickness_voxels"])
def test_lengths_beyond_the_cube_are_refused(name):
    with pytest.raises(ValidationError, match=f"{name} 40.* is larger than side_voxels 32"):
        Extruded.model_validate({name: 40.0})
