"""The transforms that a network can learn: the settings of each, and which grid they build.

To add one: write its grid, a `MatrixGrid` (stn_train.geometry.grids) or a `ControlGrid`
(stn_train.geometry.meshes) where it is one, otherwise a `TransformGrid`; write the `Transform`
that builds the grid, with its settings as fields; name that in TRANSFORMS.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stn_train.geometry.grids import (
    AffineGrid,
    AttentionGrid,
    FixedAttentionGrid,
    ProjectiveGrid,
    RigidGrid,
    SimilarityGrid,
    TransformGrid,
    TranslationGrid,
)
from stn_train.geometry.meshes import CPABGrid, PiecewiseAffineGrid, TPSGrid
from stn_train.settings import Settings


class Transform(Settings, ABC):
    """A family of maps of the plane that a network can learn. Its fields are its settings."""

    file_name: ClassVar[str]
    """Stands for the transform in the names of files."""
    warps_volumes: ClassVar[bool] = False
    """Whether it has a form in three dimensions: `build_for_volumes`."""

    @abstractmethod
    def build(self) -> TransformGrid:
        """The transform with these settings, on images."""

    def build_for_volumes(self) -> TransformGrid:
        """The same on volumes. Raises ValueError for a family that warps images alone."""
        raise ValueError(f"{type(self).__name__} warps images alone, no volumes")


class Translation(Transform):
    """Translation alone."""

    file_name = "translation"

    @override
    def build(self) -> TranslationGrid:
        return TranslationGrid()


class Rigid(Transform):
    """Rotation and translation."""

    file_name = "rigid"

    @override
    def build(self) -> RigidGrid:
        return RigidGrid()


class Attention(Transform):
    """A window of the image, not turned: one scale for x and y, and translation."""

    file_name = "attention"

    scale: Annotated[float, Field(gt=0, le=4)] | None = None
    """Side of the window over that of the image, held fixed: only its place is learnt, and 0.5 (the
    paper's birds, 4.3) starts at the middle half. null: the scale is learnt too, from `start`."""
    start: Annotated[float, Field(gt=0, le=4)] = 1.0
    """The scale that is learnt from. Below 1 the window starts in the middle of the image, and each
    of several iterations zooms in by it."""

    @override
    def build(self) -> AttentionGrid | FixedAttentionGrid:
        return AttentionGrid(self.start) if self.scale is None else FixedAttentionGrid(self.scale)


class Similarity(Transform):
    """Rotation, one scale for x and y, and translation."""

    file_name = "similarity"

    @override
    def build(self) -> SimilarityGrid:
        return SimilarityGrid()


class Affine(Transform):
    """Any 2x3 matrix, of volumes 3x4: translation, rotation, scale and shear."""

    file_name = "affine"
    warps_volumes = True

    @override
    def build(self) -> AffineGrid:
        return AffineGrid()

    @override
    def build_for_volumes(self) -> AffineGrid:
        return AffineGrid(dimensions=3)


class Projective(Transform):
    """Any homography: affine, and perspective."""

    file_name = "projective"

    @override
    def build(self) -> ProjectiveGrid:
        return ProjectiveGrid()


class PiecewiseAffine(Transform):
    """A mesh of triangles whose corners are free; it bends only at their edges."""

    file_name = "piecewise"

    side: Annotated[int, Field(ge=2, le=16)] = 4
    """Corners a side, on a regular grid over the output."""

    @override
    def build(self) -> PiecewiseAffineGrid:
        return PiecewiseAffineGrid(self.side)


class ThinPlateSpline(Transform):
    """A smooth bending that is free at each point of a regular grid."""

    file_name = "tps"

    side: Annotated[int, Field(ge=2, le=16)] = 4
    """Control points a side, on a regular grid over the output; 4 in the paper."""

    @override
    def build(self) -> TPSGrid:
        return TPSGrid(self.side)


class CPAB(Transform):
    """A bending that never folds over: the flow of a piecewise affine field of velocities."""

    file_name = "cpab"

    cells: Annotated[int, Field(ge=1, le=8)] = 3
    """Squares a side, each cut into four triangles; the corners of 3 x 3 are TPS's 4 x 4 points."""

    @override
    def build(self) -> CPABGrid:
        return CPABGrid(self.cells)


TRANSFORMS: dict[str, type[Transform]] = {
    "Translation": Translation,
    "Rigid": Rigid,
    "Attention": Attention,
    "Similarity": Similarity,
    "Aff": Affine,
    "Proj": Projective,
    "PiecewiseAffine": PiecewiseAffine,
    "TPS": ThinPlateSpline,
    "CPAB": CPAB,
}
"""What `transform` in a config can be, beside `none`; in order of their parameters."""
