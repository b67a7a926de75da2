"""MNIST, which ships with the program: four compressed files, believed only when checked.

Legend: N images.
"""

import hashlib
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from stn_train.data.images import DIGIT_PX, Images, Shape
from stn_train.data.source import Labelled, Source
from stn_train.errors import DataError

FOLDER = Path(__file__).parent / "mnist_files"

CLASSES = tuple("0123456789")

PIECE_BYTES = 1 << 20


class IdxFile(NamedTuple):
    """One of MNIST's files: http://yann.lecun.com/exdb/mnist/ describes the format."""

    name: str
    shape: tuple[int, ...]
    sha256: str
    """Of the uncompressed file."""

    @property
    def header_bytes(self) -> int:
        """The magic number and the dimensions, four bytes each."""
        return 4 * (1 + len(self.shape))

    @property
    def total_bytes(self) -> int:
        """Length of the uncompressed file."""
        return self.header_bytes + torch.Size(self.shape).numel()


TRAINING_IMAGES = IdxFile(
    "train-images-idx3-ubyte",
    (60000, 28, 28),
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
)
TRAINING_LABELS = IdxFile(
    "train-labels-idx1-ubyte",
    (60000,),
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte",
    (10000, 28, 28),
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte",
    (10000,),
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)


def load_mnist() -> Labelled:
    """The 60,000 training and the 10,000 test digits, pixels (N, 1, 28, 28).

    Raises DataError where a file is missing or a single bit of it is wrong.
    """
    files = (TRAINING_IMAGES, TRAINING_LABELS, TEST_IMAGES, TEST_LABELS)
    with ThreadPoolExecutor() as pool:  # lzma and hashlib let other threads run meanwhile
        training, training_labels, test, test_labels = pool.map(read_idx, files)
    return (
        Images(training[:, None], training_labels.long(), CLASSES),
        Images(test[:, None], test_labels.long(), CLASSES),
    )


def read_idx(file: IdxFile) -> Tensor:
    """The content of one file, uint8 in its shape; raises DataError if it is damaged."""
    path = FOLDER / f"{file.name}.xz"
    # One byte more than wanted: a damaged file is seen to be longer, and does not fill the memory.
    content = bytearray(file.total_bytes + 1)
    try:
        with lzma.open(path) as stream:
            length = read_pieces(stream, memoryview(content))
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}; install stn_train again") from None
    digest = hashlib.sha256(memoryview(content)[:length]).hexdigest()
    if digest != file.sha256:
        told = f"SHA-256 {digest} instead of {file.sha256}"
        raise DataError(f"{path} is damaged: {told}; install stn_train again")
    values = torch.frombuffer(
        content, dtype=torch.uint8, offset=file.header_bytes, count=torch.Size(file.shape).numel()
    )
    return values.view(file.shape)


def read_pieces(stream: lzma.LZMAFile, buffer: memoryview) -> int:
    """Fill a buffer from a stream, and return how many bytes there were.

    In pieces: lzma makes its output of blocks, and a thread that frees large ones keeps them.
    """
    filled = 0
    while more := stream.readinto(buffer[filled : filled + PIECE_BYTES]):
        filled += more
    return filled


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
