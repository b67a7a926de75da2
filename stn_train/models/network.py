"""A network: stages, any of which may be or hold spatial transformers.

Legend: B batch, C channels, H height, W width, S side in pixels.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stn_train.data.images import Shape
from stn_train.geometry.transforms import Transform
from stn_train.models.backbones import Backbone
from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer, Warp
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

    def trace(self, inputs: Tensor) -> Trace:
        """Run it on inputs (B, C, H, W), and keep what happens on the way.

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
        """What a transformer in front returns (B, C, H, W), as the classifier sees it: pooled."""
        pool = self._modules.get("pool")
        return warped if pool is None else pool(warped)


def keep_warp(
    name: str, transformer: SpatialTransformer, warps: dict[str, Warp]
) -> RemovableHandle:
    """Have a transformer note its warp each time it runs."""

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, SpatialTransformer)
        warps[name] = module.warp(*inputs)

    return transformer.register_forward_hook(note)


class TransformerSettings(Settings):
    """How the spatial transformer is placed between the image and the classifier."""

    st_iterations: Annotated[int, Field(ge=1, le=8)] = 1
    """How often the localisation network runs: from the second time on it sees the image as warped
    so far, and refines the transform. That is the inverse compositional spatial transformer, IC-STN
    (Lin and Lucey 2017, arXiv 1612.03897). The paper has one iteration."""
    st_output_px: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Side of the image that the transformer samples; null for that of the undistorted image (28)
    times st_pool, so that the classifier sees 28 px. The literal reading, the size of the input,
    is 42 on RTS."""
    st_pool: Annotated[int, Field(ge=1, le=8)] | None = None
    """Average pooling of the transformer's output before the classifier; null for 2 where the
    input is larger than the undistorted image (the paper's RTS), else 1."""
    localisation_pool: Annotated[int, Field(ge=1, le=4)] | None = None
    """The localisation network sees the image average-pooled by this; null for 2 with a CNN (A.4),
    else 1."""
    sampling: Literal["bilinear", "bicubic"] = "bilinear"
    """The kernel that the transformer reads the image with: bilinear (the paper, equation 5), or
    bicubic, which keeps edges sharper and costs more. The paper's integer kernel (equation 4) has
    no gradient by the transform: nothing would be learnt, so it is refused here; SpatialTransformer
    takes it."""

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

    def sizes(self, input_px: int, image_px: int, backbone: Backbone) -> "Sizes":
        """The sizes in pixels for inputs of a side, with images of another side in them.

        Raises ValueError, naming the setting, where the backbone's networks see too little.
        """
        pool = self.st_pool or (2 if input_px > image_px else 1)
        output_px = self.st_output_px or pool * image_px
        localisation_pool = self.localisation_pool or backbone.default_localisation_pool
        least_px = backbone.smallest_input
        if output_px % pool or output_px // pool < least_px:
            raise ValueError(
                f"model.st_output_px is {output_px}; with the pooling by {pool} it must be a "
                f"multiple of {pool}, at least {least_px * pool}"
            )
        least_px = backbone.smallest_localisation_input
        if input_px // localisation_pool < least_px:
            raise ValueError(
                f"model.localisation_pool is {localisation_pool}; of {input_px} px that leaves the "
                f"localisation network fewer than the {least_px} px it needs"
            )
        return Sizes(pool, output_px, localisation_pool)


class Sizes(NamedTuple):
    """The settings of a transformer, each with a value."""

    pool: int
    output_px: int
    localisation_pool: int


def build_network(
    backbone: Backbone,
    transform: Transform | None,
    settings: TransformerSettings,
    shape: Shape,
    outputs: int,
    image_px: int,
) -> Network:
    """A network with fresh weights from torch's global generator.

    transform: of the spatial transformer in front; None for none. shape: (C, H, W) of an input.
    image_px: side of the undistorted image.
    """
    network = Network()
    if transform is None:
        network.add_module("classifier", backbone.classifier(shape, outputs))
        return network
    channels, height, width = shape
    pool, output_px, localisation_pool = settings.sizes(min(height, width), image_px, backbone)
    # The classifier draws its weights first, though it comes last: a seed gives the same network
    # as ever.
    seen = (channels, output_px // pool, output_px // pool)
    classifier = backbone.classifier(seen, outputs)
    looked_at = (channels, height // localisation_pool, width // localisation_pool)
    localisation, features = backbone.localisation(looked_at)
    transformer = SpatialTransformer(
        localisation,
        features,
        transform.build(),
        (output_px, output_px),
        settings.st_iterations,
        localisation_pool,
        settings.sampling,
    )
    network.add_module("transformer", transformer)
    if pool > 1:
        network.add_module("pool", nn.AvgPool2d(pool))
    network.add_module("classifier", classifier)
    return network


def parameter_count(module: nn.Module) -> int:
    """How many numbers of a module are learnt."""
    return sum(parameter.numel() for parameter in module.parameters())
