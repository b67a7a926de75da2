"""Picture files: one as a square of bytes, and many in a file that is read from the disk as needed.

Legend: N pictures, C channels, S side in pixels.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stn_train.errors import DataError


def open_picture(path: Path) -> Image.Image:
    """A picture, the way up that its camera says; of 16 bits a pixel, scaled to 8.

    Raises DataError if it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip, not scale
                upright = upright.point(lambda value: value * (1 / 257))
            return upright
    except UnidentifiedImageError:
        told = "it is none, or of a kind that Pillow does not know; PNG and JPEG will do"
        raise DataError(f"{path} cannot be read as a picture: {told}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise DataError(f"{path} cannot be read as a picture: {reason}") from None


def pixels_of(picture: Image.Image) -> Tensor:
    """The values of a picture of 8 bits, uint8 (C, H, W)."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, -1).permute(2, 0, 1)


def read_square(path: Path, side: int, colour: bool) -> Tensor:
    """A picture, uint8 (C, S, S): its shorter side resized to ``side``, the middle cut out.

    colour: three channels instead of one. Raises DataError, naming the file, if it is damaged.
    """
    picture = open_picture(path).convert("RGB" if colour else "L")
    return pixels_of(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))


def squares_on_disk(paths: Sequence[Path], side: int, cache: Path) -> Tensor:
    """Colour pictures as `read_square` reads them, uint8 (N, 3, S, S), mapped from a file.

    The file is written the first time, into the folder ``cache``; memory holds only the pictures
    that are used. Its name tells the files, their sizes and times, so a changed picture is read
    anew. Raises DataError, naming files, where some are missing or damaged.
    """
    shape = (len(paths), 3, side, side)
    mapped = cache / f"{side}px-{fingerprint(paths, side)}.bin"
    if not mapped.exists() or mapped.stat().st_size != torch.Size(shape).numel():
        write_squares(paths, side, mapped)
    return torch.from_file(str(mapped), size=torch.Size(shape).numel(), dtype=torch.uint8).view(
        shape
    )


def fingerprint(paths: Sequence[Path], side: int) -> str:
    """Identifies a list of files, as they are now, and a side; DataError where some are missing."""
    digest, missing = hashlib.sha256(f"{side}".encode()), []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            missing.append(path)
            continue
        digest.update(f"{path.absolute()}/{found.st_size}/{found.st_mtime_ns}\n".encode())
    if missing:
        names = ", ".join(map(str, missing[:3]))
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise DataError(f"{len(missing):,} of {len(paths):,} pictures are missing: {names}{more}")
    return digest.hexdigest()[:16]


def write_squares(paths: Sequence[Path], side: int, mapped: Path) -> None:
    """Write the pictures of `squares_on_disk`, one after another; a half file keeps no name."""
    mapped.parent.mkdir(parents=True, exist_ok=True)
    unfinished = mapped.with_suffix(f".{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as stream:
            for path in paths:
                stream.write(read_square(path, side, colour=True).contiguous().numpy().tobytes())
        unfinished.replace(mapped)
    finally:
        unfinished.unlink(missing_ok=True)
