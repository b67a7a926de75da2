"""Settings of spatial transformers, and the sizes in pixels that follow from them.

Legend: C channels, D depth, H height, W width.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from stn_train.data.images import Shape
from stn_train.models.backbone import Backbone
from stn_train.models.placements import FRONT, Placement
from stn_train.settings import Settings


class TransformerSettings(Settings):
    """How a spatial transformer between the image and the classifier works."""

    st_iterations: Annotated[int, Field(ge=1, le=8)] = 1
    """How often the localisation network runs: from the second time on it sees the image as warped
    so far, and refines the transform. That is the inverse compositional spatial transformer, IC-STN
    (Lin and Lucey 2017, arXiv 1612.03897). The paper has one iteration."""
    st_output_px: Annotated[int, Field(ge=1, le=1024)] | Literal["input"] | None = None
    """Side of the image that the transformer samples; null for that of the undistorted image (28)
    times st_pool, so that the classifier sees 28 px; input for that of its input, the literal
    reading of the paper: 42 on RTS, pooled to 21."""
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
        own: Placement,
        volumes: bool,
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
        enlarged = input_px > image_px and not volumes
        pool = own.st_pool or self.st_pool or (2 if enlarged else 1)
        asked_px = input_px if self.st_output_px == "input" else self.st_output_px
        output_px = own.st_output_px or asked_px or pool * min(image_px, input_px)
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


def sizes_behind_stage(place: str, own: Placement, shape: Shape, least_px: int) -> Sizes:
    """The sizes for transformers behind a stage whose maps have a shape (C, H, W).

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
    output = (side, side) if side else (pool * height, pool * width)
    return Sizes(pool, output, localisation_pool)
