"""The sources of images, and how a run divides theirs into training, validation and test images."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from stn_train.data.cub import Cub, CubFormat
from stn_train.data.folder import Folder
from stn_train.data.images import Images
from stn_train.data.mnist import Mnist
from stn_train.data.source import Source, data_directory
from stn_train.data.torchvision_sets import EMnist, FashionMnist, KMnist, QMnist
from stn_train.errors import ConfigError
from stn_train.settings import Settings, chosen

SOURCES: dict[str, type[Source]] = {
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "kmnist": KMnist,
    "emnist": EMnist,
    "qmnist": QMnist,
    "folder": Folder,
    "cub": Cub,
    "cub_format": CubFormat,
}
"""What `data.source` in a config can be."""


def refuse_embedded(value: Any) -> Any:
    """Say what became of the font digits of earlier versions."""
    if value == "embedded":
        raise PydanticCustomError(
            "removed",
            "embedded, digits rendered from fonts, is gone: MNIST ships with the program, so use "
            "mnist, which needs no download either",
        )
    return value


class DataSettings(Settings):
    """Which images."""

    source: Annotated[Source, *chosen(SOURCES), BeforeValidator(refuse_embedded)] = Mnist()
    """Where they come from: a name, or `{name: {settings}}`."""
    validation: Annotated[int, Field(ge=0)] = 0
    """How many training images, from the end, are kept back for validation. Choose settings with
    some kept back, 5,000 for example; then train on all."""
    training_digits: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many training images, validation among them; null for all."""
    test_digits: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many test images; null for all."""


class Splits(NamedTuple):
    """The images of a run, by what they are for."""

    training: Images
    validation: Images
    test: Images
    origin: str
    """Where they come from, in words."""

    def to(self, device: torch.device) -> "Splits":
        """The images on a device."""
        return Splits(
            self.training.to(device), self.validation.to(device), self.test.to(device), self.origin
        )


def load_splits(settings: DataSettings, data_dir: Path | None = None) -> Splits:
    """The images that the settings ask for.

    data_dir: where data sets are kept that do not ship; None for `data_directory`.
    Raises DataError where they are unavailable, ConfigError where there are fewer than asked
    for, or validation takes them all.
    """
    folder = data_directory(data_dir)
    training, test = settings.source.load(folder)
    for key, images in (("training_digits", training), ("test_digits", test)):
        wanted = getattr(settings, key)
        if wanted is not None and wanted > len(images):
            raise ConfigError(
                [f"data.{key} is {wanted}; there are {len(images)}, and null takes all"]
            )
    training, test = training[: settings.training_digits], test[: settings.test_digits]
    kept = len(training) - settings.validation
    if kept < 1:
        raise ConfigError(
            [
                f"data.validation is {settings.validation}, but there are only {len(training)} "
                "training images: set it lower, or data.training_digits higher"
            ]
        )
    origin = settings.source.origin(folder)
    return Splits(training[:kept], training[kept:], test, origin)
