"""Convolution and max pooling, computed in the way that is fastest on a CPU for their sizes.

Legend: B batch, C channels, H height, W width, F filters, K kernel side, P x Q output positions,
    M frequencies.

oneDNN, torch's own way on a CPU, is slow at a single channel and at the gradients of a large
kernel. The ways here return the same numbers up to rounding and are differentiated by autograd.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from stn_train.geometry.plane import sample

PAYS_BELOW = 0.75
"""The Fourier transform pays below this share of a direct convolution's multiplications."""


class Convolution(nn.Conv2d):
    """`nn.Conv2d` with stride 1 and no padding: same weights, same result up to rounding."""

    def __init__(self, channels: int, filters: int, kernel_side: int) -> None:
        super().__init__(channels, filters, kernel_side)

    @override
    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H - K + 1, W - K + 1)."""
        weight, bias = self.weight, self.bias
        if self.in_channels == 1:
            return single_channel(input, weight, bias)
        # Other devices have fast kernels of their own, and so have those who read an exported file.
        if input.device.type == "cpu" and not torch.compiler.is_compiling():
            if input.shape[2:] == weight.shape[2:]:
                return single_position(input, weight, bias)
            if fourier_pays(tuple(input.shape), tuple(weight.shape)):
                return fourier(input, weight, bias)
        return super().forward(input)


class DeformableConvolution(nn.Conv2d):
    """A convolution that reads each tap of its kernel from a place of its own.

    Deformable convolution (Dai et al. 2017, arXiv 1703.06211) with stride 1 and no padding: a
    second convolution of the same size predicts the offsets. It starts at zero, where this is an
    ordinary convolution. The same function as `torchvision.ops.deform_conv2d`, by torch's sampler,
    which on a CPU takes a fraction of the time.
    """

    def __init__(self, channels: int, filters: int, kernel_side: int) -> None:
        super().__init__(channels, filters, kernel_side)
        self.offsets = nn.Conv2d(channels, 2 * kernel_side**2, kernel_side)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)

    @override
    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H - K + 1, W - K + 1)."""
        height_width, side = input.shape[2:], self.kernel_size[0]
        offsets = self.offsets(input)  # (B, 2*K*K, P, Q): of each tap in pixels, (down, right)
        rows, columns = offsets.shape[2:]
        # In bfloat16 a place would be off by a part of a pixel.
        with torch.autocast(input.device.type, enabled=False):
            moved = offsets.float().unflatten(1, (side**2, 2))  # (B, K*K, 2, P, Q)
            places = taps(side, (rows, columns), input.device) + moved
            size = torch.tensor(height_width, device=input.device)[:, None, None]  # (2, 1, 1)
            grid = ((2 * places + 1) / size - 1).flip(2)  # to (x, y) of the sampler
            grid = grid.permute(0, 1, 3, 4, 2).flatten(2, 3)  # (B, K*K, P*Q, 2)
            read = sample(input.float(), grid)  # (B, C, K*K, P*Q)
        weight = self.weight.flatten(1)  # (F, C*K*K)
        output: Tensor = torch.matmul(weight.to(input.dtype), read.flatten(1, 2).to(input.dtype))
        assert self.bias is not None
        output = output + self.bias[:, None].to(output.dtype)
        return output.view(*output.shape[:2], rows, columns)


def taps(side: int, positions: tuple[int, int], device: torch.device) -> Tensor:
    """Row and column in pixels that each tap of a kernel reads at each position.

    (K*K, 2, P, Q).
    """
    ranges = [torch.arange(length, device=device) for length in (side, side, *positions)]
    down, right, row, column = torch.meshgrid(*ranges, indexing="ij")
    return torch.stack([down + row, right + column], dim=2).flatten(0, 1)


def single_channel(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve maps (B, 1, H, W) with a weight (F, 1, K, K).

    The K columns that a filter looks at become K channels, and a K x 1 convolution does the rest.
    Above all the gradient with respect to the maps, which a spatial transformer in front needs, is
    faster. The result is laid out channels-last, in which the pooling that follows is faster too.
    """
    side = weight.shape[3]
    columns = maps.squeeze(1).unfold(2, side, 1).permute(0, 3, 1, 2)  # (B, K, H, W - K + 1)
    columns = columns.contiguous(memory_format=torch.channels_last)
    # Contiguous: without oneDNN torch cannot differentiate with respect to a strided weight.
    kernel = weight.squeeze(1).transpose(1, 2).unsqueeze(3).contiguous()  # (F, K, K, 1)
    return F.conv2d(columns, kernel, bias)


def single_position(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve maps (B, C, K, K) with a weight (F, C, K, K): a linear layer."""
    return F.linear(maps.flatten(1), weight.flatten(1), bias)[:, :, None, None]


def fourier(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve maps (B, C, H, W) with a weight (F, C, K, K) by the convolution theorem.

    A spectrum is a pair of a real and an imaginary part at each of M frequencies, which are those
    of a map's size: the positions where a kernel would wrap around an edge are not computed. The
    maps are so small that a matrix product is the fastest way to transform them, too.
    """
    if torch.is_autocast_enabled(maps.device.type):
        dtype = torch.get_autocast_dtype(maps.device.type)
        maps, weight = maps.to(dtype), weight.to(dtype)
    batch, channels, height, width = maps.shape
    filters, _, side, _ = weight.shape
    bases = fourier_bases(height, width, side)
    to_spectrum, kernel_to_spectrum, from_spectrum = (basis.to(maps.dtype) for basis in bases)
    count = len(to_spectrum) // 2  # M
    pixels = maps.permute(2, 3, 0, 1).reshape(height * width, -1)  # (H*W, B*C)
    spectra = torch.mm(to_spectrum, pixels).view(count, 2, batch, channels)
    taps = weight.permute(2, 3, 1, 0).reshape(side * side, -1)  # (K*K, C*F)
    kernels = torch.mm(kernel_to_spectrum, taps).view(count, 2 * channels, filters)
    # X times the conjugate of Y is X Re(Y) + (-i X) Im(Y): both at once, over twice the channels.
    real, imaginary = spectra.unbind(1)
    turned = torch.stack([imaginary, -real], dim=1)  # -i X
    pairs = torch.cat([spectra, turned], dim=3).flatten(1, 2)  # (M, 2*B, 2*C)
    products = torch.bmm(pairs, kernels).view(2 * count, -1)  # (2*M, B*F)
    output = torch.mm(from_spectrum, products).view(-1, width - side + 1, batch, filters)
    output = output.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
    return output if bias is None else output + bias.to(output.dtype)[:, None, None]


class FourierBases(NamedTuple):
    """The matrices of `fourier`, float32."""

    to_spectrum: Tensor
    """(2*M, H*W): from a map to the real and the imaginary part at each frequency."""
    kernel_to_spectrum: Tensor
    """(2*M, K*K): the same from a kernel in the first corner of a map."""
    from_spectrum: Tensor
    """(P*Q, 2*M): from a spectrum to the positions where the kernel lies inside the map."""


@functools.cache
@torch.inference_mode(False)  # what is cached must serve training, too
def fourier_bases(height: int, width: int, side: int) -> FourierBases:
    """For maps (H, W) and kernels (K, K); do not write into them."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # Of a real map's frequencies, (v, u) and (-v, -u) are conjugates: one of the two is enough.
    number = rows * width + columns
    conjugate = (-rows % height) * width + (-columns % width)
    kept = number <= conjugate
    frequencies = torch.stack(
        [rows[kept] / height, columns[kept] / width], dim=1
    ).double()  # (M, 2)
    counted = torch.where(number < conjugate, 2.0, 1.0)[kept].double()  # (M,)

    def waves(height: int, width: int) -> Tensor:
        """Cosine and minus sine of each frequency at each pixel: (M, 2, height * width)."""
        pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
        angles = 2 * math.pi * frequencies @ pixels.T
        return torch.stack([angles.cos(), -angles.sin()], dim=1)

    scale = (height * width) ** -0.5
    to_spectrum = scale * waves(height, width)
    kernel_to_spectrum = waves(side, side)
    back = scale * counted[:, None, None] * waves(height - side + 1, width - side + 1)
    bases = to_spectrum, kernel_to_spectrum, back
    to_spectrum, kernel_to_spectrum, back = (basis.flatten(0, 1).float() for basis in bases)
    return FourierBases(to_spectrum, kernel_to_spectrum, back.T.contiguous())


@functools.cache
def fourier_pays(maps: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether `fourier` is faster than a direct convolution, by the shapes of maps and weight."""
    batch, channels, height, width = maps
    filters, _, side, _ = weight
    pixels, positions = height * width, (height - side + 1) * (width - side + 1)
    direct = batch * positions * channels * filters * side**2
    frequencies = pixels // 2 + 2  # at most
    transforms = 2 * frequencies * (pixels * channels + positions * filters)
    products = 4 * frequencies * channels * filters
    return batch * (transforms + products) + products * side**2 < PAYS_BELOW * direct


class MaxPooling(nn.MaxPool2d):
    """`nn.MaxPool2d` by 2 that rounds up, with the same result and gradient."""

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    @override
    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
        if input.device.type != "cpu" or torch.compiler.is_compiling() or not input.requires_grad:
            return F.max_pool2d(input, 2, ceil_mode=True)
        pooled: Tensor = Pooled.apply(input)
        return pooled


class Pooled(torch.autograd.Function):
    """Max pooling by 2 whose gradient is put back by `F.max_unpool2d`.

    No two windows overlap, so both put the same numbers in the same places; torch's own backward of
    max pooling takes half as long again, because it allows for windows that do.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
        pooled, positions = F.max_pool2d(maps, 2, ceil_mode=True, return_indices=True)
        ctx.save_for_backward(positions)
        ctx.height_width = maps.shape[2:]
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient with respect to the maps (B, C, H, W)."""
        (positions,) = ctx.saved_tensors
        return F.max_unpool2d(gradient, positions, [2, 2], output_size=ctx.height_width)
