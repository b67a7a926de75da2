"""Checkpoints: one file of plain types and tensors, and a reader that trusts none of it."""

import warnings
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stn_train.atomic import write_atomically
from stn_train.config import Config
from stn_train.config_file import Source, check
from stn_train.errors import CheckpointError, ConfigError
from stn_train.models import DigitClassifier, build_model

FORMAT = 1
"""Version of the layout; a reader refuses one that it does not know."""


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


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that ``path`` is never half a file."""
    # Not dataclasses.asdict: it would copy every tensor.
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    write_atomically(path, lambda stream: torch.save(content, stream))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; runs no code from it. Raises CheckpointError if it is not whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums
        if damaged:
            raise CheckpointError(f"{path} is damaged: wrong checksum in {damaged}")
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
    return checkpoint


def config_of(path: Path, checkpoint: Checkpoint) -> Config:
    """The config a checkpoint was trained with, checked like any other."""
    try:
        return check(checkpoint.config, Source("its config"))
    except ConfigError as error:
        reason = "; ".join(error.problems)
        raise CheckpointError(f"{path} holds a config that is not valid: {reason}") from None


def restore_model(path: Path, checkpoint: Checkpoint, config: Config) -> DigitClassifier:
    """The model of a checkpoint with its weights; raises CheckpointError where they do not fit."""
    model = build_model(config)
    try:
        model.load_state_dict(checkpoint.weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: the weights do not fit the model: {reason}") from None
    if not all(tensor.isfinite().all() for tensor in checkpoint.weights.values()):
        raise CheckpointError(f"{path}: a weight is not a finite number")
    return model.eval()


def first_line(error: Exception) -> str:
    """The gist of a long exception."""
    return (str(error).splitlines() or [type(error).__name__])[0]
