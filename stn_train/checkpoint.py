"""Checkpoints: one file of plain types and tensors, and a reader that trusts none of it."""

import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stn_train.atomic import write_atomically
from stn_train.config import Config, completed
from stn_train.config_file import Source, check
from stn_train.errors import CheckpointError, ConfigError
from stn_train.models import DigitClassifier, build_model

FORMAT = 1
"""Version of the layout; a reader refuses one that it does not know."""

MAX_BYTES = 1 << 28
"""Forty times what 400,000 weights and their optimiser take; a larger file is not read."""

MOST_WEIGHTS = MAX_BYTES // 20
"""What fits: each weight in float32, its average, two moments, and a fifth to spare."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained or half-trained model."""

    config: dict[str, Any]
    """`Config.as_dict` of the run."""
    step: int
    """Optimiser steps taken."""
    weights: dict[str, Tensor]
    """The model's state_dict as it is evaluated: averaged, where the run averages."""
    training: dict[str, Any]
    """The rest of the trainer's state: raw weights, optimiser, schedule, averaging."""
    format: int = FORMAT


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint so that ``path`` is never half a file; the old one becomes ``previous``.

    It is read back from the disk and compared with its checksums before it takes the name.
    """
    # Not dataclasses.asdict: it would copy every tensor.
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    write_atomically(path, lambda stream: torch.save(content, stream), check_archive, previous)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; runs no code from it. Raises CheckpointError if it is not whole."""
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on strange files; they fail below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # a damaged pickle or archive can raise anything
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a checkpoint of stn_train: {reason}") from None
    names = {field.name for field in fields(Checkpoint)}
    if not isinstance(content, dict) or content.get("format") != FORMAT or names != set(content):
        raise CheckpointError(f"{path} is not a checkpoint of stn_train, format {FORMAT}")
    checkpoint = Checkpoint(**content)
    kinds = {"config": dict, "step": int, "weights": dict, "training": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise CheckpointError(f"{path} is damaged: {name} is not a {kind.__name__}")
    problem = next(not_plain(content), None)
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}")
    return checkpoint


def check_archive(path: Path) -> None:
    """Raise CheckpointError unless a file is an archive as torch writes it, every byte as written.

    torch.load does not compare the checksums, and unpacks what is compressed, however large.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES:,} bytes: not a checkpoint")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise CheckpointError(f"{path} is damaged: two members have the same name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise CheckpointError(f"{path} is not a checkpoint of stn_train: it is compressed")
        if sum(member.file_size for member in members) > size:
            raise CheckpointError(f"{path} is damaged: its members are larger than the file")
        damaged = archive.testzip()
    if damaged:
        raise CheckpointError(f"{path} is damaged: wrong checksum in {damaged}")


def not_plain(content: Any, place: str = "") -> Iterator[str]:
    """What in a checkpoint is neither a plain value nor a tensor that holds what it shows."""
    match content:
        case dict():
            for key, value in content.items():
                yield from not_plain(key, place)
                yield from not_plain(value, f"{place}.{key}" if place else str(key))
        case list() | tuple():
            for number, value in enumerate(content):
                yield from not_plain(value, f"{place}[{number}]")
        case Tensor():
            if content.layout != torch.strided or not content.is_contiguous():
                yield f"{place} is not a dense tensor"
            elif content.is_quantized or content.is_complex() or content.device.type != "cpu":
                yield f"{place} is a tensor of another kind"
        case None | bool() | int() | float() | str():
            pass
        case _:
            yield f"{place} is a {type(content).__name__}"


def config_of(path: Path, checkpoint: Checkpoint) -> Config:
    """The config a checkpoint was trained with, checked like any other."""
    try:
        return check(completed(checkpoint.config), Source("its config"))
    except ConfigError as error:
        reason = "; ".join(error.problems)
        raise CheckpointError(f"{path} holds a config that is not valid: {reason}") from None


def restore_model(path: Path, checkpoint: Checkpoint, config: Config) -> DigitClassifier:
    """The model of a checkpoint with its weights; raises CheckpointError where they do not fit."""
    model = build_model(config)
    check_weights(path, checkpoint.weights, model)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def check_weights(path: Path, weights: dict[str, Any], model: DigitClassifier) -> None:
    """Raise CheckpointError unless these are finite weights of this model's names and shapes."""
    own = model.state_dict()
    for name in own | weights:
        if name not in weights:
            problem = f"{name} is missing"
        elif name not in own:
            problem = f"there is no {name} in it"
        elif kind_of(weights[name]) != kind_of(own[name]):
            problem = f"{name} is {kind_of(weights[name])} instead of {kind_of(own[name])}"
        elif not weights[name].isfinite().all():
            raise CheckpointError(f"{path}: a weight of {name} is not a finite number")
        else:
            continue
        raise CheckpointError(f"{path}: the weights do not fit the model: {problem}")


def kind_of(value: Any) -> str:
    """The shape and type of a tensor, in words; of anything else, its class."""
    if isinstance(value, Tensor):
        return f"{[*value.shape]} {value.dtype}"
    return f"a {type(value).__name__}"


def check_optimizer_state(path: Path, optimizer: Optimizer) -> None:
    """Raise CheckpointError unless what was loaded from a path suits the weights it belongs to."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or (value.ndim and value.shape != weight.shape):
                raise CheckpointError(f"{path}: the optimiser's {name} does not fit the weights")
            if not value.isfinite().all():
                raise CheckpointError(f"{path}: the optimiser's {name} is not finite")


def first_line(error: Exception) -> str:
    """The gist of a long exception."""
    return (str(error).splitlines() or [type(error).__name__])[0]
