"""A network: stages, any of which may be or hold spatial transformers.

Legend: B batch, C channels, D depth, H height, W width.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer, Warp


class Trace(NamedTuple):
    """What happened in a network on the way from its inputs to its outputs."""

    outputs: Tensor
    stage_inputs: dict[str, Tensor]
    """What each stage was given, by the stage's name."""
    warps: dict[str, Warp]
    """What each spatial transformer did, by the transformer's name."""


class Network(nn.Sequential):
    """Named stages, one after another; the last is the classifier."""

    @property
    def transformers(self) -> dict[str, SpatialTransformer]:
        """The spatial transformers in it, by name and in order; none in a baseline."""
        modules = self.named_modules()
        return {name: each for name, each in modules if isinstance(each, SpatialTransformer)}

    @property
    def front(self) -> list[str]:
        """The names of the transformers that warp the network's input, not a feature map."""
        name, stage = next(self.named_children())
        if isinstance(stage, ParallelTransformers):
            return [f"{name}.{part}" for part, _ in stage.named_children()]
        return [name] if isinstance(stage, SpatialTransformer) else []

    @contextlib.contextmanager
    def seen_through(self, view: Tensor | None) -> Iterator[None]:
        """Have the transformers in front show their outputs through a view (2, 3).

        Raises ValueError if there is none, or if it warps volumes.
        """
        front = [self.transformers[name] for name in self.front]
        if not front or any(each.transform.dimensions != 2 for each in front):
            raise ValueError("a view needs a spatial transformer of images in front")
        for transformer in front:
            transformer.view = view
        try:
            yield
        finally:
            for transformer in front:
                transformer.view = None

    def trace(self, inputs: Tensor) -> Trace:
        """Run it on inputs (B, C, H, W) or (B, C, D, H, W), and keep what happens on the way.

        Every spatial transformer runs twice: meant for pictures and diagnostics.
        """
        warps: dict[str, Warp] = {}
        hooks = [
            keep_warp(name, transformer, warps) for name, transformer in self.transformers.items()
        ]
        stage_inputs = {}
        try:
            for name, stage in self.named_children():
                stage_inputs[name] = inputs
                inputs = stage(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return Trace(inputs, stage_inputs, warps)

    def shown(self, warped: Tensor) -> Tensor:
        """What a transformer in front returns, as the classifier sees it (B, C, H, W).

        Of volumes (B, C, D, H, W) the projection; then pooled.
        """
        pool = self._modules.get("pool")
        flat = self.projected(warped)
        return flat if pool is None else pool(flat)

    def projected(self, inputs: Tensor) -> Tensor:
        """Inputs as images (B, C, H, W): volumes flattened as the network flattens them."""
        projection = self._modules.get("projection")
        return inputs if projection is None else projection(inputs)


class Locator(Network):
    """A spatial transformer with nothing behind it: its answer is where it looks."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Images (B, C, H, W) to the sampling grid (B, H', W', 2), normalised (x, y)."""
        (transformer,) = self.transformers.values()
        return transformer.warp(inputs).grid


class DepthProjection(nn.Module):
    """Flattens volumes along their depth: each pixel is the brightest voxel behind it."""

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, H, W)."""
        return volumes.amax(dim=2)


def keep_warp(
    name: str, transformer: SpatialTransformer, warps: dict[str, Warp]
) -> RemovableHandle:
    """Have a transformer note its warp each time it runs."""

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, SpatialTransformer)
        warps[name] = module.warp(*inputs)

    return transformer.register_forward_hook(note)


def parameter_count(module: nn.Module) -> int:
    """How many numbers of a module are learnt."""
    return sum(parameter.numel() for parameter in module.parameters())
