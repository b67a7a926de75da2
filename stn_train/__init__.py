"""Spatial Transformer Networks on distorted MNIST, after Jaderberg et al. 2015.

The public face: what an engineer needs to put a spatial transformer into a network of their own.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stn_train.distortions import DISTORTIONS, distort
    from stn_train.geometry import pixel_matrix_from_theta, theta_from_pixel_matrix
    from stn_train.run_directory import load_run
    from stn_train.spatial_transformer import SpatialTransformer
    from stn_train.transforms import AffineGrid, ProjectiveGrid, TPSGrid

HOMES = {
    "AffineGrid": "transforms",
    "DISTORTIONS": "distortions",
    "ProjectiveGrid": "transforms",
    "SpatialTransformer": "spatial_transformer",
    "TPSGrid": "transforms",
    "distort": "distortions",
    "load_run": "run_directory",
    "pixel_matrix_from_theta": "geometry",
    "theta_from_pixel_matrix": "geometry",
}

__all__ = [
    "DISTORTIONS",
    "AffineGrid",
    "ProjectiveGrid",
    "SpatialTransformer",
    "TPSGrid",
    "distort",
    "load_run",
    "pixel_matrix_from_theta",
    "theta_from_pixel_matrix",
]


def installed_version() -> str:
    """The installed version, or what stands for it in a checkout that was never installed."""
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
