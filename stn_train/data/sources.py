"""Sources of images, and how a run divides them into training, validation and test images.

To add one: write a `Source` and name it in SOURCES. Its fields become config keys.

Legend: N images, C channels, H height, W width.
"""

import contextlib
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor
from typing_extensions import override

from stn_train.data import cub
from stn_train.data.distortions import DIGIT_PX, LARGEST_PX, SMALLEST_PX
from stn_train.data.images import Images, Shape
from stn_train.data.mnist import load_mnist
from stn_train.data.pictures import read_square, squares_on_disk
from stn_train.errors import ConfigError, DataError
from stn_train.settings import Settings, chosen

DATA_DIR_VARIABLE = "STN_DATA_DIR"

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


class Mnist(Source):
    """mnist: 70,000 handwritten digits, 28 x 28 px, grey, which ship with the program."""

    @property
    @override
    def side_px(self) -> int:
        return DIGIT_PX

    @override
    def load(self, data_dir: Path) -> Labelled:
        return load_mnist()

    @override
    def origin(self, data_dir: Path) -> str:
        return "MNIST, as it ships with the program"

    @override
    def picture(self, path: Path, shape: Shape) -> Tensor:
        from stn_train.data.own_pictures import digit_in

        return digit_in(path, shape[1])


class TorchvisionSource(Source):
    """A data set of MNIST's format, 28 x 28 px and grey, that torchvision downloads and checks."""

    dataset: ClassVar[str]
    """The name of its class in torchvision.datasets."""
    box_px: ClassVar[int] = 20
    """Side of the box in its images that a picture of one's own is fitted into."""

    @property
    @override
    def side_px(self) -> int:
        return DIGIT_PX

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments that make torchvision load the training and the test part."""
        return {"train": True}, {"train": False}

    def images_of(self, loaded: Any) -> Images:
        """What torchvision has loaded as images."""
        classes = tuple(name.split(" - ")[-1] for name in loaded.classes)
        return Images(loaded.data[:, None].contiguous(), loaded.targets.long(), classes)

    @override
    def load(self, data_dir: Path) -> Labelled:
        from torchvision import datasets

        open_part = getattr(datasets, self.dataset)
        try:
            training, test = (
                whole(self.images_of(quietly(open_part, str(data_dir), download=True, **part)))
                for part in self.parts()
            )
        except Exception as error:  # of a damaged file: AssertionError, KeyError, ValueError, ...
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{self.dataset} could not be loaded from {data_dir}, nor downloaded to it: "
                f"{reason}\n  Put the files that torchvision downloads into "
                f"{data_dir / self.dataset / 'raw'} (delete damaged ones first),\n"
                f"  or name a folder that has them with --data-dir or {DATA_DIR_VARIABLE}."
            ) from None
        return training, test

    @override
    def origin(self, data_dir: Path) -> str:
        return f"{self.dataset} in {data_dir}"

    @override
    def picture(self, path: Path, shape: Shape) -> Tensor:
        from stn_train.data.own_pictures import digit_in

        return digit_in(path, shape[1], self.box_px / DIGIT_PX)


def whole(images: Images) -> Images:
    """The images; raises ValueError unless there are as many labels, each of a class."""
    counts = len(images.pixels), len(images.labels)
    if counts[0] != counts[1] or not counts[0]:
        raise ValueError(f"there are {counts[0]} images and {counts[1]} labels")
    if images.format.shape != (1, DIGIT_PX, DIGIT_PX):
        raise ValueError(f"the images have the shape {images.format.shape}")
    if not 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(images.classes):
        raise ValueError(f"a label is none of the {len(images.classes)} classes")
    return images


class FashionMnist(TorchvisionSource):
    """fashion_mnist: 70,000 pieces of clothing in 10 classes (Xiao et al. 2017)."""

    dataset = "FashionMNIST"
    box_px = DIGIT_PX


class KMnist(TorchvisionSource):
    """kmnist: 70,000 cursive Japanese characters in 10 classes (Clanuwat et al. 2018)."""

    dataset = "KMNIST"


class EMnist(TorchvisionSource):
    """emnist: handwritten letters and digits (Cohen et al. 2017)."""

    dataset = "EMNIST"

    split: Literal["balanced", "letters", "digits", "byclass", "bymerge", "mnist"] = "balanced"
    """Which of its six divisions into classes."""

    @override
    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"split": self.split, "train": True}, {"split": self.split, "train": False}

    @override
    def images_of(self, loaded: Any) -> Images:
        names, labels = list(loaded.classes), loaded.targets.long()
        if names[0] == "N/A":  # letters are numbered from 1 on
            names, labels = names[1:], labels - 1
        # The files hold the images with rows and columns exchanged.
        return Images(loaded.data.mT[:, None].contiguous(), labels, tuple(names))


class QMnist(TorchvisionSource):
    """qmnist: MNIST's training digits and 60,000 test digits (Yadav and Bottou 2019)."""

    dataset = "QMNIST"

    @override
    def images_of(self, loaded: Any) -> Images:
        labels = loaded.targets
        labels = labels[:, 0] if labels.ndim == 2 else labels  # beside the class: who wrote it
        classes = tuple(name.split(" - ")[0] for name in loaded.classes)
        return Images(loaded.data[:, None].contiguous(), labels.long(), classes)


def absolute_path(path: str) -> str:
    """A path that means the same from any working directory."""
    return str(Path(path).expanduser().absolute())


FolderPath = Annotated[str, Field(min_length=1), AfterValidator(absolute_path)]


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

    def read(self, root: Path) -> "tuple[list[Picture], tuple[str, ...]]":
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

    def listing(self, data_dir: Path) -> cub.Listing:
        """What the folder lists; raises DataError if that is not as it should be."""
        return cub.read_listing(self.root(data_dir))

    @override
    def load(self, data_dir: Path) -> Labelled:
        listing = self.listing(data_dir)
        return self.images(listing, True, data_dir), self.images(listing, False, data_dir)

    def images(self, listing: cub.Listing, trains: bool, data_dir: Path) -> Images:
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
        return data_dir / cub.FOLDER if self.path is None else Path(self.path)

    @override
    def listing(self, data_dir: Path) -> cub.Listing:
        listing = super().listing(data_dir)
        found = len(listing.classes), len(listing.part(True)), len(listing.part(False))
        if found != (cub.CLASSES, cub.TRAINING, cub.TEST):
            classes, training, test = found
            raise DataError(
                f"{self.root(data_dir)} is not CUB-200-2011: it lists {classes} classes, "
                f"{training} training and {test} test pictures instead of {cub.CLASSES}, "
                f"{cub.TRAINING} and {cub.TEST}. For other pictures set data.source to cub_format"
            )
        return listing


class CubFormat(CubFolder):
    """cub_format: other pictures in a folder of the format of CUB-200-2011."""

    path: FolderPath
    """The folder that holds images.txt; a relative path starts from the working directory."""

    @override
    def root(self, data_dir: Path) -> Path:
        return Path(self.path)


Picture = tuple[Path, Tensor, int]
"""Where it lies, its pixels (C, H, W) and its label."""


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


def quietly(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of a call that prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments, **options)


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


def data_directory(data_dir: Path | None = None) -> Path:
    """Where data sets are kept: what the user names, $STN_DATA_DIR, the user's cache."""
    named = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return Path(named) if named else cache_directory()


def cache_directory() -> Path:
    """Our part of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stn_train"
