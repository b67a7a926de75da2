"""Ctrl-C and SIGTERM: the step in hand is finished and saved, and nothing is lost."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import kills
import pytest
import torch
from conftest import ROOT

from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.signals import StopSignals

HERE = Path(__file__).parent

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
from pathlib import Path
import kills, torch
from stn_train.cli.options import command
from stn_train.runs.directory import RunDirectory
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer

class Slow(Observer):
    def stepped(self, step):
        print(step, flush=True)
        time.sleep(0.02)

@command("")
def main(folder: str, threads: int) -> None:
    torch.set_num_threads(threads)  # other sums, other bits
    with RunDirectory.claim_or_reopen(Path(folder)) as run:
        train(kills.CONFIG, kills.random_splits(), run, kills.CPU, Slow())

main()
"""


def start(
    folder: Path, first: Callable[[], None] | None = None, terminal: int | None = None
) -> subprocess.Popen[str]:
    """A process that trains, a line for each step: through pipes, or in a terminal."""
    output = subprocess.PIPE if terminal is None else terminal
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(torch.get_num_threads())],
        stdin=terminal,
        stdout=output,
        stderr=output,
        text=True,
        preexec_fn=first,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(HERE)])},
    )


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    while int(process.stdout.readline()) < step:
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run where nothing stops it."""
    folder: Path = tmp_path_factory.mktemp("whole") / "run"
    kills.train_in(folder, kills.random_splits())
    return folder


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 128 + signal.SIGUSR1),  # as SLURM sends it some time before the limit
    ],
)
def test_first_signal_saves_the_step_and_tells_how_to_go_on(sent, code, whole, tmp_path):
    folder = tmp_path / "run"
    with start(folder) as process:
        wait_for_step(process, 13)
        process.send_signal(sent)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    reached = load_checkpoint(folder / "last.pt").step
    assert 13 <= reached < 60
    assert f"error: stopped at step {reached} of 60; stn-train --resume {folder} resumes it" in told
    assert "stopping after this step" in told
    kills.train_in(folder, kills.random_splits())
    assert kills.state_of(folder)["result"] == kills.state_of(whole)["result"]
    same = [load_checkpoint(each / "last.pt").weights for each in (folder, whole)]
    assert all(value.equal(same[1][key]) for key, value in same[0].items())


def test_a_terminal_that_is_closed_loses_nothing(tmp_path):
    here, terminal = os.openpty()

    def attach() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with start(tmp_path / "run", attach, terminal) as process:
        os.close(terminal)
        with os.fdopen(here, "rb", buffering=0) as screen:
            seen = b""
            while b"13\r\n" not in seen:
                seen += screen.read(100)
        assert process.wait(timeout=60) == 129
    assert load_checkpoint(tmp_path / "run" / "last.pt").step >= 13


def test_second_interrupt_stops_at_once(tmp_path):
    with start(tmp_path / "run") as process:
        wait_for_step(process, 13)
        os.kill(process.pid, signal.SIGSTOP)  # both come before the next step
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert load_checkpoint(tmp_path / "run" / "last.pt").step >= 10


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it, where the tests run in the background of a shell too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_interrupt_is_an_exception(interruptible):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back(interruptible):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
        assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_takes_none():
    taken = []

    def work() -> None:
        with StopSignals() as signals:
            taken.append(signals.former)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert taken == [{}]
