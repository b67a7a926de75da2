"""Pictures of one's own: any file that Pillow reads, made like the images of a data set.

Legend: C channels, H height, W width, S side in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stn_train.data.pictures import open_picture, pixels_of
from stn_train.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""How the names of pictures in a folder end; other files there are passed over."""

BOX_SHARE = 20 / 28
"""MNIST fits its digits into 20 of 28 pixels."""

BACKGROUND_SHARE = 0.25
"""What differs from the background by less than this share of the greatest difference is background
too: the grain and the shadows of a photograph."""


def digit_in(path: Path, side: int, box_share: float = BOX_SHARE) -> Tensor:
    """`as_digit` of the picture in a file; raises DataError if it cannot be read or is plain."""
    digit = as_digit(open_picture(path), side, box_share)
    if not digit.any():
        raise DataError(f"{path} is plain: nothing in it stands out from its background")
    return digit


def as_digit(picture: Image.Image, side: int, box_share: float = BOX_SHARE) -> Tensor:
    """A picture of one thing, made as MNIST's digits were: uint8 (1, S, S), bright on black.

    What stands out from the background (`ink`) is cut out, resized to fit into a box of
    ``box_share * side`` pixels, its proportions kept, and brightened until its brightest pixel is
    white, for a thin stroke gets faint as it gets small. It is moved by whole pixels, so that its
    centre of mass lies in the middle, or as near to it as there is room. A plain picture is black.
    http://yann.lecun.com/exdb/mnist/
    """
    whole = ink(picture)
    canvas = torch.zeros(1, side, side, dtype=torch.uint8)
    if not whole.any():
        return canvas
    (top, bottom), (left, right) = extent(whole.amax(1)), extent(whole.amax(0))
    cut = whole[top:bottom, left:right]
    factor = box_share * side / max(cut.shape)
    size = [max(1, round(factor * length)) for length in cut.shape]
    small = F.interpolate(cut[None, None], size, mode="bilinear", antialias=True)[0, 0]
    row, column = start(small.sum(1), side), start(small.sum(0), side)
    box = canvas[0, row : row + size[0], column : column + size[1]]
    box.copy_((255 * small / small.max()).round())
    return canvas


def ink(picture: Image.Image) -> Tensor:
    """How far each pixel stands out from the background, float (H, W) in [0, 1].

    The background is the median of the border, and everything within BACKGROUND_SHARE of it. A
    picture that is dark on light, whose darkest pixel differs from the background by more than its
    brightest, is inverted. Transparent parts are background.
    """
    grey = pixels_of(on_background(picture))[0].float() / 255  # (H, W)
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]]).median()
    inverted = border - grey.min() > grey.max() - border
    standing = ((border - grey) if inverted else (grey - border)).clamp(min=0)
    most = standing.max()
    standing = standing / most if most > 0 else standing
    return torch.where(standing < BACKGROUND_SHARE, 0.0, standing)


def on_background(picture: Image.Image) -> Image.Image:
    """A picture in grey; where it is transparent, white behind dark contents, else black."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("L")
    grey, opacity = picture.convert("RGBA").convert("LA").split()
    values, opacities = (pixels_of(each).double() for each in (grey, opacity))
    mean = (values * opacities).sum() / opacities.sum().clamp(min=1)
    behind = Image.new("L", picture.size, 255 if mean < 128 else 0)
    return Image.composite(grey, behind, opacity)


def extent(profile: Tensor) -> tuple[int, int]:
    """The first index at which a profile (N,) is not zero, and the one after the last."""
    found = profile.nonzero()[:, 0].tolist()
    return found[0], found[-1] + 1


def start(mass: Tensor, side: int) -> int:
    """Where to put masses (N,) on a line of so many pixels, so that their centre is in its middle.

    The middle is the centre of pixel ``side / 2``, counted from 0: so it is in MNIST's own files.
    """
    centre = float((mass * torch.arange(len(mass))).sum() / mass.sum())
    return min(max(round(side / 2 - centre), 0), side - len(mass))


class PictureFile(NamedTuple):
    """A picture in a folder."""

    path: Path
    label: int | None
    """The class whose folder it lies in."""


def pictures_in(folder: Path, classes: Sequence[str]) -> list[PictureFile]:
    """The pictures in a folder, or in its subfolders, each named after a class.

    A slash in the name of a class is an underscore in that of its folder. Raises DataError if there
    is no picture, if a subfolder is no class, or if pictures lie beside subfolders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    folders = [each for each in entries if each.is_dir()]
    alone = [each for each in entries if is_picture(each)]
    if not folders:
        found = [PictureFile(path, None) for path in alone]
    else:
        labels = {name.replace("/", "_"): label for label, name in enumerate(classes)}
        strange = [each.name for each in folders if each.name not in labels]
        if strange:
            raise DataError(
                f"{folder} has folders that are named after no class of the model: "
                f"{', '.join(strange):.200}\n  Its classes are {', '.join(labels):.400}; without "
                "folders, pictures are only predicted."
            )
        if alone:
            raise DataError(
                f"{folder} has both pictures, {alone[0].name} for one, and folders of classes: "
                "move the pictures into a folder of their class"
            )
        found = [
            PictureFile(path, labels[each.name])
            for each in folders
            for path in sorted(each.rglob("*"))
            if is_picture(path)
        ]
    if not found:
        raise DataError(f"{folder} holds no picture: names must end in {', '.join(SUFFIXES)}")
    return found


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its name."""
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
