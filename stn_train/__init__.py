"""Spatial Transformer Networks on distorted MNIST, after Jaderberg et al. 2015.

The public names: what it takes to put a spatial transformer into a network of one's own.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stn_train.data.distortion import distort
    from stn_train.data.distortions import DISTORTIONS
    from stn_train.data.sources import SOURCES
    from stn_train.geometry.grids import (
        AffineGrid,
        AttentionGrid,
        FixedAttentionGrid,
        ProjectiveGrid,
        RigidGrid,
        SimilarityGrid,
        TranslationGrid,
    )
    from stn_train.geometry.meshes import PiecewiseAffineGrid, TPSGrid
    from stn_train.geometry.plane import pixel_matrix_from_theta, theta_from_pixel_matrix
    from stn_train.geometry.transforms import TRANSFORMS
    from stn_train.models.backbones import BACKBONES
    from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer
    from stn_train.runs.directory import load_run
    from stn_train.tasks import TASKS

HOMES = {
    "BACKBONES": "models.backbones",
    "DISTORTIONS": "data.distortions",
    "SOURCES": "data.sources",
    "TASKS": "tasks",
    "TRANSFORMS": "geometry.transforms",
    "AffineGrid": "geometry.grids",
    "AttentionGrid": "geometry.grids",
    "FixedAttentionGrid": "geometry.grids",
    "ParallelTransformers": "models.spatial_transformer",
    "PiecewiseAffineGrid": "geometry.meshes",
    "ProjectiveGrid": "geometry.grids",
    "RigidGrid": "geometry.grids",
    "SimilarityGrid": "geometry.grids",
    "SpatialTransformer": "models.spatial_transformer",
    "TPSGrid": "geometry.meshes",
    "TranslationGrid": "geometry.grids",
    "distort": "data.distortion",
    "load_run": "runs.directory",
    "pixel_matrix_from_theta": "geometry.plane",
    "theta_from_pixel_matrix": "geometry.plane",
}
"""Where each public name is defined: it is imported from there on first use."""

__all__ = [
    "BACKBONES",
    "DISTORTIONS",
    "SOURCES",
    "TASKS",
    "TRANSFORMS",
    "AffineGrid",
    "AttentionGrid",
    "FixedAttentionGrid",
    "ParallelTransformers",
    "PiecewiseAffineGrid",
    "ProjectiveGrid",
    "RigidGrid",
    "SimilarityGrid",
    "SpatialTransformer",
    "TPSGrid",
    "TranslationGrid",
    "distort",
    "load_run",
    "pixel_matrix_from_theta",
    "theta_from_pixel_matrix",
]


def installed_version() -> str:
    """The version of the package, if it is installed."""
    try:
        return metadata.version("stn_train")
    except metadata.PackageNotFoundError:
        return "not installed"


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line's --help needs no torch."""
    if name == "__version__":
        return installed_version()
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
