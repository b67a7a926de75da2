"""CUB-200-2011, birds (Wah et al. 2011), and other pictures in a folder of the same format.

The folder holds ``images.txt`` (a number and a path below ``images`` a line), ``classes.txt`` (a
number and a name), ``image_class_labels.txt`` (an image's number and its class's) and
``train_test_split.txt`` (an image's number, and 1 for training or 0 for test). Bounding boxes and
parts are not read.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from typing_extensions import override

from stn_train.data.images import LARGEST_PX, SMALLEST_PX, Images
from stn_train.data.pictures import squares_on_disk
from stn_train.data.source import FolderPath, Labelled, Source
from stn_train.errors import DataError

FOLDER = "CUB_200_2011"
"""The name of the folder in the archive that is distributed."""

CLASSES, TRAINING, TEST = 200, 5_994, 5_794
"""How many classes, training and test pictures CUB-200-2011 has."""


class Listed(NamedTuple):
    """A picture that a folder lists."""

    path: Path
    label: int
    """Number of its class, from 0."""
    trains: bool
    """Whether it is a training picture."""


class Listing(NamedTuple):
    """What a folder lists."""

    classes: tuple[str, ...]
    pictures: list[Listed]

    def part(self, trains: bool) -> list[Listed]:
        """The training or the test pictures: one of each class, then the next of each, and so on.

        The folder lists class by class. In this order the first or the last pictures are of all
        classes too. Within a class it depends on the names of the files alone.
        """
        ranked = []
        for label in range(len(self.classes)):
            own = [each for each in self.pictures if (each.label, each.trains) == (label, trains)]
            own.sort(key=lambda each: hashlib.sha256(each.path.name.encode()).digest())
            ranked += [(rank, label, each) for rank, each in enumerate(own)]
        return [each for _, _, each in sorted(ranked, key=lambda entry: entry[:2])]


def read_listing(root: Path) -> Listing:
    """What a folder of CUB's format lists; raises DataError, naming file and line, if it is not."""
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder. CUB-200-2011 must be unpacked there: the folder {FOLDER} of "
            "CUB_200_2011.tgz, from www.vision.caltech.edu/datasets/cub_200_2011.\n"
            "  Name the folder that holds it with --data-dir or STN_DATA_DIR, or the folder itself "
            "with data.source.cub.path"
        )
    names = read_table(root / "classes.txt")
    places = {number: label for label, number in enumerate(names)}
    paths = read_table(root / "images.txt")
    labels = read_table(root / "image_class_labels.txt", paths.keys(), names.keys())
    split = read_table(root / "train_test_split.txt", paths.keys(), {"0", "1"})
    pictures = [
        Listed(root / "images" / path, places[labels[number]], split[number] == "1")
        for number, path in paths.items()
    ]
    for trains, what in ((True, "training"), (False, "test")):
        if not any(each.trains is trains for each in pictures):
            raise DataError(f"{root / 'train_test_split.txt'} lists no {what} pictures")
    return Listing(tuple(map(plain_name, names.values())), pictures)


def read_table(
    path: Path, keys: Collection[str] | None = None, values: Collection[str] | None = None
) -> dict[str, str]:
    """The lines of a file, each a number and a word.

    keys: the numbers that there must be; values: what the words can be. None for any.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for count, line in enumerate(lines, start=1):
        number, _, word = line.strip().partition(" ")
        if not number:
            continue
        if not word or number in found:
            what = f"number {number} is there twice" if word else "it must be a number and a word"
            raise DataError(f"{path}:{count}: {what}: {line!r:.80}")
        if values is not None and word not in values:
            raise DataError(f"{path}:{count}: there is no {word!r:.40} to choose: {line!r:.80}")
        found[number] = word
    if not found:
        raise DataError(f"{path} is empty")
    if keys is not None and found.keys() != set(keys):
        odd = sorted(found.keys() ^ set(keys))[0]
        raise DataError(f"{path} and images.txt do not list the same pictures: {odd} is in one")
    return found


def plain_name(name: str) -> str:
    """The name of a class as people write it: 001.Black_footed_Albatross is Black footed Albatross.

    The number would make all names look alike where they are cut.
    """
    number, _, words = name.partition(".")
    return (words if number.isdecimal() and words else name).replace("_", " ")


class CubFolder(Source):
    """Colour pictures in a folder of the format of CUB-200-2011, resized.

    They are resized once and kept in a file below the folder of data sets (--data-dir), from which
    a run reads what it needs: 3 * size**2 bytes a picture.
    """

    size: Annotated[int, Field(ge=SMALLEST_PX, le=LARGEST_PX)] = 256
    """Height and width in pixels: the shorter side is resized to it, the middle is cut out."""

    @property
    @override
    def side_px(self) -> int:
        return self.size

    @abstractmethod
    def root(self, data_dir: Path) -> Path:
        """The folder that holds images.txt."""

    def listing(self, data_dir: Path) -> Listing:
        """What the folder lists; raises DataError if that is not as it should be."""
        return read_listing(self.root(data_dir))

    @override
    def load(self, data_dir: Path) -> Labelled:
        listing = self.listing(data_dir)
        return self.images(listing, True, data_dir), self.images(listing, False, data_dir)

    def images(self, listing: Listing, trains: bool, data_dir: Path) -> Images:
        """The training or the test pictures."""
        part = listing.part(trains)
        paths = [each.path for each in part]
        pixels = squares_on_disk(paths, self.size, data_dir / "squares")
        return Images(pixels, torch.tensor([each.label for each in part]), listing.classes)

    @override
    def origin(self, data_dir: Path) -> str:
        return f"pictures in {self.root(data_dir)}"


class Cub(CubFolder):
    """cub: CUB-200-2011, 11,788 pictures of 200 species of birds (Wah et al. 2011).

    It is not downloaded. Resized, it takes 2.3 GB of the disk at 256 px, 9.3 GB at 512 px.
    """

    path: FolderPath | None = None
    """The folder that holds images.txt; null for CUB_200_2011 in the folder of data sets
    (--data-dir). A relative path starts from the working directory."""

    @override
    def root(self, data_dir: Path) -> Path:
        return data_dir / FOLDER if self.path is None else Path(self.path)

    @override
    def listing(self, data_dir: Path) -> Listing:
        listing = super().listing(data_dir)
        found = len(listing.classes), len(listing.part(True)), len(listing.part(False))
        if found != (CLASSES, TRAINING, TEST):
            classes, training, test = found
            raise DataError(
                f"{self.root(data_dir)} is not CUB-200-2011: it lists {classes} classes, "
                f"{training} training and {test} test pictures instead of {CLASSES}, "
                f"{TRAINING} and {TEST}. For other pictures set data.source to cub_format"
            )
        return listing


class CubFormat(CubFolder):
    """cub_format: other pictures in a folder of the format of CUB-200-2011."""

    path: FolderPath
    """The folder that holds images.txt; a relative path starts from the working directory."""

    @override
    def root(self, data_dir: Path) -> Path:
        return Path(self.path)
