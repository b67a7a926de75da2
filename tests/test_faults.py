"""A disk that fails at any call of a save: a clear message, and what was saved before is whole."""

import errno
import os
from pathlib import Path

import pytest
import torch
import yaml

from stn_train import atomic
from stn_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

FAULTS = {
    "disk full": errno.ENOSPC,
    "no permission": errno.EACCES,
    "input/output error": errno.EIO,
    "other device": errno.EXDEV,
    "read-only": errno.EROFS,
}

CALLS = {
    "open": (Path, "open"),
    "write": (torch, "save"),
    "fsync of the file": (os, "fsync"),
    "replace": (Path, "replace"),
    "fsync of the folder": (atomic, "flush_folder"),
}


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
    return Checkpoint({}, step, {"weight": torch.full((100, 100), float(step))}, {})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("fatal", [1, 2])
def test_failed_save_leaves_what_was_there(call, fault, fatal, tmp_path, monkeypatch):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_checkpoint(last, checkpoint(1), previous)
    save_checkpoint(last, checkpoint(2), previous)
    owner, name = CALLS[call]
    with monkeypatch.context() as patch:
        broken = Broken(getattr(owner, name), FAULTS[fault], fatal)
        patch.setattr(owner, name, broken)
        told = None
        try:
            save_checkpoint(last, checkpoint(3), previous)
        except OSError as error:
            told = error.errno
    assert told == (FAULTS[fault] if broken.calls >= fatal else None)
    found = [load_checkpoint(path).step for path in (last, previous) if path.exists()]
    assert found in ([2, 1], [3, 2], [2])  # [2]: the old one is `previous`, the new one is not here
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
