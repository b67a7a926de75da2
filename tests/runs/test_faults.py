"""A disk that fails at any call of a save: a clear message, and what was saved before is whole."""

import errno
import os
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from stn_train.runs.checkpoint import (
    MNIST_IMAGES,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)

FAULTS = {
    "disk full": errno.ENOSPC,
    "no permission": errno.EACCES,
    "input/output error": errno.EIO,
    "other device": errno.EXDEV,
    "read-only": errno.EROFS,
}

CALLS = {
    "open": (Path, "open", 1, [2, 1]),
    "write": (torch, "save", 1, [2, 1]),
    "fsync of the file": (os, "fsync", 1, [2, 1]),
    "reading it back": (zipfile, "ZipFile", 1, [2, 1]),
    "renaming the old one": (Path, "replace", 1, [2, 1]),
    "renaming the new one": (Path, "replace", 2, [2]),
    "fsync of the directory": (os, "fsync", 2, [3, 2]),
}
"""Each call of a save: where it is looked up, which call of that name it is, and the steps of
the checkpoints, newest first, that its failure leaves."""


class Broken:
    """A function whose ``fatal``-th call fails."""

    def __init__(self, function, number: int, fatal: int) -> None:
        self.function, self.number, self.fatal, self.calls = function, number, fatal, 0

    def __get__(self, instance, _owner=None):
        """As a method it gets its object."""
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.fatal:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*args, **kwargs)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint({}, step, {"weight": torch.full((100, 100), float(step))}, {}, MNIST_IMAGES)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_save_leaves_what_was_there(call, fault, tmp_path, monkeypatch):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_checkpoint(last, checkpoint(1), previous)
    save_checkpoint(last, checkpoint(2), previous)
    owner, name, fatal, left = CALLS[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, Broken(getattr(owner, name), FAULTS[fault], fatal))
        with pytest.raises(OSError, match=os.strerror(FAULTS[fault])) as told:
            save_checkpoint(last, checkpoint(3), previous)
    assert told.value.errno == FAULTS[fault]
    assert [load_checkpoint(path).step for path in (last, previous) if path.exists()] == left
    assert {path.name for path in tmp_path.iterdir()} <= {"last.pt", "previous.pt"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_on_a_failing_disk_is_told_and_can_be_resumed(
    fault, command, nowhere, tiny, monkeypatch
):
    (nowhere / "tiny.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", Broken(torch.save, FAULTS[fault], 3))  # in the second pass
        failed = command("stn-train", "--config", "tiny.yaml", "--out", "run")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert os.strerror(FAULTS[fault]) in failed.stderr
    assert load_checkpoint(nowhere / "run" / "last.pt").step == 10
    resumed = command("stn-train", "--resume", "run")
    assert resumed.exit_code == 0
