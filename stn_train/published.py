"""What others have measured, with the source: the numbers to stand beside ours."""

Cell = tuple[str, str, str]
"""Distortion, backbone and transform."""

TABLE_1: dict[Cell, float] = {
    (distortion, backbone, transform): error_percent
    for (backbone, transform), row in {
        ("FCN", "none"): (2.1, 5.2, 3.1, 3.2),
        ("CNN", "none"): (1.2, 0.8, 1.5, 1.4),
        ("FCN", "Aff"): (1.2, 0.8, 1.5, 2.7),
        ("FCN", "Proj"): (1.3, 0.9, 1.4, 2.6),
        ("FCN", "TPS"): (1.1, 0.8, 1.4, 2.4),
        ("CNN", "Aff"): (0.7, 0.5, 0.8, 1.2),
        ("CNN", "Proj"): (0.8, 0.6, 0.8, 1.3),
        ("CNN", "TPS"): (0.7, 0.5, 0.8, 1.1),
    }.items()
    for distortion, error_percent in zip(("R", "RTS", "P", "E"), row, strict=True)
}
"""Test error in %, the mean of three runs.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu, "Spatial Transformer Networks", NeurIPS 2015
(arXiv 1506.02025), Table 1, left.
"""

ROUNDING = 0.05
"""The numbers have one decimal: what differs by less from one may be the same."""

SOURCE = "Jaderberg et al. 2015, Table 1"

COLUMNS = [*dict.fromkeys(cell[0] for cell in TABLE_1)]
"""The distortions, in the table's order."""


def model_name(backbone: str, transform: str) -> str:
    """The name of a model as in the paper's table: FCN, ST-CNN Aff."""
    return backbone if transform == "none" else f"ST-{backbone} {transform}"


def cell_title(cell: Cell) -> str:
    """A cell in words: CNN on RTS, ST-CNN Aff on RTS."""
    distortion, *model = cell
    return f"{model_name(*model)} on {distortion}"
