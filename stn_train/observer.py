"""Who is told how a run goes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stn_train.config import Config
from stn_train.models import DigitClassifier


class Start(NamedTuple):
    """What a run is about to do."""

    config: Config
    model: DigitClassifier
    """As it is evaluated: averaged, where the run averages."""
    step: int
    """Steps that are done already."""
    steps: int
    """Steps that will be done in the end."""


class Observer:
    """Told how a run goes; this one keeps it to itself."""

    def started(self, start: Start) -> None:
        """The run begins, or is resumed."""

    def stepped(self, step: int) -> None:
        """``step`` steps are done."""

    def logged(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl was written: kind, step, pass and what was measured."""

    def warned(self, message: str) -> None:
        """Something is not as it should be; the run continues."""

    def stopped(self) -> None:
        """No more steps will be taken: all are done, or something went wrong."""


class Observers(Observer):
    """Tells several."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    def started(self, start: Start) -> None:
        """See `Observer.started`."""
        for each in self.observers:
            each.started(start)

    def stepped(self, step: int) -> None:
        """See `Observer.stepped`."""
        for each in self.observers:
            each.stepped(step)

    def logged(self, record: dict[str, Any]) -> None:
        """See `Observer.logged`."""
        for each in self.observers:
            each.logged(record)

    def warned(self, message: str) -> None:
        """See `Observer.warned`."""
        for each in self.observers:
            each.warned(message)

    def stopped(self) -> None:
        """See `Observer.stopped`."""
        for each in self.observers:
            each.stopped()
