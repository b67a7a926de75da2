"""Training: from a config to a trained, tested model in a run directory."""

from stn_train.trainer.loop import Rehearsal, TrainResult, rehearse, train
from stn_train.trainer.observers import Observer, Start, progress
from stn_train.trainer.state import State

__all__ = [
    "Observer",
    "Rehearsal",
    "Start",
    "State",
    "TrainResult",
    "progress",
    "rehearse",
    "train",
]
