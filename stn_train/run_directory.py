"""The folder of a run: what lies in it, and how it comes to be there.

config.yaml       the whole config, defaults included; it can be trained again
environment.json  versions, commit, hardware, command line
metrics.jsonl     one line per logging point and per validation
last.pt, best.pt  checkpoints: the newest, and the one with the lowest validation error
result.json       the test error and what it was measured on; written last
*.png             pictures
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stn_train.atomic import write_atomically, write_json
from stn_train.checkpoint import config_of, load_checkpoint, restore_model
from stn_train.config import Config
from stn_train.errors import CheckpointError, RunDirectoryError
from stn_train.models import DigitClassifier


class RunDirectory:
    """Paths of a run's files, and writing them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.result = path / "result.json"

    @classmethod
    def claim(cls, path: Path) -> "RunDirectory":
        """Make ``path`` the folder of a new run; raises RunDirectoryError if something is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            if not path.is_dir() or any(path.iterdir()):
                raise RunDirectoryError(
                    f"{path} exists already; name another folder with --out, or remove it"
                ) from None
        return cls(path)

    @classmethod
    def claim_next(cls, parent: Path, name: str) -> "RunDirectory":
        """Make the first free of NAME, NAME-2, NAME-3, ... under ``parent`` the folder of a run."""
        number = 1
        while True:
            try:
                return cls.claim(parent / (name if number == 1 else f"{name}-{number}"))
            except RunDirectoryError:
                number += 1

    @classmethod
    def reopen(cls, path: Path) -> "RunDirectory":
        """The folder of a run that was stopped; raises CheckpointError if it has no checkpoint."""
        run = cls(path)
        if not run.last.is_file():
            raise CheckpointError(f"{path} has no checkpoint {run.last.name} to go on from")
        return run

    @classmethod
    def claim_or_reopen(cls, path: Path) -> "RunDirectory":
        """The folder of a run, stopped or new; what a run left before its first checkpoint goes."""
        run = cls(path)
        if path.is_dir() and not run.last.exists():
            for left in (run.config, run.environment, run.metrics):
                left.unlink(missing_ok=True)
        return run if run.last.exists() else cls.claim(path)

    def begin(self, config: Config, environment: dict[str, Any], step: int) -> None:
        """Write what is known before the run goes on after ``step``; forget what came later."""
        if self.metrics.exists():
            kept = [record for record in self.read_metrics() if record["step"] <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_atomically(self.metrics, lambda stream: stream.write(text.encode()))
        settings = yaml.safe_dump(config.as_dict(), sort_keys=False)
        write_atomically(self.config, lambda stream: stream.write(settings.encode()))
        write_json(self.environment, environment)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; raises CheckpointError if they are not to be had."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            if not all(isinstance(record, dict) and "pass" in record for record in records):
                raise ValueError("a line is not a record of a run")
            return records
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.metrics} cannot be read: {error}") from None


class Run(NamedTuple):
    """A trained model and what it was trained as."""

    checkpoint: Path
    config: Config
    model: DigitClassifier
    step: int


def load_run(path: Path) -> Run:
    """The model of a run directory (its newest checkpoint) or of a checkpoint file.

    It is on the CPU, in evaluation mode. Raises CheckpointError if it cannot be read.
    """
    path = RunDirectory(path).last if path.is_dir() else path
    checkpoint = load_checkpoint(path)
    config = config_of(path, checkpoint)
    return Run(path, config, restore_model(path, checkpoint, config), checkpoint.step)
