"""Train the frozen encoder of co-localisation, and write it into the package.

python scripts/train_encoder.py     about a minute of one core

It is the paper's CNN, trained to tell MNIST's training digits apart, and all of them from windows
that show no digit in the middle: an eleventh class. Those are digits moved aside, pieces of others
and blanks, all made here from training digits.
"""

import math

import torch
import torch.nn.functional as F
import typer
from torch import Generator, Tensor

from stn_train.data.clutter import Clutter
from stn_train.data.draws import draw_integers, draw_uniform, stream_generator
from stn_train.data.mnist import load_mnist
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.tasks.encoder import FILE, SIDE_PX, Encoder

PASSES, BATCH, LEARNING_RATE = 2, 200, 4e-3
NEAR_PX, FAR_PX, FARTHEST_PX = 2.0, 5.0, 24.0
"""A digit moved by up to the first is in the middle; from the second on, up to the third, not."""
BLANK = 0.2
"""Share of the windows of the eleventh class without a digit."""
PIECES, PIECE_PX = 4, 6
"""Up to so many pieces of other digits lie in a window."""
SHARES = (0.3, 1.0, 1.0)
"""How much each layer counts when windows are compared."""


def moved(digits: Tensor, shift_px: Tensor, scale: Tensor) -> Tensor:
    """Digits (B, 1, 28, 28) moved (B, 2) and enlarged (B,)."""
    points = pixel_centres((SIDE_PX, SIDE_PX)) * scale[:, None, None]  # (B, 784, 2)
    grid = points - (shift_px / (SIDE_PX / 2))[:, None]
    return sample(digits, grid.unflatten(1, (SIDE_PX, SIDE_PX)))


def near_scale(count: int, largest: float, generator: Generator) -> Tensor:
    """Log-uniform between 1 / largest and largest: (count,)."""
    return draw_uniform(-math.log(largest), math.log(largest), (count,), generator).exp()


def far_shift(count: int, generator: Generator) -> Tensor:
    """Shifts in pixels (count, 2), of which one coordinate at least is FAR_PX: (count, 2)."""
    shift = draw_uniform(-FARTHEST_PX, FARTHEST_PX, (count, 2), generator)
    is_near = shift.abs().amax(1, keepdim=True) < FAR_PX
    return torch.where(is_near, shift + FAR_PX * shift.sign(), shift)


def with_pieces(windows: Tensor, digits: Tensor, generator: Generator) -> Tensor:
    """Windows (B, 1, 28, 28) with pieces of digits added, some of them cut off by the edge."""
    count, margin = len(windows), PIECE_PX // 2
    padded = F.pad(windows, [PIECE_PX] * 4)
    number = draw_integers(PIECES + 1, (count,), generator)
    rows = torch.arange(count)[:, None, None]
    side = torch.arange(PIECE_PX)
    for piece in range(PIECES):
        source = digits[draw_integers(len(digits), (count,), generator), 0]
        cut = draw_integers(SIDE_PX - PIECE_PX + 1, (count, 2), generator)
        put = draw_integers(SIDE_PX + 1, (count, 2), generator) + margin
        pixels = source[rows, (cut[:, :1] + side)[:, :, None], (cut[:, 1:] + side)[:, None]]
        pixels = pixels * (piece < number)[:, None, None]
        padded[rows, 0, (put[:, :1] + side)[:, :, None], (put[:, 1:] + side)[:, None]] += pixels
    return padded[..., PIECE_PX:-PIECE_PX, PIECE_PX:-PIECE_PX].clamp(max=1)


def scales_of(encoder: Encoder) -> Tensor:
    """What the layers are multiplied by (3,): two random crops are then at the mean distance 1."""
    digits, _ = load_mnist()
    distortion, generator = Clutter(canvas_px=84, patches=16), stream_generator(0, "scales", 0)
    some = digits[:1000]
    canvases = distortion.apply(some, slice(None), distortion.draws(some, generator))
    corners = draw_integers(84 - SIDE_PX + 1, (len(some), 2), generator).tolist()
    crops = torch.stack(
        [
            canvas[:, down : down + SIDE_PX, right : right + SIDE_PX]
            for canvas, (down, right) in zip(canvases, corners, strict=True)
        ]
    )
    spread = torch.stack([2 * each.var(0).sum() for each in encoder.layers(crops)])  # (3,)
    shares = torch.tensor(SHARES)
    return shares / shares.square().sum().sqrt() / spread.sqrt()


def train() -> None:
    """Train it, say how it does on the test digits, and write its weights."""
    training, test = load_mnist()
    digits, labels = training.pixels.float() / 255, training.labels
    torch.manual_seed(0)
    encoder, none = Encoder(), 10
    steps = PASSES * len(digits) // BATCH
    optimizer = torch.optim.AdamW(encoder.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for passed in range(PASSES):
        generator = stream_generator(0, "encoder", passed)
        for index in torch.randperm(len(digits), generator=generator).split(BATCH):
            count, shown = len(index), digits[index]
            near = draw_uniform(-NEAR_PX, NEAR_PX, (count, 2), generator)
            right = moved(shown, near, near_scale(count, 1.1, generator))
            wrong = moved(shown, far_shift(count, generator), near_scale(count, 1.25, generator))
            wrong = wrong * (draw_uniform(0, 1, (count, 1, 1, 1), generator) > BLANK)
            windows = with_pieces(torch.cat([right, wrong]), digits, generator)
            targets = torch.cat([labels[index], torch.full((count,), none)])
            loss = F.cross_entropy(encoder(windows), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        typer.echo(f"pass {passed + 1} of {PASSES}: loss {float(loss.detach()):.3f}")
    with torch.no_grad():
        encoder.scales.copy_(scales_of(encoder))
        right = encoder(test.pixels.float() / 255).argmax(1) == test.labels
    typer.echo(f"test digits: {100 * float(right.float().mean()):.2f} % right")
    torch.save(encoder.state_dict(), FILE)


if __name__ == "__main__":
    typer.run(train)
