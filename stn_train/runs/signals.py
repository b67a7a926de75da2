"""Signals that ask for an end: the current step is finished and saved first."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from stn_train.errors import StnError

ASKED = "stopping after this step; Ctrl-C again stops at once\n"

ENDS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""What ends a program besides Ctrl-C.

A terminal that is closed sends SIGHUP; batch systems send SIGUSR1 or SIGUSR2 some time before the
limit of a job. Windows has SIGTERM alone.
"""


class StoppedError(StnError):
    """A run was asked to stop, and has saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """While it is entered, the first signal is recorded; a second Ctrl-C is a KeyboardInterrupt.

    Signals that the process ignores stay ignored. Outside the main thread it records none:
    Python delivers signals to the main thread only.
    """

    received: int | None = None

    def __enter__(self) -> Self:
        self.former: dict[int, Any] = {}
        for number in (signal.SIGINT, *ENDS):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self.former[number] = signal.signal(number, self.handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler. It must not print: print is not reentrant."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        try:
            os.write(2, ASKED.encode())
        except OSError:  # the terminal was closed: later writes to it would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)


class Terminated(BaseException):
    """A signal of ENDS while no `StopSignals` records it."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def stopped_as(message: str) -> Iterator[None]:
    """Turn the exceptions of signals, also of a run that was stopped, into this StoppedError."""
    try:
        yield
    except StoppedError as error:
        raise StoppedError(message, error.number) from None
    except KeyboardInterrupt:
        raise StoppedError(message, signal.SIGINT) from None
    except Terminated as error:
        raise StoppedError(message, error.number) from None


def end_on_signals() -> None:
    """Have signals end the program as Ctrl-C does, by an exception: files are cleaned up."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    with contextlib.suppress(ValueError):  # not the main thread
        for number in ENDS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, end)
