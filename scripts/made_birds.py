"""Draw a small set of birds in the format of CUB-200-2011, to try the real experiment without it.

python scripts/made_birds.py made_birds         then stn-train --config birds_made.yaml

A bird has a red head and a blue tail at opposite ends of its body, anywhere in the picture. Both
have bars, lines or a grid on them: nine classes, told apart by two small parts together. The
patterns are so fine that they are lost where a picture is shrunk to 64 px, and the parts so far
apart that no window of a third of the picture's side has both: two windows are needed, and must
move.
"""

import functools
import itertools
import math
import random
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

HEIGHT, WIDTH = 320, 384
PART_PX = 24
"""Radius of a head or a tail."""
PERIOD_PX = 6
"""Of a pattern, one dark and one light stripe."""
APART_PX = (156, 200)
"""Between head and tail: least and most."""
MARGIN_PX = 44
"""From the middle of a part to the border of the square in the middle of the picture."""
TILT_DEG = 50
"""How far a body may be tilted from the horizontal."""

PATTERNS = {"bars": (0, 1), "lines": (1, 0), "grid": (1, 1)}
"""Name -> whether it changes from left to right, and from top to bottom."""
HEAD, TAIL = ((120, 20, 20), (255, 130, 120)), ((20, 30, 120), (130, 150, 255))
"""Dark and light colour of each part."""
BODY = (110, 85, 60)

CLASSES = [*itertools.product(PATTERNS, PATTERNS)]
"""The patterns of head and tail."""


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")],
    training: Annotated[int, typer.Option(help="Training pictures of each class.", min=1)] = 200,
    test: Annotated[int, typer.Option(help="Test pictures of each class.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Decides every picture.")] = 0,
) -> None:
    """Draw a small set of birds in the format of CUB-200-2011."""
    chance, images = random.Random(seed), folder / "images"
    images.mkdir(parents=True)
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    numbers = itertools.count(1)
    names = [f"{n:03}.{head}_{tail}" for n, (head, tail) in enumerate(CLASSES, start=1)]
    for label, (name, patterns) in enumerate(zip(names, CLASSES, strict=True), start=1):
        (images / name).mkdir()
        for each in range(training + test):
            path = f"{name}/{name.partition('.')[2]}_{each:04}.jpg"
            bird(chance, *patterns).save(images / path, quality=95)
            number = next(numbers)
            tables["images"].append(f"{number} {path}")
            tables["image_class_labels"].append(f"{number} {label}")
            tables["train_test_split"].append(f"{number} {int(each < training)}")
    tables["classes"] = [f"{label} {name}" for label, name in enumerate(names, start=1)]
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    typer.echo(f"{len(tables['images']):,} pictures of {len(names)} classes in {folder}")


def bird(chance: random.Random, head: str, tail: str) -> Image.Image:
    """A picture of a bird with these patterns on its head and its tail."""
    picture = background(chance)
    places = ends(chance)
    ImageDraw.Draw(picture).line(places, fill=BODY, width=28)
    for (x, y), name, colours in zip(places, (head, tail), (HEAD, TAIL), strict=True):
        mask = Image.new("L", picture.size)
        round_part = (x - PART_PX, y - PART_PX, x + PART_PX, y + PART_PX)
        ImageDraw.Draw(mask).ellipse(round_part, fill=255)
        phase = chance.randrange(PERIOD_PX), chance.randrange(PERIOD_PX)
        picture.paste(pattern(name, phase, colours), (0, 0), mask)
    return picture


def ends(chance: random.Random) -> list[tuple[float, float]]:
    """Where head and tail are, (x, y) of each in pixels."""
    left = (WIDTH - HEIGHT) / 2  # of the square in the middle
    while True:
        length, tilt = chance.uniform(*APART_PX), math.radians(chance.uniform(-TILT_DEG, TILT_DEG))
        across, down = length * math.cos(tilt) / 2, length * math.sin(tilt) / 2
        low, high = MARGIN_PX, HEIGHT - MARGIN_PX
        x, y = chance.uniform(low, high), chance.uniform(low, high)
        places = [(x - across, y - down), (x + across, y + down)]
        if all(low <= value <= high for place in places for value in place):
            if chance.random() < 0.5:
                places.reverse()
            return [(left + x, y) for x, y in places]


@functools.cache
def pattern(name: str, phase: tuple[int, int], colours: tuple[Colour, Colour]) -> Image.Image:
    """A picture full of a pattern that is moved left and up by a phase in pixels."""
    across, down = PATTERNS[name]
    half, (right, below) = PERIOD_PX // 2, phase
    full = Image.new("RGB", (WIDTH, HEIGHT))
    full.putdata(
        [
            colours[(across * ((x + right) // half) + down * ((y + below) // half)) % 2]
            for y in range(HEIGHT)
            for x in range(WIDTH)
        ]
    )
    return full


def background(chance: random.Random) -> Image.Image:
    """Soft spots of green and grey."""
    coarse = Image.new("RGB", (12, 10))
    coarse.putdata(
        [
            (60 + tone, 90 + tone + chance.randrange(30), 60 + tone)
            for tone in (chance.randrange(60) for _ in range(120))
        ]
    )
    soft = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return soft.filter(ImageFilter.GaussianBlur(4))


if __name__ == "__main__":
    typer.run(main)
