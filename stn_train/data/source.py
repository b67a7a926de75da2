"""What a source of images is, and where data sets are kept.

Legend: C channels, H height, W width.

To add one: write a `Source` and name it in SOURCES of `stn_train.data.sources`. Its fields become
config keys.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from stn_train.data.images import Images, Shape
from stn_train.data.pictures import read_square
from stn_train.settings import Settings

DATA_DIR_VARIABLE = "STN_DATA_DIR"
"""The environment variable that can name the folder of data sets."""

Labelled = tuple[Images, Images]
"""Training and test images."""


class Source(Settings, ABC):
    """Where images come from."""

    @property
    @abstractmethod
    def side_px(self) -> int:
        """Height and width of the images, known before they are loaded."""

    @abstractmethod
    def load(self, data_dir: Path) -> Labelled:
        """Training and test images.

        data_dir: where data sets are kept that do not ship with the program.
        Raises DataError where they are missing or damaged.
        """

    @abstractmethod
    def origin(self, data_dir: Path) -> str:
        """Where the images come from, in words."""

    def picture(self, path: Path, shape: Shape) -> Tensor:
        """A picture of one's own, uint8 (C, H, W) of a shape, made like the images of this source.

        Unless a source does otherwise, the shorter side is resized and the middle cut out. Raises
        DataError if it cannot be read.
        """
        return read_square(path, shape[1], colour=shape[0] == 3)


def absolute_path(path: str) -> str:
    """A path that means the same from any working directory."""
    return str(Path(path).expanduser().absolute())


FolderPath = Annotated[str, Field(min_length=1), AfterValidator(absolute_path)]


def data_directory(data_dir: Path | None = None) -> Path:
    """Where data sets are kept: what the user names, $STN_DATA_DIR, the user's cache."""
    named = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return Path(named) if named else cache_directory()


def cache_directory() -> Path:
    """Our part of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stn_train"
