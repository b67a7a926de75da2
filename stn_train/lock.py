"""A folder that one process has to itself, by a lock that the operating system takes back."""

import json
import os
import socket
import sys
import time
import weakref
from pathlib import Path

from stn_train.errors import InUseError

LOCK_NAME = ".lock"


class FolderLock:
    """Held from its making until it is released, forgotten, or its process ends, however it does.

    The file in the folder says who holds the lock; the lock itself is the operating system's, so
    the file that a killed process leaves behind holds nobody up.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InUseError, naming the holder, if another process has the folder."""
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        self.release = weakref.finalize(self, os.close, descriptor)
        """Let others have the folder."""
        try:
            lock(descriptor)
        except BlockingIOError:
            holder = holder_in(descriptor)
            self.release()
            raise InUseError(f"{folder} is in use by {holder}") from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(own).encode())


def holder_in(descriptor: int) -> str:
    """Who wrote a lock file."""
    try:
        holder = json.loads(os.read(descriptor, 1000))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def lock(descriptor: int) -> None:
        """Lock a file, far behind its text, or raise BlockingIOError if another process has."""
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def lock(descriptor: int) -> None:
        """Lock a file, or raise BlockingIOError if another process has."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
