"""Moving pictures: their frames, and where they come from."""

import pytest
from conftest import CPU
from PIL import Image
from test_visualiser import fresh_run

from stn_train import animation
from stn_train.checkpoint import load_checkpoint
from stn_train.errors import ConfigError
from stn_train.observer import Observer
from stn_train.run_directory import RunDirectory, load_run
from stn_train.trainer import snapshot_steps, train


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
    assert [path.name for path in run.kept_snapshots()] == [
        f"step-0000000{step}.pt" for step in (0, 2, 8)
    ]
    run.forget_snapshots()
    assert not run.snapshots.exists()


def test_training_is_a_frame_a_snapshot(kept, splits, tmp_path):
    frames = [*animation.training(load_run(kept.path), splits.test)]
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
        next(animation.training(load_run(finished.run.path), splits.test))


@pytest.mark.parametrize("choices", [{"distortion": "R"}, {"distortion": "E", "transform": "none"}])
def test_rotation_sweeps_one_digit_of_each_class(choices, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 4)
    run, test = fresh_run(tmp_path, backbone="FCN", **choices)
    frames = [*animation.rotation(run, test)]
    assert len(frames) == 4
    for frame in frames:
        assert frame.inspected.labels.tolist() == [*range(10)]
    inputs = [frame.inspected.inputs for frame in frames]
    assert not inputs[0].equal(inputs[1])
    path = animation.save_animation(frames, tmp_path / "rotation.gif")
    with Image.open(path) as image:
        assert image.n_frames == 4
