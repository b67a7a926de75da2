"""Files that are whole or not there, whatever happens meanwhile, and the lock on a folder."""

import contextlib
import glob
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from stn_train.errors import InUseError

TEMPORARY = ".writing-"
"""How the names of half-written files begin."""

LOCK_NAME = ".lock"


def absent(path: Path) -> str:
    """The message that a path does not exist, with what was probably meant.

    That is the same name one folder further down, or a similar name with the same suffix beside it.
    """
    from stn_train.config_errors import nearest  # the command line imports this module at once

    below = sorted(path.parent.glob(f"*/{glob.escape(path.name)}*"))
    if below:
        return f"{path} does not exist (did you mean {below[0]}?)"
    beside = sorted(each.name for each in path.parent.glob("*") if each.suffix == path.suffix)
    return f"{path} does not exist{nearest(path.name, beside)}"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; what the block writes there becomes ``path``.

    A reader, or a crash, sees the old file or the new one and nothing in between. If the block
    raises, the old file stays. Write with `write_to_disk`: a rename may reach the disk before the
    content does.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_to_disk(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file by what ``write`` writes into a stream, and fsync it."""
    with path.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, fsync it, rename it, and fsync the directory."""
    with replacing(path) as temporary:
        write_to_disk(temporary, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes as a file, atomically."""
    write_atomically(path, lambda stream: stream.write(content))


def fsync_directory(folder: Path) -> None:
    """Make a rename in a folder survive a crash; not needed on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for left in folder.glob(f"{TEMPORARY}*"):
        left.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as a JSON file, atomically."""
    write_bytes(path, f"{pretty_json(content)}\n".encode())


def pretty_json(content: Any) -> str:
    """Plain data as indented JSON, but lists of numbers on one line each."""
    numbers = r"\[\n([\s\d.,eE+-]+)\]"  # a string in JSON has no line break
    text = json.dumps(content, indent=2)
    return re.sub(numbers, lambda found: "[" + " ".join(found[1].split()) + "]", text)


class FolderLock:
    """Gives a folder to one process.

    Held until released, garbage-collected, or the process ends for any reason. The lock is the
    operating system's: the file that a killed process leaves behind does not hold it. The file
    only says who does.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock; raises InUseError, naming the holder, if it is held already."""
        path = folder / LOCK_NAME
        # Any thread may release it. Waiting is not wanted: a run takes hours.
        self.lock = filelock.FileLock(path, timeout=0, thread_local=False)
        # Read before trying: older versions of filelock empty the file even when refused.
        holder = holder_in(path)
        try:
            self.lock.acquire()
        except filelock.Timeout:
            raise InUseError(f"{folder} is in use by {holder}") from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(PermissionError):  # Windows may keep a locked file from writing
            path.write_text(json.dumps(own))

    def release(self) -> None:
        """Let others have the folder."""
        self.lock.release()


def holder_in(path: Path) -> str:
    """Who wrote a lock file."""
    try:
        holder = json.loads(path.read_bytes()[:1000])
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # none there, or it is just being written
        return "another process"
