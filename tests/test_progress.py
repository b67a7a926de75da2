import sys
from types import SimpleNamespace

import pytest
import torch

from stn_train import progress
from stn_train.models import build_model
from stn_train.progress import ProgressBar, ProgressLines
from stn_train.run_directory import RunDirectory
from stn_train.trainer import train


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.fixture
def lines(clock, tiny, capsys):
    """ProgressLines at the start of 100 steps."""
    lines = ProgressLines()
    lines.started(tiny(seed=7), build_model(tiny()), 100)
    return lines


def reading(step: int) -> dict:
    return {"step": step, "pass": step / 10, "loss": 0.5, "images_per_second": 1234.5}


@pytest.mark.parametrize(("terminal", "kind"), [(True, ProgressBar), (False, ProgressLines)])
def test_a_terminal_gets_a_bar_and_a_log_gets_lines(terminal, kind, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert type(progress.progress()) is kind


def test_start_tells_what_is_trained(lines, tiny, capsys):
    told = capsys.readouterr()
    assert tiny().cell in told.err
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
    told = capsys.readouterr().err.splitlines()
    assert 5 <= len(told) <= 15
    assert told[-1].startswith("step 100 of 100")
    assert told[-1].endswith("0.0 min left")


def test_validation_error_is_told_from_then_on(lines, clock, capsys):
    lines.logged({"step": 10, "pass": 1.0, "validation_error_percent": 3.14159})
    clock.now += 100
    lines.logged(reading(20))
    assert "validation error 3.14 %" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ProgressBar, ProgressLines])
def test_a_whole_run_is_told_on_standard_error_alone(kind, tiny, splits, tmp_path, capsys):
    config = tiny(train={"epochs": 1})
    observer = kind()
    train(config, splits, RunDirectory.claim(tmp_path / "run"), torch.device("cpu"), observer)
    told = capsys.readouterr()
    assert told.out == ""
    assert "10 steps on cpu" in told.err
    assert "validation error" in told.err
    assert told.err.endswith("testing ...\n")
