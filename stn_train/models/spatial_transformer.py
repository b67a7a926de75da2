"""The spatial transformer: predict a transform from the map, and return the warped map.

Legend: B batch, C channels, D depth, H height, W width, P parameters. Maps can be volumes
(B, C, D, H, W) wherever (B, C, H, W) is written, with a transform of three dimensions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_train.geometry.grids import TransformGrid
from stn_train.geometry.matrices import affine_map, small_similarities
from stn_train.geometry.plane import KERNELS, Kernel, pixel_centres, sample


class Warp(NamedTuple):
    """What a spatial transformer did to a batch."""

    output: Tensor
    """The warped map (B, C, H', W')."""
    theta: Tensor
    """The parameters of the transform (B, P)."""
    grid: Tensor
    """Where each output pixel was read from (B, H', W', 2), normalised (x, y).

    In volumes (B, D', H', W', 3), (x, y, z).
    """


class OutputLayer(nn.Linear):
    """A linear layer whose outputs are an answer, not features for another layer.

    Optimisers treat it by this role: Muon turns hidden layers only.
    """


class SpatialTransformer(nn.Module):
    """Warps each map of a batch by a transform that it predicts from the map itself.

    Section 3 of Jaderberg et al. 2015. Put it in front of a network or between any two of its
    layers. The last layer starts with zero weights and the identity as its bias, so a new
    spatial transformer returns its input unchanged (resampled, where output_size differs; of a
    window of fixed scale, the middle).

    Keep the background of the images at zero, the value of the padding: normalise after the
    spatial transformer, not before.
    """

    view: Tensor | None = None
    """An affine map (2, 3) of the output's plane, or one for each image (B, 2, 3). It moves each
    output point before that is mapped to the input, so that the output shows the same in another
    pose. Of images only."""

    def __init__(
        self,
        localisation: nn.Module,
        features: int,
        transform: TransformGrid,
        output_size: tuple[int, ...] | None = None,
        iterations: int = 1,
        pool: int = 1,
        sampling: Kernel = "bilinear",
        jitter: float = 0.0,
    ) -> None:
        """Build it around a localisation network.

        localisation: any module from maps (B, C, H // pool, W // pool) to features
            (B, ``features``).
        output_size: (H', W'), of volumes (D', H', W'), of the warped map; None keeps the size of
            the input.
        iterations: how often the localisation network runs. From the second time on it sees the
            output so far and corrects the transform; the output is sampled from the input once,
            by the composed transform. That is the inverse compositional spatial transformer,
            IC-STN (Lin and Lucey 2017, arXiv 1612.03897). The paper has one iteration.
        pool: the localisation network sees the maps average-pooled by this.
        sampling: the kernel that maps are read with. With integer no gradient reaches the
            localisation network: the transformer does not learn.
        jitter: in training, each image is shown through a random view of its own near the
            identity, with this spread (`small_similarities`). Of images only.
        Raises ValueError for iterations or pool below 1, and for another kernel.
        """
        super().__init__()
        if iterations < 1 or pool < 1:
            raise ValueError(f"iterations and pool must be at least 1, got {iterations}, {pool}")
        if sampling not in KERNELS:
            raise ValueError(f"sampling must be one of {', '.join(KERNELS)}, got {sampling!r}")
        self.localisation = localisation
        self.regression = OutputLayer(features, transform.parameter_count)
        self.transform = transform
        self.output_size = output_size
        self.iterations = iterations
        self.pool = pool
        self.sampling: Kernel = sampling
        self.jitter = jitter
        with torch.no_grad():
            self.regression.weight.zero_()
            self.regression.bias.copy_(transform.identity)

    def forward(
        self, maps: Tensor, small: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """The warped maps: (B, C, H, W) -> (B, C, H', W').

        small: the maps as `pooled` returns them, features: what the localisation network makes of
        those. They are computed here unless the caller has them already.
        """
        return self.warp(maps, small, features).output

    def pooled(self, maps: Tensor) -> Tensor:
        """The maps as the localisation network sees them at first."""
        return maps if self.pool == 1 else average_pooled(maps, self.pool)

    def warp(
        self, maps: Tensor, small: Tensor | None = None, features: Tensor | None = None
    ) -> Warp:
        """The warped maps (B, C, H', W') together with theta and the sampling grid."""
        small = self.pooled(maps) if small is None else small
        theta = self.localise(small) if features is None else self.regress(features)
        for _ in range(self.iterations - 1):
            # Sampled from the whole map: where the transform zooms in, it shows more than `small`.
            correction = self.localise(self.read(maps, theta, side_lengths(small)).output)
            with torch.autocast(maps.device.type, enabled=False):
                theta = self.transform.compose(theta, correction)
        view = self.view
        if self.training and self.jitter > 0:
            view = small_similarities(len(maps), self.jitter, device=maps.device)
        return self.read(maps, theta, self.output_size or side_lengths(maps), view)

    def localise(self, maps: Tensor) -> Tensor:
        """The theta (B, P) that is predicted from maps of the localisation network's size."""
        return self.regress(self.localisation(maps))

    def regress(self, features: Tensor) -> Tensor:
        """The theta (B, P) that is predicted from features of the localisation network."""
        if features.shape[1:] != (self.regression.in_features,):
            wanted, found = f"(B, {self.regression.in_features})", tuple(features.shape)
            raise ValueError(f"the localisation network must return {wanted}, got {found}")
        # A coordinate in bfloat16 can be off by a pixel: from theta on, float32 at least.
        with torch.autocast(features.device.type, enabled=False):
            theta: Tensor = self.regression(features.to(self.regression.weight.dtype))  # (B, P)
            return theta.to(torch.promote_types(theta.dtype, torch.float32))

    def read(
        self, maps: Tensor, theta: Tensor, size: tuple[int, ...], view: Tensor | None = None
    ) -> Warp:
        """Maps (B, C, H, W) warped by theta (B, P) to a size (H', W').

        view: as the field of that name.
        """
        with torch.autocast(maps.device.type, enabled=False):
            if view is None:
                grid = self.transform(theta, size)  # (B, H', W', 2)
            else:
                points = affine_map(view.view(-1, 2, 3), pixel_centres(size, maps.device))
                points = points[0] if view.ndim == 2 else points  # (N, 2) or (B, N, 2)
                grid = self.transform.map_points(theta, points).unflatten(1, size)
            warped = sample(maps.to(theta.dtype), grid, self.sampling)  # (B, C, H', W')
            return Warp(warped.to(maps.dtype), theta, grid)


class ParallelTransformers(nn.ModuleList):
    """Spatial transformers that each warp the same maps; their outputs are concatenated.

    Section 3.4 of Jaderberg et al. 2015: with several, a network can attend to several parts. They
    share a localisation network where the same module is passed to each; it then looks at the maps
    once for all.
    """

    def __init__(self, *transformers: SpatialTransformer) -> None:
        """Raises ValueError if there is none."""
        if not transformers:
            raise ValueError("ParallelTransformers needs at least one spatial transformer")
        super().__init__(transformers)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> the warped maps, one after another: (B, transformers * C, H', W')."""
        # Pooling takes a tenth of a step, so those that pool alike share it.
        pooled: dict[int, Tensor] = {}
        seen: dict[tuple[nn.Module, int], Tensor] = {}
        outputs = []
        for transformer in self:
            assert isinstance(transformer, SpatialTransformer)
            localisation, pool = transformer.localisation, transformer.pool
            if pool not in pooled:
                pooled[pool] = transformer.pooled(maps)
            if (localisation, pool) not in seen:
                seen[localisation, pool] = localisation(pooled[pool])
            outputs.append(transformer(maps, pooled[pool], seen[localisation, pool]))
        return torch.cat(outputs, dim=1)


def tile_centres(count: int) -> Tensor:
    """Centres (x, y) of tiles that cover an image, row by row, normalised: (count, 2).

    There are as many rows as columns, or fewer; a row of fewer tiles than another has wider ones.
    """
    rows = math.isqrt(count)
    lengths = [count // rows + (row < count % rows) for row in range(rows)]
    return torch.tensor(
        [
            [(2 * column + 1) / length - 1, (2 * row + 1) / rows - 1]
            for row, length in enumerate(lengths)
            for column in range(length)
        ]
    )


def side_lengths(maps: Tensor) -> tuple[int, ...]:
    """(H, W) of maps (B, C, H, W), (D, H, W) of volumes."""
    return tuple(maps.shape[2:])


def average_pooled(maps: Tensor, by: int) -> Tensor:
    """The means of squares or cubes of a side: (B, C, H, W) -> (B, C, H // by, W // by)."""
    return (F.avg_pool2d if maps.ndim == 4 else F.avg_pool3d)(maps, by)
