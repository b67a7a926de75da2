"""Sampling grids from parameters theta: what one is, and those given by a matrix or a window.

Legend: B batch, P parameters, D depth, H height, W width, N points.

Convention: as in `stn_train.geometry.plane`: output to input, (x, y) or (x, y, z), [-1, 1].
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from stn_train.geometry.matrices import (
    NEAREST_DEPTH,
    affine_map,
    compose_matrices,
    inverse_3x3,
    inverse_affine,
    projective_map,
)
from stn_train.geometry.plane import pixel_centres


class TransformGrid(nn.Module, ABC):
    """Turns theta into a sampling grid. Has no weights: theta is what is learnt."""

    dimensions: int = 2
    """Of what it warps: 2 for images, 3 for volumes."""
    identity: Tensor
    """The theta (P,) that the localisation starts at. It leaves the image as it is, in every family
    that has such a theta."""

    def __init__(self, identity: Tensor) -> None:
        super().__init__()
        self.register_buffer("identity", identity.float(), persistent=False)

    @property
    def parameter_count(self) -> int:
        """P, the number of parameters of the transform."""
        return len(self.identity)

    def forward(self, theta: Tensor, output_size: tuple[int, ...]) -> Tensor:
        """theta (B, P) -> the grid (B, H, W, 2) that an output of size (H, W) is read from.

        In volumes the grid is (B, D, H, W, 3). Raises ValueError where theta has another shape, or
        the output other dimensions.
        """
        if len(output_size) != self.dimensions:
            name, sides = type(self).__name__, tuple(output_size)
            raise ValueError(f"{name} warps in {self.dimensions} dimensions, got the size {sides}")
        if theta.ndim != 2 or theta.shape[1] != self.parameter_count:
            wanted = f"(B, {self.parameter_count})"
            raise ValueError(f"theta must be {wanted}, got {tuple(theta.shape)}")
        points = pixel_centres(output_size, theta.device, theta.dtype)  # (H*W, 2)
        mapped = self.map_points(theta, points)  # (B, H*W, 2)
        return mapped.reshape(-1, *output_size, self.dimensions)  # (B, H, W, 2)

    @abstractmethod
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where output points are read from under theta (B, P): (B, N, 2).

        points (N, 2), shared by all images, or (B, N, 2), each image its own.
        """

    @abstractmethod
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The theta (B, P) of warping by ``first`` and then by ``second``, both (B, P).

        An output point is mapped by ``second``, then by ``first``, into the input.
        """


class MatrixGrid(TransformGrid):
    """A transform whose theta stands for a matrix: composing is multiplying.

    The matrices of all theta must be a group: products and inverses stay in the family.
    """

    @abstractmethod
    def matrix(self, theta: Tensor) -> Tensor:
        """The matrices (B, 2, 3), affine, or (B, 3, 3), projective, of theta (B, P).

        In volumes (B, 3, 4), affine.
        """

    @abstractmethod
    def theta(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: theta (B, P) of matrices as it returns them."""

    @override
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        matrix = self.matrix(theta)
        rows, columns = matrix.shape[1:]
        return (affine_map if rows < columns else projective_map)(matrix, points)

    @override
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        return self.theta(compose_matrices(self.matrix(first), self.matrix(second)))

    def inverse(self, theta: Tensor) -> Tensor:
        """The theta (B, P) that undoes theta (B, P): composing both gives the identity.

        Of a map that cannot be undone, whose scale is 0 for instance, it is not finite. Nor can a
        projective map be undone that puts the centre of its input behind the horizon.
        """
        matrix = self.matrix(theta)
        return self.theta((inverse_affine if matrix.shape[1] == 2 else inverse_3x3)(matrix))


class TranslationGrid(MatrixGrid):
    """Translation, 2 parameters: x and y."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        x, y = theta.unbind(1)  # each (B,)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        return torch.stack([one, zero, x, zero, one, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return matrix[:, :, 2]


class RigidGrid(MatrixGrid):
    """Rotation and translation, 3 parameters: the angle in radians, x and y.

    A positive angle turns the points that are read clockwise on the screen, so that the image turns
    counter-clockwise. Composed and inverse angles lie in [-pi, pi].
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([0, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        angle, x, y = theta.unbind(1)  # each (B,)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])  # (B,)
        return torch.cat([angle[:, None], matrix[:, :, 2]], dim=1)


class AttentionGrid(MatrixGrid):
    """Isotropic scale and translation, 3 parameters: scale, x and y (equation 2)."""

    def __init__(self, start: float = 1.0) -> None:
        """start: the scale that a new transformer has. Raises ValueError unless above 0."""
        if not start > 0:
            raise ValueError(f"a window's scale must be above 0, got {start}")
        super().__init__(torch.tensor([start, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        scale, x, y = theta.unbind(1)  # each (B,)
        zero = torch.zeros_like(scale)
        return torch.stack([scale, zero, x, zero, scale, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return torch.cat([matrix[:, :1, 0], matrix[:, :, 2]], dim=1)


class FixedAttentionGrid(TransformGrid):
    """A window of fixed size, 2 parameters: where its centre lies, x and y.

    Section 4.3 of the paper: a scale of 0.5 shows a quarter of the image's area, twice as large.
    Theta is (0, 0) at the start: the middle of the image.
    """

    def __init__(self, scale: float) -> None:
        """scale: side of the window over that of the image. Raises ValueError unless above 0."""
        if not scale > 0:
            raise ValueError(f"a window's scale must be above 0, got {scale}")
        super().__init__(torch.zeros(2))
        self.scale = scale

    @override
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        # x and y in planes, the layout that `sample` reads fastest.
        return (self.scale * points.mT.contiguous() + theta[:, :, None]).mT  # (B, N, 2)

    @override
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The window whose centre is where both maps in a row put it, of the fixed size again.

        Two maps in a row have the scale ``scale**2``, which is outside the family. For refinement
        this is the wanted meaning: ``second``, found in the window of ``first``, moves the window
        to a point that was seen in it, and does not zoom in once more.
        """
        return first + self.scale * second


class SimilarityGrid(MatrixGrid):
    """Rotation, scale and translation, 4 parameters: a, b, x and y of [[a, -b, x], [b, a, y]].

    (a, b) is the scale times the cosine and the sine of the angle: smooth, without a jump at half a
    turn.
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([1, 0, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        a, b, x, y = theta.unbind(1)  # each (B,)
        return torch.stack([a, -b, x, b, a, y], dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return torch.cat([matrix[:, :, 0], matrix[:, :, 2]], dim=1)


class AffineGrid(MatrixGrid):
    """Affine, 6 parameters: the 2x3 matrix, row by row (equation 1).

    In volumes 12 parameters: the 3x4 matrix, row by row (A.3).
    """

    def __init__(self, dimensions: int = 2) -> None:
        """dimensions: 2 for images, 3 for volumes."""
        super().__init__(torch.eye(dimensions, dimensions + 1).flatten())
        self.dimensions = dimensions

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        return theta.reshape(-1, self.dimensions, self.dimensions + 1)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        return matrix.flatten(1)


class ProjectiveGrid(MatrixGrid):
    """Projective, 8 parameters: the 3x3 homography, row by row, its last entry fixed at 1.

    Points on or behind the horizon read as padding (`projective_map`).
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))

    @override
    def matrix(self, theta: Tensor) -> Tensor:
        return torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)

    @override
    def theta(self, matrix: Tensor) -> Tensor:
        entries = matrix.flatten(1)  # (B, 9)
        # The last entry is the depth of the output's centre. On or behind the horizon there is
        # no such theta, and NEAREST_DEPTH is taken instead.
        return entries[:, :8] / entries[:, 8:].clamp(min=NEAREST_DEPTH)
