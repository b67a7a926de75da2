"""Files that are either whole or not there, whatever happens while they are written."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in the same folder, then give it its own.

    A reader, or a crash, sees the old file or the new one and nothing in between.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as a JSON file, atomically."""
    text = pretty_json(content) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def pretty_json(content: Any) -> str:
    """Plain data as indented JSON, but lists of numbers on one line each."""
    numbers = r"\[\n([\s\d.,eE+-]+)\]"  # a string in JSON has no line break
    text = json.dumps(content, indent=2)
    return re.sub(numbers, lambda found: "[" + " ".join(found[1].split()) + "]", text)
