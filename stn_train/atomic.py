"""Files that are either whole or not there, whatever happens while they are written."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".writing-"
"""How the names of half-written files begin."""


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    verify: Callable[[Path], object] = lambda _: None,
    previous: Path | None = None,
) -> None:
    """Write a file under a temporary name in the same folder, then give it its own.

    A reader, or a crash, sees the old file or the new one and nothing in between. The new one
    takes the name when it is on the disk and ``verify`` has raised nothing about it. With
    ``previous`` the old one is renamed to that first, so that for a moment there is only that.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        verify(temporary)
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Have the new names in a folder on the disk too; Windows does that by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left behind."""
    for left in folder.glob(f"{TEMPORARY}*"):
        left.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as a JSON file, atomically."""
    text = pretty_json(content) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def pretty_json(content: Any) -> str:
    """Plain data as indented JSON, but lists of numbers on one line each."""
    numbers = r"\[\n([\s\d.,eE+-]+)\]"  # a string in JSON has no line break
    text = json.dumps(content, indent=2)
    return re.sub(numbers, lambda found: "[" + " ".join(found[1].split()) + "]", text)
