"""Networks from settings: what stands at each place is resolved and checked, then built.

Legend: C channels, D depth, H height, W width, P parameters.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stn_train.data.images import Shape
from stn_train.geometry.plane import Kernel
from stn_train.geometry.transforms import Attention, Transform
from stn_train.models.backbone import Backbone, StagedBackbone, least_input
from stn_train.models.network import DepthProjection, Locator, Network
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
    tile_centres,
)
from stn_train.models.transformer_settings import (
    Sizes,
    TransformerSettings,
    sizes_behind_stage,
)


class ResolvedPlacement(NamedTuple):
    """The spatial transformers at a place of a network, with every setting resolved."""

    place: str
    parallel: int
    """How many; their outputs are concatenated."""
    transform: Transform
    iterations: int
    input_shape: Shape
    """(C, H, W) of what they warp, or (C, D, H, W)."""
    output_size: tuple[int, ...]
    """(H', W') of what each of them samples, or (D', H', W')."""
    pool: int
    """Average pooling of their outputs."""
    localisation_pool: int
    sampling: Kernel
    shared_localisation: bool
    tiled: bool
    jitter: float

    @property
    def output_shape(self) -> Shape:
        """(C, H, W) of what the layer behind them sees."""
        height, width = self.output_size[-2:]
        return self.parallel * self.input_shape[0], height // self.pool, width // self.pool

    @property
    def localisation_shape(self) -> Shape:
        """(C, H, W) of what a localisation network sees."""
        channels, *sides = self.input_shape
        return channels, *(side // self.localisation_pool for side in sides)

    def modules(
        self, localisation: Callable[[Shape], tuple[nn.Module, int]]
    ) -> dict[str, nn.Module]:
        """The modules at this place by name, each localisation network with fresh weights."""
        volumes = len(self.output_size) == 3
        shared = localisation(self.localisation_shape) if self.shared_localisation else None
        made = [
            SpatialTransformer(
                *(shared or localisation(self.localisation_shape)),
                self.transform.build_for_volumes() if volumes else self.transform.build(),
                self.output_size,
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


def resolve_placements(
    backbone: Backbone,
    transform: Transform | None,
    settings: TransformerSettings,
    shape: Shape,
    image_px: int,
    placements: Placements,
) -> dict[str, ResolvedPlacement]:
    """The spatial transformers of a network by place, in order.

    The arguments are those of `build_network`. Raises ValueError, naming the key of the config, for
    a place that the network does not have, and where a layer's input would be too small.
    """
    stages = backbone.stages if isinstance(backbone, StagedBackbone) else ()
    refuse_unknown(placements, [FRONT, *(after(number + 1) for number in range(len(stages)))])
    found: dict[str, ResolvedPlacement] = {}
    if transform is None:
        return found
    for place, own in placements.items():
        refuse_tiles_of_any_size(place, own, transform)
    if FRONT in placements:
        own, volumes = placements[FRONT], len(shape) == 4
        sizes = settings.sizes(min(shape[1:]), image_px, backbone, own, volumes)
        found[FRONT] = resolve(FRONT, own, transform, settings, shape, sizes)
        shape = found[FRONT].output_shape
    shape = projected(shape)
    for number, stage in enumerate(stages, start=1):
        shape, place = stage.output(shape), after(number)
        if place in placements:
            own, least_px = placements[place], least_input(stages[number:])
            sizes = sizes_behind_stage(place, own, shape, least_px)
            found[place] = resolve(place, own, transform, settings, shape, sizes)
            shape = found[place].output_shape
    return found


def refuse_tiles_of_any_size(place: str, own: Placement, transform: Transform) -> None:
    """Raise ValueError if transformers are to tile a map whose windows have no fixed scale."""
    chosen = own.transform or transform
    if own.tiled and not (isinstance(chosen, Attention) and chosen.scale is not None):
        raise ValueError(
            f"transformers.{place}.tiled is true, which needs windows of a fixed scale: set the "
            "transform to {Attention: {scale: 0.5}}"
        )


def resolve(
    place: str,
    own: Placement,
    transform: Transform,
    settings: TransformerSettings,
    shape: Shape,
    sizes: Sizes,
) -> ResolvedPlacement:
    """A placement on maps of a shape; where it does not say, it follows the config."""
    jitters = place == FRONT and len(sizes.output) == 2
    return ResolvedPlacement(
        place=place,
        parallel=own.count,
        transform=own.transform or transform,
        iterations=own.st_iterations or settings.st_iterations,
        input_shape=shape,
        output_size=sizes.output,
        pool=sizes.pool,
        localisation_pool=sizes.localisation_pool,
        sampling=settings.sampling,
        shared_localisation=own.shared_localisation,
        tiled=own.tiled,
        jitter=settings.st_jitter if jitters else 0.0,
    )


def projected(shape: Shape) -> Shape:
    """(C, H, W) of maps or volumes as the classifier sees them: volumes are flattened."""
    channels, *sides = shape
    return channels, *sides[-2:]


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
    transformers stand. Raises ValueError as `resolve_placements` does.
    """
    resolved = resolve_placements(backbone, transform, settings, shape, image_px, placements)
    front = resolved.pop(FRONT, None)
    if front is not None and outputs == 0:
        return Locator(OrderedDict(front.modules(backbone.localisation)))
    # The classifier draws its weights first, though it comes last: so a seed gives the same
    # network as in earlier versions.
    seen = projected(shape) if front is None else front.output_shape
    if isinstance(backbone, StagedBackbone) and resolved:
        classifier: nn.Module = classifier_around(backbone, resolved, seen, outputs)
    else:
        classifier = backbone.classifier_of_crops(seen, front.parallel if front else 1, outputs)
    network = Network()
    for name, module in (front.modules(backbone.localisation) if front else {}).items():
        network.add_module(name, module)
    if front is None and seen != shape:
        network.add_module("projection", DepthProjection())
    network.add_module("classifier", classifier)
    return network


def classifier_around(
    backbone: StagedBackbone, resolved: Mapping[str, ResolvedPlacement], shape: Shape, outputs: int
) -> nn.Sequential:
    """A classifier with spatial transformers behind some of its stages.

    Its own layers have the names that they have without them.
    """
    parts = []
    for number, stage in enumerate(backbone.stages, start=1):
        parts.append(stage.layers(shape[0]))
        placement = resolved.get(after(number))
        shape = stage.output(shape) if placement is None else placement.output_shape
    parts.append(backbone.head(shape, outputs))
    classifier, names = nn.Sequential(), map(str, itertools.count())
    for number, layers in enumerate(parts, start=1):
        for layer in layers:
            classifier.add_module(next(names), layer)
        if after(number) in resolved:
            transformers = resolved[after(number)].modules(backbone.stage_localisation)
            for name, module in transformers.items():
                classifier.add_module(name, module)
    return classifier
