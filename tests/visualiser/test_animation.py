"""Moving pictures: their frames, and where they come from."""

import pytest
from conftest import CPU
from matplotlib.collections import LineCollection
from PIL import Image
from untrained import Faded, in_colour, parallel_network, run_of, some_digits, untrained_run

from stn_train.data.distortions import DISTORTIONS
from stn_train.errors import ConfigError
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.trainer.loop import snapshot_steps, train
from stn_train.trainer.observers import Observer
from stn_train.visualiser import animation


@pytest.fixture(scope="module")
def kept(tiny, splits, tmp_path_factory):
    """A run of 20 steps that kept five snapshots."""
    run = RunDirectory.claim(tmp_path_factory.mktemp("kept") / "run")
    train(tiny(log={"snapshots": 5}), splits, run, CPU)
    return run


def test_snapshots_are_of_the_steps_they_say(kept, finished):
    steps = [load_checkpoint(path).step for path in kept.kept_snapshots()]
    assert steps == sorted(snapshot_steps(20, 5)) == [0, 2, 8, 20]
    last = load_checkpoint(kept.kept_snapshots()[-1]).weights
    same = load_checkpoint(kept.last).weights
    unasked = load_checkpoint(finished.run.last).weights  # keeping them changed nothing
    assert all(last[name].equal(same[name]) for name in same)
    assert all(unasked[name].equal(same[name]) for name in same)
    assert not finished.run.snapshots.exists()


def test_snapshots_of_a_run_that_was_stopped_are_the_same(kept, tiny, splits, tmp_path):
    class Stops(Observer):
        def stepped(self, step: int) -> None:
            if step == 15:
                raise KeyboardInterrupt

    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(log={"snapshots": 5}), splits, run, CPU, Stops())
    assert len(run.kept_snapshots()) == 3
    train(tiny(log={"snapshots": 5}), splits, run, CPU)
    for one, other in zip(run.kept_snapshots(), kept.kept_snapshots(), strict=True):
        weights = load_checkpoint(other).weights
        assert all(load_checkpoint(one).weights[name].equal(weights[name]) for name in weights)


def test_one_snapshot_is_the_last():
    assert (snapshot_steps(20, 0), snapshot_steps(20, 1)) == (set(), {20})


def test_later_snapshots_are_forgotten(tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    run.snapshots.mkdir()
    for step in (0, 2, 8, 20):
        run.snapshot(step).write_bytes(b"")
    run.forget_snapshots(8)
    assert run.kept_snapshots() == [run.snapshot(step) for step in (0, 2, 8)]
    run.forget_snapshots()
    assert not run.snapshots.exists()


def test_learning_is_a_frame_a_snapshot(kept, splits, tmp_path):
    frames = [*animation.learning_frames(load_run(kept.path), splits.test)]
    assert len(frames) == 4
    assert frames[0].title.startswith("ST-FCN Aff on R, step 0: error ")
    error = float(frames[-1].title.split()[-2])
    assert 0 <= error <= 100
    assert frames[-1].milliseconds > frames[0].milliseconds
    path = animation.save_animation(frames, tmp_path / "made" / "training.gif")
    with Image.open(path) as image:
        assert image.n_frames == 4
        assert image.info["loop"] == 0


def test_a_run_without_snapshots_says_how_to_have_them(finished, splits):
    with pytest.raises(ConfigError, match=r"log\.snapshots=24"):
        next(animation.learning_frames(load_run(finished.run.path), splits.test))


@pytest.mark.parametrize("choices", [{"distortion": "R"}, {"distortion": "E", "transform": "none"}])
def test_sweep_shows_one_image_of_each_class(choices, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 4)
    run, test = untrained_run(tmp_path, backbone="FCN", **choices)
    frames = [*animation.sweep_frames(run, test)]
    assert len(frames) == 4
    for frame in frames:
        assert [answer.target for answer in frame.inspected.answers] == [*test.classes]
    inputs = [frame.inspected.inputs for frame in frames]
    assert not inputs[0].equal(inputs[1])
    path = animation.save_animation(frames, tmp_path / "rotation.gif")
    with Image.open(path) as image:
        assert image.n_frames == 4


def test_sweep_of_parallel_transformers_in_colour(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    test = in_colour(some_digits())
    run = run_of(tmp_path, parallel_network(3), test, distortion="R")
    frame, _ = animation.sweep_frames(run, test)
    page = animation.Page(frame.inspected)
    drawn = page.draw(frame)
    assert len(page.images) == 3  # inputs, and what each transformer made of them
    assert page.images[2][0].get_array().shape == (14, 14, 3)
    lines = page.figure.findobj(LineCollection)
    assert len(lines) == 2 * animation.COLUMNS
    assert all(each.get_segments() for each in lines)
    assert drawn.mode == "RGB"


def test_sweep_needs_a_map_of_the_plane(tmp_path, monkeypatch):
    monkeypatch.setitem(DISTORTIONS, "faded", Faded)
    run, test = untrained_run(tmp_path, distortion="faded")
    with pytest.raises(ConfigError, match="map of the plane"):
        next(animation.sweep_frames(run, test))
