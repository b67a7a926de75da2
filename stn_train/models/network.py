"""A network: stages, any of which may be or hold spatial transformers.

Legend: B batch, C channels, D depth, H height, W width, S side in pixels.
"""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from stn_train.data.images import Shape
from stn_train.geometry.plane import Kernel
from stn_train.geometry.transforms import Attention, Transform
from stn_train.models.backbones import Backbone, StagedBackbone, least_input
from stn_train.models.placements import (
    FRONT,
    ONE_IN_FRONT,
    Placement,
    Placements,
    after,
    refuse_unknown,
)
from stn_train.models.spatial_transformer import (
    ParallelTransformers,
    SpatialTransformer,
    Warp,
    tile_centres,
)
from stn_train.settings import Settings


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


class TransformerSettings(Settings):
    """How a spatial transformer between the image and the classifier works."""

    st_iterations: Annotated[int, Field(ge=1, le=8)] = 1
    """How often the localisation network runs: from the second time on it sees the image as warped
    so far, and refines the transform. That is the inverse compositional spatial transformer, IC-STN
    (Lin and Lucey 2017, arXiv 1612.03897). The paper has one iteration."""
    st_output_px: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Side of the image that the transformer samples; null for that of the undistorted image (28)
    times st_pool, so that the classifier sees 28 px. The literal reading, the size of the input,
    is 42 on RTS."""
    st_output_depth: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Volumes: how many samples the transformer takes along the depth, before its output is
    flattened; null for st_output_px."""
    st_pool: Annotated[int, Field(ge=1, le=8)] | None = None
    """Average pooling of the transformer's output before the classifier; null for 2 where the
    input is an image larger than the undistorted one (the paper's RTS), else 1."""
    localisation_pool: Annotated[int, Field(ge=1, le=4)] | None = None
    """The localisation network sees the image average-pooled by this; null for 2 with a CNN (A.4),
    else 1."""
    sampling: Literal["bilinear", "bicubic"] = "bilinear"
    """The kernel that the transformer reads the image with: bilinear (the paper, equation 5), or
    bicubic, which keeps edges sharper and costs more. The paper's integer kernel (equation 4) has
    no gradient by the transform: nothing would be learnt, so it is refused here; SpatialTransformer
    takes it."""

    st_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """In training, each image reaches the classifier in a pose a little off what the transformer
    chose: turned, scaled and shifted by normal deviates of this size (radians, logarithm of the
    scale, half sides of the image). It is what Esteves et al. 2018 (arXiv 1709.01889) do to the
    origin of their polar transformer. Of transformers in front, and of images."""

    @field_validator("sampling", mode="before")
    @classmethod
    def _can_learn(cls, sampling: Any) -> Any:
        if sampling == "integer":
            told = (
                "integer cannot be trained with: its gradient by the transform is zero, and the "
                "transformer would stay where it starts; take bilinear or bicubic"
            )
            raise PydanticCustomError("no_gradient", "{told}", {"told": told})
        return sampling

    def sizes(
        self,
        input_px: int,
        image_px: int,
        backbone: Backbone,
        own: Placement | None = None,
        volumes: bool = False,
    ) -> "Sizes":
        """The sizes in pixels for inputs of a side, with images of another side in them.

        own: settings of the transformers in front that take precedence. volumes: the inputs are
        volumes. Raises ValueError, naming the setting, where the backbone's networks see too
        little, or a setting goes with volumes or with images alone.
        """
        if self.st_output_depth and not volumes:
            raise ValueError(
                f"model.st_output_depth is {self.st_output_depth}; images have no depth: leave it "
                "out, or choose a task that makes volumes"
            )
        if self.sampling == "bicubic" and volumes:
            raise ValueError(
                "model.sampling is bicubic, which reads images alone; for volumes it must be "
                "bilinear (there trilinear)"
            )
        own = own or Placement()
        enlarged = input_px > image_px and not volumes
        pool = own.st_pool or self.st_pool or (2 if enlarged else 1)
        output_px = own.st_output_px or self.st_output_px or pool * min(image_px, input_px)
        localisation_pool = (
            own.localisation_pool or self.localisation_pool or backbone.default_localisation_pool
        )
        least_px = backbone.smallest_input
        if output_px % pool or output_px // pool < least_px:
            raise ValueError(
                f"{section_of('st_output_px', own)}.st_output_px is {output_px}; with the pooling "
                f"by {pool} it must be a multiple of {pool}, at least {least_px * pool}"
            )
        least_px = backbone.smallest_localisation_input
        if input_px // localisation_pool < least_px:
            raise ValueError(
                f"{section_of('localisation_pool', own)}.localisation_pool is {localisation_pool}; "
                f"of {input_px} px that leaves the localisation network fewer than the {least_px} "
                "px it needs"
            )
        square = (output_px, output_px)
        output = (self.st_output_depth or output_px, *square) if volumes else square
        return Sizes(pool, output, localisation_pool)


def section_of(key: str, own: Placement) -> str:
    """The section of the config that decides a setting of the transformers in front."""
    return "model" if getattr(own, key) is None else f"transformers.{FRONT}"


class Sizes(NamedTuple):
    """The settings of a transformer, each with a value."""

    pool: int
    output: tuple[int, ...]
    """(H, W) of what the transformer samples, or (D, H, W)."""
    localisation_pool: int


class Stand(NamedTuple):
    """The spatial transformers at a place of a network, everything about them settled."""

    place: str
    parallel: int
    """How many; their outputs are concatenated."""
    transform: Transform
    iterations: int
    input: Shape
    """(C, H, W) of what they warp, or (C, D, H, W)."""
    output: tuple[int, ...]
    """(H', W') of what each of them samples, or (D', H', W')."""
    pool: int
    """Average pooling of their outputs."""
    localisation_pool: int
    sampling: Kernel
    shared_localisation: bool
    tiled: bool
    jitter: float = 0.0

    @property
    def seen(self) -> Shape:
        """(C, H, W) of what the layer behind them sees."""
        height, width = self.output[-2:]
        return self.parallel * self.input[0], height // self.pool, width // self.pool

    @property
    def looked_at(self) -> Shape:
        """(C, H, W) of what a localisation network sees."""
        channels, *sides = self.input
        return channels, *(side // self.localisation_pool for side in sides)

    def modules(
        self, localisation: Callable[[Shape], tuple[nn.Module, int]]
    ) -> dict[str, nn.Module]:
        """The modules at this place by name, each localisation network with fresh weights."""
        volumes = len(self.output) == 3
        shared = localisation(self.looked_at) if self.shared_localisation else None
        made = [
            SpatialTransformer(
                *(shared or localisation(self.looked_at)),
                self.transform.build_for_volumes() if volumes else self.transform.build(),
                self.output,
                self.iterations,
                self.localisation_pool,
                self.sampling,
                self.jitter,
            )
            for _ in range(self.parallel)
        ]
        if self.tiled:
            start_at(made, tile_centres(self.parallel))
        number = self.place.removeprefix(FRONT).removeprefix("after")  # nothing, _1, _2, ...
        modules: dict[str, nn.Module] = {
            f"transformer{number}": made[0] if self.parallel == 1 else ParallelTransformers(*made)
        }
        if volumes:
            modules["projection"] = DepthProjection()
        return modules | ({f"pool{number}": nn.AvgPool2d(self.pool)} if self.pool > 1 else {})


def start_at(transformers: Sequence[SpatialTransformer], thetas: Tensor) -> None:
    """Have each transformer start at a theta of its own (P,) instead of the identity."""
    with torch.no_grad():
        for transformer, theta in zip(transformers, thetas, strict=True):
            transformer.regression.bias.copy_(theta)


def stands(
    backbone: Backbone,
    transform: Transform | None,
    settings: TransformerSettings,
    shape: Shape,
    image_px: int,
    placements: Placements = ONE_IN_FRONT,
) -> dict[str, Stand]:
    """The spatial transformers of a network by place, in order.

    The arguments are those of `build_network`. Raises ValueError, naming the key of the config, for
    a place that there is not, and where something would see too little.
    """
    stages = backbone.stages if isinstance(backbone, StagedBackbone) else ()
    refuse_unknown(placements, [FRONT, *(after(number + 1) for number in range(len(stages)))])
    found: dict[str, Stand] = {}
    if transform is None:
        return found
    for place, own in placements.items():
        refuse_tiles_of_any_size(place, own, transform)
    if FRONT in placements:
        found[FRONT] = in_front(backbone, transform, settings, shape, image_px, placements[FRONT])
        shape = found[FRONT].seen
    shape = projected(shape)
    for number, stage in enumerate(stages, start=1):
        shape, place = stage.output(shape), after(number)
        if place in placements:
            own, least_px = placements[place], least_input(stages[number:])
            found[place] = behind(place, transform, settings, shape, own, least_px)
            shape = found[place].seen
    return found


def refuse_tiles_of_any_size(place: str, own: Placement, transform: Transform) -> None:
    """Raise ValueError if transformers are to tile a map whose windows have no fixed scale."""
    chosen = own.transform or transform
    if own.tiled and not (isinstance(chosen, Attention) and chosen.scale is not None):
        raise ValueError(
            f"transformers.{place}.tiled is true, which needs windows of a fixed scale: set the "
            "transform to {Attention: {scale: 0.5}}"
        )


def in_front(
    backbone: Backbone,
    transform: Transform,
    settings: TransformerSettings,
    shape: Shape,
    image_px: int,
    own: Placement,
) -> Stand:
    """The spatial transformers in front; raises ValueError as `TransformerSettings.sizes` does."""
    volumes = len(shape) == 4
    sizes = settings.sizes(min(shape[1:]), image_px, backbone, own, volumes)
    return Stand(
        FRONT,
        own.count,
        own.transform or transform,
        own.st_iterations or settings.st_iterations,
        shape,
        sizes.output,
        sizes.pool,
        sizes.localisation_pool,
        settings.sampling,
        own.shared_localisation,
        own.tiled,
        0.0 if volumes else settings.st_jitter,
    )


def behind(
    place: str,
    transform: Transform,
    settings: TransformerSettings,
    shape: Shape,
    own: Placement,
    least_px: int,
) -> Stand:
    """The spatial transformers behind a stage whose maps have a shape.

    least_px: the smallest side that the layers behind them need. Raises ValueError, naming the key,
    if they would see less, or the localisation network nothing.
    """
    _, height, width = shape
    pool, side, localisation_pool = own.st_pool or 1, own.st_output_px, own.localisation_pool or 1
    if side and (side % pool or side // pool < least_px):
        raise ValueError(
            f"transformers.{place}.st_output_px is {side}; with the pooling by {pool} it must be a "
            f"multiple of {pool}, at least {least_px * pool}"
        )
    if min(height, width) < localisation_pool:
        raise ValueError(
            f"transformers.{place}.localisation_pool is {localisation_pool}; the maps there have "
            f"only {height} x {width} px"
        )
    return Stand(
        place,
        own.count,
        own.transform or transform,
        own.st_iterations or settings.st_iterations,
        shape,
        (side, side) if side else (pool * height, pool * width),
        pool,
        localisation_pool,
        settings.sampling,
        own.shared_localisation,
        own.tiled,
    )


def build_network(
    backbone: Backbone,
    transform: Transform | None,
    settings: TransformerSettings,
    shape: Shape,
    outputs: int,
    image_px: int,
    placements: Placements = ONE_IN_FRONT,
) -> Network:
    """A network with fresh weights from torch's global generator.

    transform: of the spatial transformers; None for none. shape: (C, H, W) of an input, or
    (C, D, H, W): a volume is flattened along its depth before the classifier, and after the
    transformers in front. outputs: of the classifier; 0 for a `Locator`, which has none and needs
    one transformer, in front. image_px: side of the undistorted image. placements: where the
    transformers stand. Raises ValueError as `stands` does.
    """
    standing = stands(backbone, transform, settings, shape, image_px, placements)
    front = standing.pop(FRONT, None)
    if front is not None and outputs == 0:
        return Locator(OrderedDict(front.modules(backbone.localisation)))
    # The classifier draws its weights first, though it comes last: a seed gives the same network
    # as ever.
    seen = projected(shape) if front is None else front.seen
    if isinstance(backbone, StagedBackbone) and standing:
        classifier: nn.Module = classifier_around(backbone, standing, seen, outputs)
    else:
        classifier = backbone.classifier_of_crops(seen, front.parallel if front else 1, outputs)
    network = Network()
    for name, module in (front.modules(backbone.localisation) if front else {}).items():
        network.add_module(name, module)
    if front is None and seen != shape:
        network.add_module("projection", DepthProjection())
    network.add_module("classifier", classifier)
    return network


def projected(shape: Shape) -> Shape:
    """(C, H, W) of maps or volumes as the classifier sees them: volumes are flattened."""
    channels, *sides = shape
    return channels, *sides[-2:]


def classifier_around(
    backbone: StagedBackbone, standing: Mapping[str, Stand], shape: Shape, outputs: int
) -> nn.Sequential:
    """A classifier with spatial transformers behind some of its stages.

    Its own layers have the names that they have without them.
    """
    parts = []
    for number, stage in enumerate(backbone.stages, start=1):
        parts.append(stage.layers(shape[0]))
        stand = standing.get(after(number))
        shape = stage.output(shape) if stand is None else stand.seen
    parts.append(backbone.head(shape, outputs))
    classifier, names = nn.Sequential(), map(str, itertools.count())
    for number, layers in enumerate(parts, start=1):
        for layer in layers:
            classifier.add_module(next(names), layer)
        stand = standing.get(after(number))
        for name, module in stand.modules(backbone.stage_localisation).items() if stand else ():
            classifier.add_module(name, module)
    return classifier


def parameter_count(module: nn.Module) -> int:
    """How many numbers of a module are learnt."""
    return sum(parameter.numel() for parameter in module.parameters())
