"""TensorBoard: its files hold the numbers of metrics.jsonl."""

import sys

import pytest
from conftest import CPU
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stn_train.errors import ConfigError
from stn_train.trainer.observers import Observer
from stn_train.runs.directory import RunDirectory
from stn_train.trainer.observers import TensorBoard
from stn_train.trainer.loop import train


def test_files_hold_every_number_and_pictures(tiny, splits, tmp_path):
    config, run = tiny(log={"tensorboard": True}), RunDirectory.claim(tmp_path / "run")
    train(config, splits, run, CPU)
    read = EventAccumulator(str(run.tensorboard))
    read.Reload()
    for record in run.read_metrics():
        kind, step = record.pop("kind"), record.pop("step")
        del record["pass"]
        for name, value in record.items():
            written = {each.step: each.value for each in read.Scalars(f"{kind}/{name}")}
            assert written[step] == pytest.approx(value, rel=1e-5)
    pictures = read.Images("digits/before and after")
    assert [each.step for each in pictures] == [10, 20]
    assert (pictures[0].width, pictures[0].height) == (16 * 28, 2 * 28)


def test_without_the_package_it_says_how_to_get_it(tiny, splits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoard(tmp_path, splits.training, tiny().distort)


def test_a_run_that_goes_on_writes_each_step_once(tiny, splits, tmp_path):
    class Stops(Observer):
        def stepped(self, step: int) -> None:
            if step == 17:
                raise KeyboardInterrupt

    config, run = tiny(log={"tensorboard": True}), RunDirectory.claim(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, run, CPU, Stops())
    train(config, splits, run, CPU)
    read = EventAccumulator(str(run.tensorboard))
    read.Reload()
    assert [each.step for each in read.Scalars("train/loss")] == [5, 10, 15, 20]
