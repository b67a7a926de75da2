"""Ctrl-C and SIGTERM: the step in hand is finished and saved before the program ends."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from stn_train.errors import StnError

ASKED = "stopping after this step; Ctrl-C again stops at once\n"


class StoppedError(StnError):
    """A run was asked to stop, and has saved where it is."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """While it is entered, the first signal is noted; a second Ctrl-C is a KeyboardInterrupt.

    Signals that the process ignores stay ignored. Outside the main thread, where Python takes no
    signals, it notes none.
    """

    received: int | None = None

    def __enter__(self) -> Self:
        self.former: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self.former[number] = signal.signal(number, self.note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def note(self, number: int, _: FrameType | None) -> None:
        """The handler; print is not allowed in one."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        os.write(2, ASKED.encode())


class Terminated(BaseException):
    """SIGTERM, where no run notes it."""


@contextlib.contextmanager
def stopped_as(message: str) -> Iterator[None]:
    """Turn what Ctrl-C and SIGTERM raise where no step can be finished into a StoppedError."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(message, signal.SIGINT) from None
    except Terminated:
        raise StoppedError(message, signal.SIGTERM) from None


def end_on_sigterm() -> None:
    """Have SIGTERM end the program as Ctrl-C does: by an exception, everything tidied up."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, end)
