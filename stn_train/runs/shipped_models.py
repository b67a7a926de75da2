"""The trained models that ship with the program: a folder for each, like that of a run.

model.safetensors  the weights
result.json        what was measured
metrics.jsonl      how the training went
config.yaml        what was trained
README.md          the model's card
graph.onnx         the network for its live page; the weights are those of model.safetensors
SHA256SUMS         of each of these files, as sha256sum prints them
"""

import hashlib
from pathlib import Path

from stn_train.errors import CheckpointError
from stn_train.runs.files import absent

FOLDER = Path(__file__).parent.parent / "trained"

GRAPH = "graph.onnx"
SUMS = "SHA256SUMS"


def shipped_models() -> list[str]:
    """Their names, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def located(path: Path) -> Path:
    """The folder of the shipped model of a name, unless something lies at that path.

    Every other path as it is. Raises CheckpointError for a bare name of nothing.
    """
    if path.exists() or len(path.parts) != 1 or path.suffix:
        return path
    if path.name not in shipped_models():
        known = ", ".join(shipped_models())
        raise CheckpointError(f"{absent(path)}; the models that ship are {known}")
    return FOLDER / path


def is_shipped(path: Path) -> bool:
    """Whether a path is that of a shipped model, or lies in its folder."""
    return path.resolve().is_relative_to(FOLDER.resolve())


def read_shipped(folder: Path, name: str) -> bytes:
    """A file of a shipped model; raises CheckpointError where a single bit of it is wrong."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        content = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error}") from None
    if f"{hashlib.sha256(content).hexdigest()}  {name}" not in lines:
        raise CheckpointError(f"{folder / name} is damaged: install stn_train again")
    return content


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of a model."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
