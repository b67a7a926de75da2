"""ONNX Runtime Web, which computes a network in a browser: two compressed files and their licences.

They are believed only when checked, as MNIST's are. runtime_files/NOTICE.txt tells where they come
from.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

from stn_train.errors import DataError

FOLDER = Path(__file__).parent / "runtime_files"


class RuntimeFile(NamedTuple):
    """One of the files of the runtime, compressed by gzip: browsers unpack that themselves."""

    name: str
    sha256: str
    """Of the uncompressed file."""


SCRIPT = RuntimeFile(
    "ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"
)
PROGRAM = RuntimeFile(
    "ort-wasm-simd-threaded.wasm",
    "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
)


def read_packed(file: RuntimeFile) -> bytes:
    """A file of the runtime, compressed by gzip.

    Raises DataError where it is missing or a single bit of its content is wrong.
    """
    path = FOLDER / f"{file.name}.gz"
    try:
        packed = path.read_bytes()
        digest = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; install stn_train again") from None
    if digest != file.sha256:
        told = f"SHA-256 {digest} instead of {file.sha256}"
        raise DataError(f"{path} is damaged: {told}; install stn_train again")
    return packed


def notice() -> str:
    """The licence of the runtime."""
    return (FOLDER / "NOTICE.txt").read_text(encoding="utf-8")
