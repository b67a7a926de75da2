"""A run directory belongs to one process at a time."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stn_train.errors import InUseError, RunDirectoryError
from stn_train.runs.directory import RunDirectory
from stn_train.runs.files import LOCK_NAME, FolderLock

HOLD = """
import sys, time
from pathlib import Path
from stn_train.runs.files import FolderLock
held = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_second_lock_names_the_holder_of_the_first(tmp_path):
    held = FolderLock(tmp_path)
    with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on .*, since 20"):
        FolderLock(tmp_path)
    held.release()
    FolderLock(tmp_path).release()


def test_a_killed_process_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(InUseError, match=f"process {process.pid} "):
            FolderLock(tmp_path)
        process.kill()
    assert (tmp_path / LOCK_NAME).exists()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"pid": 1}', "\udcff"])
def test_a_lock_file_that_says_nothing_still_holds(tmp_path, content):
    held = FolderLock(tmp_path)
    (tmp_path / LOCK_NAME).write_text(content, errors="surrogateescape")
    with pytest.raises(InUseError, match="another process"):
        FolderLock(tmp_path)
    held.release()


def test_a_lock_that_is_garbage_collected_is_released(tmp_path):
    FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_a_lock_can_be_released_twice_and_by_any_thread(tmp_path):
    held = FolderLock(tmp_path)
    thread = threading.Thread(target=held.release)
    thread.start()
    thread.join()
    again = FolderLock(tmp_path)
    held.release()  # does nothing: it is the other's lock now
    with pytest.raises(InUseError):
        FolderLock(tmp_path)
    again.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Unix has flock")
def test_locks_of_earlier_versions_and_ours_exclude_each_other(tmp_path):
    import fcntl

    with (tmp_path / LOCK_NAME).open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        theirs.write(json.dumps({"pid": 7, "host": "here", "since": "2025-01-01 00:00:00"}))
        theirs.flush()
        with pytest.raises(InUseError, match="process 7 on here, since 2025"):
            FolderLock(tmp_path)
    held = FolderLock(tmp_path)
    with (tmp_path / LOCK_NAME).open("r+") as theirs, pytest.raises(BlockingIOError):
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.release()


def test_a_run_is_locked_until_it_is_closed(tmp_path, finished):
    with RunDirectory.claim(tmp_path / "run") as run:
        run.last.write_bytes(b"")
        for again in (RunDirectory.reopen, RunDirectory.claim_or_reopen):
            with pytest.raises(InUseError):
                again(run.path)
    with RunDirectory.reopen(tmp_path / "run"):
        pass


def test_command_names_who_trains_there(command, nowhere, finished):
    with RunDirectory.claim(nowhere / "run") as run:
        run.last.write_bytes(finished.run.last.read_bytes())
        result = command("stn-train", "--resume", "run", "--set", "train.epochs=1")
    assert result.exit_code == 6
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: run is in use by process {os.getpid()} on ")


def test_of_many_that_claim_at_once_one_gets_it(tmp_path):
    def claim(_: int) -> RunDirectory | None:
        try:
            return RunDirectory.claim(tmp_path / "run")
        except RunDirectoryError:
            return None

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            claimed = [run for run in pool.map(claim, range(8)) if run is not None]
        assert len(claimed) == 1
        claimed[0].close()
        (tmp_path / "run" / LOCK_NAME).unlink()
        (tmp_path / "run").rmdir()


def test_the_lock_says_who_and_since_when(tmp_path):
    held = FolderLock(tmp_path)
    said = json.loads((tmp_path / LOCK_NAME).read_text())
    assert said["pid"] == os.getpid()
    assert said["since"][:13] == time.strftime("%Y-%m-%d %H")
    held.release()
