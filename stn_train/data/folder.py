"""Pictures in a folder for each class.

Legend: C channels, H height, W width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from stn_train.data.images import LARGEST_PX, SMALLEST_PX, Images
from stn_train.data.pictures import read_square
from stn_train.data.source import FolderPath, Labelled, Source
from stn_train.errors import DataError

Picture = tuple[Path, Tensor, int]
"""Where it lies, its pixels (C, H, W) and its label."""


class Folder(Source):
    """folder: pictures in a folder for each class, resized.

    The folder holds ``train`` and ``test``, each with a folder for each class; or the folders of
    the classes themselves, of whose pictures a share is kept for the test.
    """

    path: FolderPath
    """The folder; a relative path starts from the working directory."""
    size: Annotated[int, Field(ge=SMALLEST_PX, le=LARGEST_PX)] = 32
    """Height and width in pixels: the shorter side is resized to it, the middle is cut out."""
    colour: bool = False
    """Three channels (red, green, blue) instead of one (grey)."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Which share of each class is kept for the test where there is no folder ``test``. The choice
    depends on the names of the files alone."""

    @property
    @override
    def side_px(self) -> int:
        return self.size

    @override
    def load(self, data_dir: Path) -> Labelled:
        root = Path(self.path)
        parts = [root / "train", root / "test"]
        if all(part.is_dir() for part in parts):
            (training, names), (test, test_names) = map(self.read, parts)
            if names != test_names:
                odd = ", ".join(sorted(set(names) ^ set(test_names)))
                raise DataError(f"{root}: train and test do not have the same classes: {odd}")
            return images_from(training, names), images_from(test, names)
        found, names = self.read(root)
        tests = kept_for_test([path for path, *_ in found], self.test_share)
        test = [each for each in found if each[0] in tests]
        training = [each for each in found if each[0] not in tests]
        if not training or not test:
            raise DataError(f"{root}: too few pictures to keep some for the test")
        return images_from(training, names), images_from(test, names)

    def read(self, root: Path) -> tuple[list[Picture], tuple[str, ...]]:
        """The pictures under a folder, and the names of its classes."""
        from torchvision.datasets import ImageFolder

        if not root.is_dir():
            raise DataError(f"{root} is no folder: data.source.folder.path must name one")
        try:
            listed = ImageFolder(str(root))
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{root} is no folder of class folders: {reason}") from None
        pictures = [
            (Path(path), read_square(Path(path), self.size, self.colour), label)
            for path, label in listed.samples
        ]
        return pictures, tuple(listed.classes)

    @override
    def origin(self, data_dir: Path) -> str:
        return f"pictures in {self.path}"


def images_from(pictures: Sequence[Picture], classes: tuple[str, ...]) -> Images:
    """Pictures in memory."""
    _, pixels, labels = zip(*pictures, strict=True)
    return Images(torch.stack(pixels).contiguous(), torch.tensor(labels), classes)


def kept_for_test(paths: Sequence[Path], share: float) -> set[Path]:
    """A share of the files of each folder, those whose names hash lowest.

    One at least is kept for the test, and one for training; of a single file, that for training.
    """
    kept: set[Path] = set()
    for folder in {path.parent for path in paths}:
        files = [path for path in paths if path.parent == folder]
        files.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
        kept |= set(files[: min(max(1, round(share * len(files))), len(files) - 1)])
    return kept
