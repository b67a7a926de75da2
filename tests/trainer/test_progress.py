"""What a person watching a run is told, on a terminal and in a log."""

import sys
from types import SimpleNamespace

import pytest
from conftest import CPU

from stn_train.data.images import ImageFormat
from stn_train.data.mnist import CLASSES
from stn_train.runs.directory import RunDirectory
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure
from stn_train.tasks.classification import Classification
from stn_train.trainer import observers
from stn_train.trainer.loop import train
from stn_train.trainer.observers import (
    Observer,
    ProgressBar,
    ProgressLines,
    Start,
    Warnings,
    progress,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(observers, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.fixture
def lines(clock, tiny, capsys):
    """ProgressLines at the start of 100 steps."""
    return started(ProgressLines(), tiny(seed=7))


def started(observer: Observer, config) -> Observer:
    """An observer at the start of 100 steps."""
    network = config.build_network(ImageFormat((1, 28, 28), CLASSES))
    observer.started(Start(config, network, 0, 100))
    return observer


def reading(step: int) -> dict:
    return {"step": step, "pass": step / 10, "loss": 0.5, "images_per_second": 1234.5}


@pytest.mark.parametrize(("terminal", "kind"), [(True, ProgressBar), (False, ProgressLines)])
def test_a_terminal_gets_a_bar_and_a_log_gets_lines(terminal, kind, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert type(progress()) is kind


@pytest.mark.parametrize("kind", [Warnings, ProgressBar, ProgressLines])
def test_warnings_are_told_in_any_case(kind, tiny, capsys):
    observer = started(kind(), tiny())
    observer.warned("too hot")
    observer.stopped()
    told = capsys.readouterr()
    assert "warning: too hot\n" in told.err
    assert told.out == ""


def test_quiet_tells_warnings_alone(tiny, capsys):
    observer = started(progress(quiet=True), tiny())
    observer.logged(reading(100))
    observer.stepped(100)
    observer.stopped()
    assert capsys.readouterr().err == ""


class Overlap(Classification):
    """A task with a measure of its own."""

    measure = Measure("overlap_percent", "overlap", "points", lower_is_better=False)


def test_the_tasks_measure_is_told(clock, tiny, capsys, monkeypatch):
    monkeypatch.setitem(TASKS, "overlap", Overlap)
    lines = started(ProgressLines(), tiny(task="overlap"))
    clock.now += 60
    lines.logged({"step": 10, "pass": 1.0, "validation_overlap_percent": 12.345})
    assert "validation overlap 12.35 points" in capsys.readouterr().err


def test_start_tells_what_is_trained(lines, tiny, capsys):
    told = capsys.readouterr()
    assert tiny().title in told.err
    assert "100 steps on cpu, seed 7" in told.err
    assert told.out == ""


def test_line_tells_reading_and_time_left(lines, clock, capsys):
    capsys.readouterr()
    clock.now += 60
    lines.logged(reading(25))
    assert capsys.readouterr().err == (
        "step 25 of 100 (pass 2.5): loss 0.5000, 1,234 images/s, 3.0 min left\n"
    )


def test_lines_come_seldom_but_the_last_always(lines, clock, capsys):
    capsys.readouterr()
    for step in range(1, 101):
        clock.now += 1
        lines.logged(reading(step))
    lines.stopped()
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "testing ..."
    assert 5 <= len(told) - 1 <= 15
    assert told[-2].startswith("step 100 of 100")
    assert told[-2].endswith("0.0 min left")
    assert sum(line.startswith("step 100 of 100") for line in told) == 1


def test_last_line_waits_for_the_last_validation(lines, clock, capsys):
    capsys.readouterr()
    clock.now += 60
    lines.logged(reading(100))
    clock.now += 60
    lines.logged({"step": 100, "pass": 10.0, "validation_error_percent": 2.5})
    assert capsys.readouterr().err == ""
    lines.stopped()
    assert capsys.readouterr().err.splitlines() == [
        "step 100 of 100 (pass 10.0): loss 0.5000, validation error 2.50 %, 1,234 images/s, "
        "0.0 min left",
        "testing ...",
    ]


def test_run_cut_short_is_told_where_it_stood(lines, clock, capsys):
    clock.now += 60
    lines.logged(reading(25))
    clock.now += 5
    lines.logged(reading(30))
    capsys.readouterr()
    lines.stopped()
    told = capsys.readouterr().err
    assert told.startswith("step 30 of 100 (pass 3.0): loss 0.5000, ")
    assert told.count("\n") == 1


def test_line_that_was_just_told_is_not_repeated(lines, clock, capsys):
    clock.now += 60
    lines.logged(reading(25))
    lines.stopped()
    assert capsys.readouterr().err.count("step 25 of 100") == 1


def test_run_cut_short_before_its_first_reading_tells_nothing(lines, capsys):
    capsys.readouterr()
    lines.stopped()
    assert capsys.readouterr().err == ""


def test_validation_error_is_told_from_then_on(lines, clock, capsys):
    lines.logged({"step": 10, "pass": 1.0, "validation_error_percent": 3.14159})
    clock.now += 100
    lines.logged(reading(20))
    assert "validation error 3.14 %" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ProgressBar, ProgressLines])
def test_a_whole_run_is_told_on_standard_error_alone(kind, tiny, splits, tmp_path, capsys):
    config = tiny(train={"epochs": 1})
    observer = kind()
    train(config, splits, RunDirectory.claim(tmp_path / "run"), CPU, observer)
    told = capsys.readouterr()
    assert told.out == ""
    assert "10 steps on cpu" in told.err
    assert "validation error" in told.err
    assert told.err.endswith("testing ...\n")
