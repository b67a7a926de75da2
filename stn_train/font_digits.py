"""Digits rendered from the fonts inside matplotlib: the data set that needs no download.

Legend: N digits, B digits of one chunk, F faces, S side of a glyph in fine pixels, C wobble
control points a side.

Convention: as in `stn_train.geometry`: output to input, [-1, 1] spans the 28 x 28 digit.

A glyph is kept not as an image but as the distance of every point from its outline. Adding to
the distance makes strokes thicker, and an edge read from it is as smooth at any size, so the
jitter of a digit is one interpolation at the final resolution.
"""

import functools
import math
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from torch import Generator, Tensor

from stn_train.digits import CLASSES, SIDE, Digits
from stn_train.errors import DataError
from stn_train.geometry import ALIGN_CORNERS

# An upright face and its oblique are one drawing to a network that has seen slanted digits, so
# where one is mechanically slanted from the other both are on the same side of the split.
TRAIN_FACES = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmmi10",  # old-style digits
    "cmti10",
    "cmtt10",
)
TEST_FACES = (
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneralItalic",
    "cmss10",
)
"""Held out. Matplotlib's other files have no digits or, at their places, symbols."""

FINE = 4
"""Fine pixels, in which glyphs are kept, per pixel of a digit."""
GLYPH_PX = 20
"""The longer side of a glyph, as in MNIST."""
REACH = 8
"""Distances from the outline are known up to so many fine pixels, here two pixels."""
EDGE_PX = 1.2
"""An edge fades from white to black over so many pixels; MNIST's are soft."""

SIZE = (0.87, 1.02)
ROTATION_DEG = 5.0
SLANT = 0.15
SHIFT_PX = 1.0
WOBBLE_PX = 0.6
WOBBLE_CONTROL = 4
STROKE_PX = (1.8, 3.0)
STROKE_CHANGE_PX = (-0.7, 1.2)
"""Bounds on the change: more would break the hairlines of a bold face or close small counters."""
CONTRAST = (0.85, 1.0)

CHUNK = 256


def render_font_digits(train: int, test: int, seed: int) -> tuple[Digits, Digits]:
    """Draw ``train`` and ``test`` digits from matplotlib's fonts, bit for bit the same by seed.

    White digits on black in the middle 20 x 20 pixels or so: images uint8 (N, 28, 28), labels
    int64 (N,). Each digit has its own size, rotation (within 5 degrees), slant, shift (within
    a pixel), stroke width, contrast and slight elastic wobble. Classes come equally often (to
    within one digit), faces equally often within a class, in shuffled order.

    The split is by face: no test digit is from a face that a training digit was rendered from.
    Held out are TEST_FACES: monospaced, serif, italic and sans serif. The test digits do not
    depend on ``train``, nor the training digits on ``test``.

    Another version of matplotlib draws slightly other digits: its outlines and rasteriser are
    not quite the same, and faces that it does not ship (cmti10 before 3.11) are left out.
    Raises DataError if it has no face of one side of the split, and ValueError if fewer than
    one digit is asked for on either side.
    """
    if min(train, test) < 1:
        raise ValueError(f"train and test must be at least 1, got train={train}, test={test}")
    seeds = torch.randint(2**62, (2,), generator=Generator().manual_seed(seed)).tolist()
    return (
        render(load_glyphs(TRAIN_FACES), train, Generator().manual_seed(seeds[0])),
        render(load_glyphs(TEST_FACES), test, Generator().manual_seed(seeds[1])),
    )


def load_glyphs(faces: tuple[str, ...]) -> Tensor:
    """The ten digits of each of ``faces`` that exists, as `outline_distance`: (F, 10, S, S)."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = [path for face in faces if (path := folder / f"{face}.ttf").is_file()]
    if not files:
        raise DataError(
            f"cannot render font digits: matplotlib {matplotlib.__version__} has none of the "
            f"faces {', '.join(faces)} in {folder}; reinstall matplotlib or use MNIST"
        )
    return torch.stack([outline_distance(rasterise(path)) for path in files])


def rasterise(path: Path) -> Tensor:
    """The digits of a font file, each GLYPH_PX on its longer side, centred: bool (10, S, S)."""
    side, reference_px = SIDE * FINE, 256
    glyphs = torch.zeros(CLASSES, side, side, dtype=torch.bool)
    font = FT2Font(str(path))
    for digit in range(CLASSES):
        font.set_size(reference_px, 72)  # at 72 dots per inch a point is a pixel
        outline = font.load_char(ord(str(digit)))
        longer_px = max(outline.width, outline.height) / 64  # in 1/64 of a pixel
        font.set_size(reference_px * GLYPH_PX * FINE / longer_px, 72)
        font.set_text(str(digit))
        font.draw_glyphs_to_bitmap(antialiased=True)
        ink = torch.tensor(font.get_image()) > 127  # (height, width)
        rows, columns = (ink.any(axis).nonzero().flatten() for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
        glyphs[digit, top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return glyphs


def outline_distance(ink: Tensor) -> Tensor:
    """How far each point is inside the ink, in pixels of a digit; negative outside.

    ink bool (10, S, S) -> float32 (10, S, S), exact up to REACH and constant beyond.
    """
    outside, inside = (nearest(mask).sqrt() for mask in (ink, ~ink))
    # The outline runs midway between the last pixel of ink and the first without.
    return torch.where(ink, inside - 0.5, 0.5 - outside) / FINE


def nearest(mask: Tensor) -> Tensor:
    """Squared distance to the nearest point of ``mask`` (10, S, S), at most REACH**2: uint8."""
    squared = (~mask).byte() * REACH**2  # bytes are quick, and 2 * REACH**2 still fits
    for axis in (1, 2):  # rolled around the border, but the margin is wider than REACH
        rolled = [squared.roll(step, axis) + step**2 for step in range(-REACH, REACH + 1)]
        squared = functools.reduce(torch.minimum, rolled)
    return squared


def stroke_width(glyphs: Tensor) -> Tensor:
    """Mean stroke width in pixels of glyphs (F, 10, S, S): twice area by perimeter. (F, 10)."""
    band_px = 2 / FINE
    area = (glyphs > 0).sum((2, 3))  # (F, 10)
    perimeter = (glyphs.abs() < band_px).sum((2, 3)) / (2 * band_px)  # (F, 10)
    return 2 * area / perimeter


def render(glyphs: Tensor, count: int, generator: Generator) -> Digits:
    """Draw ``count`` digits from glyphs (F, 10, S, S), in chunks to keep memory small."""
    order = torch.randperm(count, generator=generator)
    widths = stroke_width(glyphs)
    images = []
    for part in torch.split(order, CHUNK):
        face, label = part // CLASSES % len(glyphs), part % CLASSES
        images.append(jitter(glyphs[face, label], widths[face, label], generator))
    return Digits(torch.cat(images), order % CLASSES)


def jitter(glyphs: Tensor, widths: Tensor, generator: Generator) -> Tensor:
    """Draw one digit from each glyph.

    glyphs (B, S, S), their stroke widths in pixels (B,) -> uint8 (B, 28, 28).
    """
    count = len(glyphs)
    # In float64, so that processors that round differently still agree on every grey level.
    draws = torch.rand(7, count, generator=generator, dtype=torch.float64)
    knots = torch.rand(
        count, 2, WOBBLE_CONTROL, WOBBLE_CONTROL, generator=generator, dtype=torch.float64
    )  # (B, 2, C, C)
    size = between(SIZE, draws[0])  # (B,)
    angle = between((-math.radians(ROTATION_DEG), math.radians(ROTATION_DEG)), draws[1])
    slant = between((-SLANT, SLANT), draws[2])
    shift = between((-2 * SHIFT_PX / SIDE, 2 * SHIFT_PX / SIDE), draws[3:5])  # (2, B)

    cos, sin = angle.cos() / size, angle.sin() / size
    theta = torch.stack(
        [cos + slant * sin, slant * cos - sin, shift[0], sin, cos, shift[1]], dim=1
    ).view(count, 2, 3)
    grid = F.affine_grid(theta, [count, 1, SIDE, SIDE], ALIGN_CORNERS)  # (B, 28, 28, 2)
    wobble = F.interpolate(
        between((-2 * WOBBLE_PX / SIDE, 2 * WOBBLE_PX / SIDE), knots), (SIDE, SIDE), mode="bicubic"
    )  # (B, 2, 28, 28)
    inside_px = F.grid_sample(
        glyphs[:, None].double(),
        grid + wobble.movedim(1, 3),
        padding_mode="border",
        align_corners=ALIGN_CORNERS,
    ).squeeze(1)  # (B, 28, 28)

    change = (between(STROKE_PX, draws[5]) - widths * size).clamp(*STROKE_CHANGE_PX) / 2  # (B,)
    edge = (inside_px * size[:, None, None] + change[:, None, None]) / EDGE_PX + 0.5
    peak = 255 * between(CONTRAST, draws[6])  # (B,)
    return (edge.clamp(0, 1) * peak[:, None, None]).round().byte()


def between(bounds: tuple[float, float], unit: Tensor) -> Tensor:
    """Numbers in [0, 1) carried to ``bounds``."""
    return bounds[0] + (bounds[1] - bounds[0]) * unit
