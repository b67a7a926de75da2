"""The safetensors format, and the digest that it lacks: weights to hand on, in a file without code.

A file is the length of its header in 8 bytes, little-endian; the header, JSON; and the values of
the tensors, one after another. https://huggingface.co/docs/safetensors has the format. It is short
enough to be written here: the package of that name would be one more to install, and lets a
flipped bit of a weight pass.

Under ``sha256`` the metadata have that of the values, and under ``header_sha256`` that of the rest
of the header: its JSON with sorted keys and without spaces, these two entries left out.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stn_train.errors import CheckpointError
from stn_train.runs.files import write_bytes

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of the types of tensors."""

METADATA = "__metadata__"
DIGESTS = ("sha256", "header_sha256")
MAX_HEADER_BYTES = 100_000_000
"""As the package has it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors under their names, with metadata; ``path`` is never half a file."""
    kinds = {kind: name for name, kind in TYPES.items()}
    header: dict[str, Any] = {METADATA: dict(metadata)}
    # Large types first: then every tensor starts at a multiple of the size of its numbers.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    parts, begin = [bytes_of(tensors[name]) for name in ordered], 0
    for name, part in zip(ordered, parts, strict=True):
        header[name] = {
            "dtype": kinds[tensors[name].dtype],
            "shape": [*tensors[name].shape],
            "data_offsets": [begin, begin + len(part)],
        }
        begin += len(part)
    values = b"".join(parts)
    header[METADATA] |= {"sha256": sha256(values), "header_sha256": header_digest(header)}
    encoded = encode(header)
    write_bytes(path, len(encoded).to_bytes(8, "little") + encoded + values)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by their names, and its metadata; runs no code from it.

    Raises CheckpointError where a single bit is not as it was written, or a digest is missing.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    length = int.from_bytes(content[:8], "little")
    try:
        if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
            raise ValueError("its header is cut short")
        header = json.loads(content[8 : 8 + length])
        values = memoryview(content)[8 + length :]
        if encode(header) != content[8 : 8 + length]:  # the same JSON in other letters
            raise ValueError("its header is written otherwise")
        metadata = header[METADATA]
        if metadata["sha256"] != sha256(values):
            raise CheckpointError(f"{path} is damaged: the SHA-256 of its values is another")
        if metadata["header_sha256"] != header_digest(header):
            raise CheckpointError(f"{path} is damaged: the SHA-256 of its header is another")
        names = [name for name in header if name != METADATA]
        return {name: tensor_of(header[name], values) for name in names}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is not a file of weights of stn_train: {reason}") from None


def tensor_of(entry: Mapping[str, Any], values: memoryview) -> Tensor:
    """The tensor that an entry of the header describes; raises ValueError if it cannot be."""
    kind, shape = TYPES[entry["dtype"]], [int(side) for side in entry["shape"]]
    begin, end = entry["data_offsets"]
    if min(shape, default=1) < 0 or not 0 <= begin <= end <= len(values):
        raise ValueError("a tensor lies outside the file")
    if end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError("a tensor has another size than its shape")
    if begin == end:
        return torch.zeros(shape, dtype=kind)
    return torch.frombuffer(bytearray(values[begin:end]), dtype=kind).reshape(shape)


def bytes_of(tensor: Tensor) -> bytes:
    """The values of a tensor, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def encode(header: Mapping[str, Any]) -> bytes:
    """A header as it is written: the values behind it start at a multiple of 8 bytes."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % 8)


def header_digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of a header without its digests."""
    metadata = {key: value for key, value in header[METADATA].items() if key not in DIGESTS}
    plain = json.dumps({**header, METADATA: metadata}, sort_keys=True, separators=(",", ":"))
    return sha256(plain.encode())


def sha256(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
