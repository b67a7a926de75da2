"""Data sets of MNIST's format that torchvision downloads and checks: FashionMNIST and others.

Legend: C channels, H height, W width.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from stn_train.data.images import DIGIT_PX, Images, Shape
from stn_train.data.source import DATA_DIR_VARIABLE, Labelled, Source
from stn_train.errors import DataError


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


def quietly(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of a call that prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments, **options)
