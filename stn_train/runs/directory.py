"""The folder of a run: the files in it, and how they are written.

config.yaml       the whole config, defaults included; it can be trained again
environment.json  versions, commit, hardware, command line
metrics.jsonl     one line per logging point and per validation
last.pt           the newest checkpoint
previous.pt       the one before, in case the newest is damaged
best.pt           the one with the best validation
snapshots/        models along the way, where log.snapshots asks for them
model.safetensors the finished model without the state of its training, to hand on
tensorboard/      event files, where log.tensorboard asks for them
wandb/            what Weights & Biases keeps, where log.tracker asks for it
result.json       the test error and what it was measured on; written last
*.png             pictures
.lock             which process trains here, or was the last to
"""

import contextlib
import json
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from stn_train.config import Config
from stn_train.data.images import ImageFormat
from stn_train.errors import CheckpointError, RunDirectoryError
from stn_train.models.network import Network
from stn_train.runs.checkpoint import Checkpoint, config_of, load_checkpoint, restore_model
from stn_train.runs.files import (
    LOCK_NAME,
    TEMPORARY,
    FolderLock,
    remove_temporaries,
    write_bytes,
    write_json,
)
from stn_train.runs.shipped_models import located


class RunDirectory:
    """Paths of a run's files, and writing them.

    One that was claimed or reopened is locked until it is closed, as a `with` block does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.previous = path / "previous.pt"
        self.best = path / "best.pt"
        self.snapshots = path / "snapshots"
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb"
        self.model = path / "model.safetensors"
        self.result = path / "result.json"
        self.lock: FolderLock | None = None

    @classmethod
    def claim(cls, path: Path) -> "RunDirectory":
        """Make ``path`` the folder of a new run; raises RunDirectoryError if something is there."""
        taken = f"{path} exists already; name another folder with --out, or remove it"
        return cls.take(path, lambda run: run.holds_only(), taken)

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
        """The folder of a run that was stopped.

        Raises CheckpointError if it has no checkpoint, RunDirectoryError if it is being trained.
        """
        cls(path).refuse_without_checkpoint()
        return cls.claim_or_reopen(path)

    @classmethod
    def claim_or_reopen(cls, path: Path) -> "RunDirectory":
        """The folder of a run, stopped or new; files from before its first checkpoint are removed.

        Raises RunDirectoryError if it is being trained, or holds something other than a run.
        """
        run = cls.take(
            path,
            lambda run: run.has_checkpoint() or run.holds_only(*run.first_files()),
            f"{path} is not empty and is not a run directory; choose another folder",
        )
        if not run.has_checkpoint():
            run.forget_snapshots()
            run.forget_events()
            for left in (run.environment, run.metrics, run.best, run.config):
                left.unlink(missing_ok=True)
        return run

    def first_files(self) -> list[str]:
        """Names of the files there can be before the first checkpoint.

        config.yaml is always written first, so a folder without it was not made by us.
        """
        if not self.config.exists():
            return []
        files = (self.config, self.environment, self.metrics, self.best)
        return [path.name for path in (*files, self.snapshots, self.tensorboard, self.wandb)]

    @classmethod
    def take(
        cls, path: Path, accepts: Callable[["RunDirectory"], bool], refusal: str
    ) -> "RunDirectory":
        """Lock a folder, made if need be, if ``accepts`` is true of it.

        Raises RunDirectoryError with the refusal, nothing touched, if it is not; InUseError if
        another process has the folder.
        """
        run = cls(path)
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True, exist_ok=True)
        if not path.is_dir() or not accepts(run):
            raise RunDirectoryError(refusal)
        run.lock = FolderLock(path)
        if not accepts(run):  # another process was here between the two lines above
            run.close()
            raise RunDirectoryError(refusal)
        remove_temporaries(path)
        return run

    def holds_only(self, *names: str) -> bool:
        """Whether there is nothing but files of these names, a lock and half-written files."""
        return all(
            path.name in (*names, LOCK_NAME) or path.name.startswith(TEMPORARY)
            for path in self.path.iterdir()
        )

    def has_checkpoint(self) -> bool:
        """Whether the run can be resumed."""
        return self.last.is_file() or self.previous.is_file()

    def refuse_without_checkpoint(self) -> None:
        """Raise CheckpointError if the run cannot be resumed."""
        if not self.has_checkpoint():
            raise CheckpointError(f"{self.path} has no checkpoint to resume, no {self.last.name}")

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def newest_checkpoint(self, warn: Callable[[str], object]) -> tuple[Path, Checkpoint]:
        """The last checkpoint; if it is damaged, the one before it, with a warning.

        Raises CheckpointError if neither can be read.
        """
        self.refuse_without_checkpoint()
        try:
            return self.last, load_checkpoint(self.last)
        except CheckpointError as error:
            if not self.previous.is_file():
                raise
            checkpoint = load_checkpoint(self.previous)
            warn(f"{error}: going on from {self.previous.name}, step {checkpoint.step:,}")
            return self.previous, checkpoint

    def trained_config(self) -> Config:
        """The config that the newest checkpoint was trained with."""
        return config_of(*self.newest_checkpoint(lambda _: None))

    def begin(self, config: Config, environment: dict[str, Any], step: int) -> None:
        """Write config and environment; forget metrics and snapshots of steps after ``step``."""
        self.write_config(config)
        write_json(self.environment, environment)
        if self.metrics.exists():
            self.mend_metrics()
            kept = [record for record in self.read_metrics() if record["step"] <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_bytes(self.metrics, text.encode())
        self.forget_snapshots(step)

    def write_config(self, config: Config) -> None:
        """Write config.yaml."""
        write_bytes(self.config, yaml.safe_dump(config.as_dict(), sort_keys=False).encode())

    def snapshot(self, step: int) -> Path:
        """The file of the model after ``step`` steps."""
        return self.snapshots / f"step-{step:08}.pt"

    def kept_snapshots(self) -> list[Path]:
        """The files of the models along the way, by step."""
        return [*self.snapshots_by_step().values()]

    def snapshots_by_step(self) -> dict[int, Path]:
        """The steps of which there is a snapshot, in order, and its file."""
        names = [path.stem.removeprefix("step-") for path in self.snapshots.glob("step-*.pt")]
        return {step: self.snapshot(step) for step in sorted(map(int, filter(str.isdigit, names)))}

    def forget_snapshots(self, step: int | None = None) -> None:
        """Remove those of steps after ``step``, or all; a folder that is then empty goes too."""
        remove_temporaries(self.snapshots)
        for taken, path in self.snapshots_by_step().items():
            if step is None or taken > step:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something, or is not there
            self.snapshots.rmdir()

    def forget_events(self) -> None:
        """Remove TensorBoard's files; a folder that is then empty goes too."""
        for path in self.tensorboard.glob("events.out.tfevents.*"):
            path.unlink()
        with contextlib.suppress(OSError):
            self.tensorboard.rmdir()

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def mend_metrics(self) -> None:
        """Remove an unfinished last line of metrics.jsonl, as a full disk or a power cut leaves."""
        content = self.metrics.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_bytes(self.metrics, whole)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; raises CheckpointError if they cannot be read."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            if not all(is_record(record) for record in records):
                raise ValueError("a line is not a record of a run")
            return records
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.metrics} cannot be read: {error}") from None


MEASURED = {"train": r"loss", "validation": r"validation_.+", "transformer": r"outside_share"}
"""The kinds of lines of metrics.jsonl, and what each must have measured, as a regex.

What a validation measures depends on the task: validation_error_percent in a classification.
"""


def is_record(record: Any) -> bool:
    """Whether something is a line of metrics.jsonl."""
    if not isinstance(record, dict) or record.get("kind") not in MEASURED:
        return False
    pattern = MEASURED[record["kind"]]
    measured = [value for key, value in record.items() if re.fullmatch(pattern, key)]
    numbers = [record.get("step"), record.get("pass"), *measured]
    return bool(measured) and all(isinstance(number, int | float) for number in numbers)


class Run(NamedTuple):
    """A trained model and what it was trained as."""

    checkpoint: Path
    config: Config
    model: Network
    step: int
    format: ImageFormat
    """The images that it was trained on."""

    @property
    def directory(self) -> RunDirectory:
        """The run directory that the checkpoint lies in."""
        return directory_of(self.checkpoint)


def directory_of(path: Path) -> RunDirectory:
    """The run directory that a path is, or in which it is a checkpoint or a snapshot.

    Of the name of a shipped model, that model's.
    """
    path = located(path)
    folder = path.parent if path.is_file() else path
    return RunDirectory(folder.parent if folder.name == "snapshots" else folder)


def load_run(path: str | PathLike[str]) -> Run:
    """The model of a run directory (its newest checkpoint), of a checkpoint file, or a shipped one.

    It is on the CPU, in evaluation mode. A directory without a checkpoint can hold a
    model.safetensors. Raises CheckpointError if it cannot be read.
    """
    path = located(Path(path))
    if path.is_dir():
        below = sorted(found.parent.name for found in path.glob("*/last.pt"))
        run = RunDirectory(path)
        path = run.model if run.model.exists() and not run.last.exists() else run.last
        if below and not path.exists():
            raise CheckpointError(f"{path.parent} is a folder of runs: name one, as {below[0]}")
        if not path.exists():
            lacks = f"neither {run.last.name} nor {run.model.name} is in it"
            raise CheckpointError(f"{path.parent} is no run: {lacks}")
    checkpoint = load_checkpoint(path)
    config = config_of(path, checkpoint)
    model = restore_model(path, checkpoint, config)
    return Run(path, config, model, checkpoint.step, checkpoint.image_format)
