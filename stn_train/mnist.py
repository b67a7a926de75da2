"""MNIST: find its four files, download what is missing, believe nothing that was not checked."""

import contextlib
import gzip
import hashlib
import os
import tempfile
import zlib
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, NamedTuple
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from tqdm import tqdm

from stn_train.digits import CLASSES, SIDE, Digits
from stn_train.errors import DataError

ENVIRONMENT_VARIABLE = "STN_DATA_DIR"

ADVICE = "delete it to have it downloaded again"

SECONDS_WITHOUT_AN_ANSWER = 30


class IdxFile(NamedTuple):
    """One of MNIST's files: http://yann.lecun.com/exdb/mnist/ describes the format."""

    name: str
    magic: int
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


TRAIN_IMAGES = IdxFile(
    "train-images-idx3-ubyte",
    0x803,
    (60000, SIDE, SIDE),
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
)
TRAIN_LABELS = IdxFile(
    "train-labels-idx1-ubyte",
    0x801,
    (60000,),
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte",
    0x803,
    (10000, SIDE, SIDE),
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte",
    0x801,
    (10000,),
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


def load_mnist(data_dir: Path | None = None) -> tuple[Digits, Digits]:
    """The 60,000 training and 10,000 test digits, downloaded if they are nowhere to be found.

    data_dir: a torchvision root (it holds MNIST/raw) or the folder of the files themselves.
    Raises DataError where a file is damaged, or missing and unavailable.
    """
    raw = find_raw(data_dir) or download(data_dir)
    return (
        Digits(read_idx(raw, TRAIN_IMAGES), read_idx(raw, TRAIN_LABELS).long()),
        Digits(read_idx(raw, TEST_IMAGES), read_idx(raw, TEST_LABELS).long()),
    )


def data_directories(data_dir: Path | None = None) -> list[Path]:
    """Where MNIST is looked for, first to last: what the user names, ./data, the user's cache."""
    named = [data_dir, os.environ.get(ENVIRONMENT_VARIABLE)]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [*(Path(name) for name in named if name), Path("data"), Path(cache) / "stn_train"]


def find_raw(data_dir: Path | None = None) -> Path | None:
    """The first folder that holds all four files, gzipped or not."""
    for directory in data_directories(data_dir):
        for raw in (directory / "MNIST" / "raw", directory):
            if all(present(raw, file) for file in FILES):
                return raw
    return None


def present(raw: Path, file: IdxFile) -> Path | None:
    """The file in folder ``raw``, plain or gzipped, if it is there."""
    plain, zipped = raw / file.name, raw / f"{file.name}.gz"
    return next((path for path in (plain, zipped) if path.is_file()), None)


def read_idx(raw: Path, file: IdxFile) -> torch.Tensor:
    """The bytes of one file, uint8 in its shape; raises DataError if a single bit is wrong."""
    path = present(raw, file)
    if path is None:
        raise DataError(f"{raw / file.name} is missing")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            # One byte more than wanted tells a longer file, however long: no gzip bomb unpacks.
            content = stream.read(file.total_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; {ADVICE}") from None
    problem = wrong_with(content, file)
    if problem:
        raise DataError(f"{path} is damaged: {problem}; {ADVICE}")
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=file.header_bytes)
    return values.view(file.shape)


def wrong_with(content: bytes, file: IdxFile) -> str | None:
    """What is wrong with the bytes of a file, the most telling thing first."""
    if len(content) > file.total_bytes:
        return f"longer than {file.total_bytes:,} bytes"
    if len(content) < file.total_bytes:
        return f"{len(content):,} bytes long instead of {file.total_bytes:,}"
    numbers = [int.from_bytes(content[i : i + 4]) for i in range(0, file.header_bytes, 4)]
    if numbers != [file.magic, *file.shape]:
        return f"its header reads {numbers} instead of {[file.magic, *file.shape]}"
    if len(file.shape) == 1 and max(content[file.header_bytes :]) >= CLASSES:
        return f"it holds a label above {CLASSES - 1}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        return f"SHA-256 {digest} instead of {file.sha256}"
    return None


def download(data_dir: Path | None = None) -> Path:
    """Download MNIST to where the user names, else the user's cache; returns the files' folder.

    Every file is checked before it takes its name, so an interrupted download leaves nothing
    that looks finished, and two programs may download into one directory at once.
    """
    from torchvision.datasets import MNIST

    mirrors = [mirror for mirror in MNIST.mirrors if mirror.startswith("https://")]
    looked_in = data_directories(data_dir)
    named = data_dir is not None or os.environ.get(ENVIRONMENT_VARIABLE)
    raw = looked_in[0 if named else -1] / "MNIST" / "raw"
    reasons: list[str] = []
    made = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw, prefix=".download-") as temporary:
            for file in FILES:
                zipped = f"{file.name}.gz"
                for mirror in mirrors:
                    try:
                        fetch(mirror + zipped, Path(temporary) / zipped, file.total_bytes)
                        read_idx(Path(temporary), file)
                        break
                    except (OSError, HTTPException, DataError) as error:
                        reasons.append(f"{mirror}{zipped}: {error}")
                else:
                    raise DataError(not_to_be_had(looked_in, reasons))
            for file in FILES:
                (Path(temporary) / f"{file.name}.gz").replace(raw / f"{file.name}.gz")
    except OSError as error:
        raise DataError(not_to_be_had(looked_in, [f"{raw}: {error}"])) from None
    finally:
        for folder in made:  # innermost first; those that hold something stay
            with contextlib.suppress(OSError):
                folder.rmdir()
    return raw


class HttpsOnly(HTTPRedirectHandler):
    """Follows a server elsewhere, but not to where anybody on the way could change the answer."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """See `urllib.request.HTTPRedirectHandler`."""
        if not newurl.startswith("https://"):
            raise URLError(f"leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, path: Path, most_bytes: int) -> None:
    """Download a file of at most so many bytes, with a bar on a terminal.

    torchvision's `download_url` tries plain http when https fails, and reads without end.
    """
    read = 0
    with (
        build_opener(HttpsOnly).open(url, timeout=SECONDS_WITHOUT_AN_ANSWER) as answer,
        path.open("wb") as stream,
        tqdm(desc=path.name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while part := answer.read(1 << 16):
            read += len(part)
            if read > most_bytes:
                raise DataError(f"longer than {most_bytes:,} bytes")
            stream.write(part)
            bar.update(len(part))


def not_to_be_had(looked_in: list[Path], reasons: list[str]) -> str:
    """The message for a user without MNIST and without network."""
    folders = [
        f"{directory / 'MNIST' / 'raw'}{'' if directory.is_dir() else ' (there is no such folder)'}"
        for directory in looked_in
    ]
    return "\n".join(
        [
            "MNIST was not found and could not be downloaded.",
            f"  looked for: {', '.join(file.name for file in FILES)} (or .gz)",
            *[f"  in:         {folder}" for folder in folders],
            *[f"  download:   {reason}" for reason in reasons],
            "  To get it: put the four files into one of these folders, or name a folder that has",
            f"  them with --data-dir DIR or {ENVIRONMENT_VARIABLE}=DIR (a torchvision root works).",
            "  To train without it: --set data.source=embedded takes digits rendered from fonts,",
            "  as stn-train --config quickstart.yaml does.",
        ]
    )
