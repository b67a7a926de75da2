"""Checkpoints: one file of plain types and tensors, and a reader that trusts none of it.

Beside them a finished model as safetensors, to hand on: the same without the trainer's state.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from stn_train.config import Config, recorded
from stn_train.config_errors import ConfigSource, check
from stn_train.data.images import ImageFormat
from stn_train.errors import CheckpointError, ConfigError
from stn_train.models.network import Network
from stn_train.runs.files import absent, replacing, write_to_disk
from stn_train.runs.safetensors import read_tensors, write_tensors

FORMAT = 2
"""Version of the layout that is written."""

SAFETENSORS = ".safetensors"
"""The suffix of a model without the state of its training."""

MNIST_IMAGES: dict[str, Any] = {"shape": [1, 28, 28], "classes": [*"0123456789"]}
"""The images of every checkpoint of format 1, which has no entry for them."""

MAX_SIDE, MAX_CLASSES = 1 << 14, 1 << 16
"""Bounds on what a checkpoint may say of its images: far above any data set."""


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
    images: dict[str, Any]
    """What the network was built for: ``shape`` [C, H, W] and the names of the ``classes``."""
    format: int = FORMAT

    @property
    def image_format(self) -> ImageFormat:
        """What the network was built for."""
        channels, height, width = self.images["shape"]
        return ImageFormat((channels, height, width), tuple(self.images["classes"]))


def images_entry(images: ImageFormat) -> dict[str, Any]:
    """A checkpoint's ``images``, in plain types."""
    return {"shape": [*images.shape], "classes": [*images.classes]}


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint so that ``path`` is never half a file.

    It is read back from the disk and compared with its checksums before it takes the name. With
    ``previous`` the old one is renamed to that first, so that for a moment there is only that.
    """
    # Not dataclasses.asdict: it would copy every tensor.
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    with replacing(path) as temporary:
        write_to_disk(temporary, lambda stream: torch.save(content, stream))
        check_archive(temporary)
        if previous is not None and path.exists():
            path.replace(previous)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; runs no code from it. Raises CheckpointError if it is not whole.

    One of format 1 comes back in the present format. A model as safetensors comes back without the
    state of its training.
    """
    content = read_model(path) if path.suffix == SAFETENSORS else read_archive(path)
    if not has_known_format(content):
        raise CheckpointError(f"{path} is not a checkpoint of stn_train, format 1 or {FORMAT}")
    if content["format"] == 1:
        content |= {"images": MNIST_IMAGES, "format": FORMAT}
    kinds = {"config": dict, "step": int, "weights": dict, "training": dict, "images": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise CheckpointError(f"{path} is damaged: {name} is not a {kind.__name__}")
    problem = next(not_plain(content), None) or wrong_with_images(content["images"])
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}")
    return Checkpoint(**content)


def read_archive(path: Path) -> Any:
    """What torch.save wrote, unchecked but for its bytes; raises CheckpointError if not whole."""
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on strange files; they fail below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(absent(path)) from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # a damaged pickle or archive can raise anything
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a checkpoint of stn_train: {reason}") from None


def save_model(path: Path, checkpoint: Checkpoint, measured: Mapping[str, Any]) -> None:
    """Write the model of a checkpoint as safetensors.

    The metadata have what it takes to load it (config, step and images), and what was measured.
    """
    plain = {"config": checkpoint.config, "images": checkpoint.images, **measured}
    metadata = {key: json.dumps(value) for key, value in plain.items()}
    metadata |= {"format": "pt", "stn_train": str(checkpoint.format), "step": str(checkpoint.step)}
    write_tensors(path, checkpoint.weights, metadata)


def read_model(path: Path) -> dict[str, Any]:
    """What `save_model` wrote, as the content of a checkpoint; raises CheckpointError if not whole.

    The types of the entries are not checked.
    """
    weights, metadata = read_tensors(path)
    try:
        return {
            "config": json.loads(metadata["config"]),
            "step": int(metadata["step"]),
            "weights": weights,
            "training": {},
            "images": json.loads(metadata["images"]),
            "format": int(metadata["stn_train"]),
        }
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a model of stn_train: {error}") from None


def has_known_format(content: Any) -> bool:
    """Whether the entries of a file are those of a format that we read."""
    if not isinstance(content, dict):
        return False
    names = {field.name for field in fields(Checkpoint)}
    version, known = content.get("format"), {1: names - {"images"}, FORMAT: names}
    return type(version) is int and known.get(version) == set(content)


def check_archive(path: Path) -> None:
    """Raise CheckpointError unless a file is an archive as torch writes it, every byte as written.

    torch.load does not compare the checksums, and unpacks what is compressed, however large.
    """
    size = path.stat().st_size
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


def wrong_with_images(images: dict[str, Any]) -> str | None:
    """What is wrong with a checkpoint's ``images``."""
    if images.keys() != {"shape", "classes"}:
        return "images must have a shape and classes, nothing else"
    shape, classes = images["shape"], images["classes"]
    if not isinstance(shape, list) or len(shape) != 3:
        return f"images.shape is {shape!r:.80}; it must be [channels, height, width]"
    if not all(type(size) is int and 1 <= size <= MAX_SIDE for size in shape):
        return f"images.shape is {shape!r:.80}; each must be a number from 1 to {MAX_SIDE:,}"
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "images.classes must be a list of names"
    if len(classes) > MAX_CLASSES:
        return f"images.classes has {len(classes):,} names; more than {MAX_CLASSES:,}"
    return None


def config_of(path: Path, checkpoint: Checkpoint) -> Config:
    """The config a checkpoint was trained with, checked like any other."""
    try:
        return check(recorded(checkpoint.config), ConfigSource("its config"))
    except ConfigError as error:
        reason = "; ".join(error.problems)
        raise CheckpointError(f"{path} holds a config that is not valid: {reason}") from None
    except TypeError as error:  # a list where the former layout has a name
        raise CheckpointError(f"{path} holds a config that is not valid: {error}") from None


def restore_model(path: Path, checkpoint: Checkpoint, config: Config) -> Network:
    """The model of a checkpoint with its weights; raises CheckpointError where they do not fit."""
    images, side_px = checkpoint.image_format, config.data.source.side_px
    if images.shape[1:] != (side_px, side_px):
        found = f"its images are {images.shape[1:]} px, those of its config {side_px} px"
        raise CheckpointError(f"{path} is damaged: {found}")
    with WithoutMemory():  # a small file must not make us build a large network
        check_weights(path, checkpoint.weights, config.build_network(images))
    model = config.build_network(images)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


class WithoutMemory(TorchFunctionMode):
    """While it is entered, layers are built with weights that have a shape and no content.

    Like ``torch.device("meta")``, but for `torch.empty` alone: a transform solves its linear
    system as always, for which meta tensors import a second of code.
    """

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        meta = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **meta})


def check_weights(path: Path, weights: dict[str, Any], model: nn.Module) -> None:
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
    """Raise CheckpointError unless the state loaded from a path fits the weights it belongs to."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or (value.ndim and value.shape != weight.shape):
                raise CheckpointError(f"{path}: the optimiser's {name} does not fit the weights")
            if not value.isfinite().all():
                raise CheckpointError(f"{path}: the optimiser's {name} is not finite")


def first_line(error: Exception) -> str:
    """The gist of a long exception."""
    return (str(error).splitlines() or [type(error).__name__])[0]
