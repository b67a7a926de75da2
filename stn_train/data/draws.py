"""Random choices that are the same bits on every machine.

All randomness is a function of a seed and of what it is for, never of what was drawn before:
at any step, a repeated run sees the same images in the same distortions.
"""

import hashlib
import math

import torch
from torch import Generator, Tensor

Draws = tuple[Tensor, ...]
"""The random choices for N images: tensors (N, ...), drawn on the CPU."""


def stream_generator(seed: int, purpose: str, number: int) -> Generator:
    """A CPU generator for one purpose, independent of those for other purposes and numbers."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, number))


def stream_seed(seed: int, purpose: str, number: int) -> int:
    """The seed of a generator for one purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def draw_uniform(low: float, high: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform between low and high, rounded to float32, the same bits on every machine."""
    unit = torch.rand(size, generator=generator, dtype=torch.float64)
    return (low + (high - low) * unit).float()


def draw_integers(count: int, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform integers from 0 to below ``count``: int64."""
    return torch.randint(count, size, generator=generator)


def draw_normal(std: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal with mean 0, float32, the same bits on every machine.

    `torch.randn` is not: its vectorised logarithm and cosine differ between processors in the
    last bit. Here the inverse distribution function of a uniform number is rounded to 2^-20,
    far coarser than such a difference and far finer than a pixel.
    """
    unit = torch.rand(size, generator=generator, dtype=torch.float64).clamp_(min=2**-53)
    standard = math.sqrt(2) * torch.erfinv(2 * unit - 1)
    return (std * ((standard * 2**20).round() / 2**20)).float()
