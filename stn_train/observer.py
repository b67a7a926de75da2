"""Who is told how a run goes."""

from typing import Any

from stn_train.config import Config
from stn_train.models import DigitClassifier


class Observer:
    """Told how a run goes; this one keeps it to itself."""

    def started(self, config: Config, model: DigitClassifier, steps: int) -> None:
        """The run is about to take its first of ``steps`` steps."""

    def stepped(self, step: int) -> None:
        """``step`` steps are done."""

    def logged(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl was written."""

    def warned(self, message: str) -> None:
        """Something is not as it should be; the run goes on."""

    def stopped(self) -> None:
        """No more steps will be taken: all are done, or something went wrong."""
