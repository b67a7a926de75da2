"""Co-localisation: where is what many images have in common? The paper's appendix A.2.

Legend: N images, B batch, C channels, S side, F features.

Convention: a box is (left, top, right, bottom), normalised: [-1, 1] spans the canvas.
"""

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic_core import PydanticCustomError
from torch import Generator, Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from stn_train.data.distortion import Distortion, Placing
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.draws import Draws, stream_generator
from stn_train.data.images import ImageFormat, Images, Shape
from stn_train.data.sources import Splits
from stn_train.errors import ConfigError
from stn_train.geometry.plane import pixel_centres, sample
from stn_train.tasks.base import Batch, Measure, Task
from stn_train.tasks.encoder import SIDE_PX, STRIDE_PX, frozen_encoder

SEARCH, TRIPLET = 5.0, 0.3
"""The weights of the two parts of the loss."""

SETTLED_SHARE = 1 / 14
"""A window is settled when its middle is nearer to the best place than this share of an image's
side: 2 px."""

NEAREST = 3
"""How many of the other canvases' windows a place is compared with: those most like it."""

LEAST_IOU = 0.5
"""A box is right where its intersection over union with the image's is larger (A.2)."""


class Colocalisation(Task):
    """colocalisation: where on their canvases do images of one class lie? No label tells (A.2).

    A network is trained on the very images that it is asked about. Its answer is where its only
    spatial transformer looks.
    """

    measure: ClassVar[Measure] = Measure(
        "located_percent", "share located", "%", lower_is_better=False
    )
    locates: ClassVar[bool] = True

    subject: Annotated[int, Field(ge=0)] = 0
    """The class of the images, by its number: of MNIST the digit."""
    count: Annotated[int, Field(ge=2)] = 100
    """How many images a run is about; 100 in the paper. The seed chooses which."""
    drawn_from: Literal["test", "training"] = "test"
    """Of which images of the source they are. Choose settings on training images."""
    margin: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """By how much two windows must be nearer to each other than a window and a random crop; 1 in
    the paper."""

    @property
    @override
    def about(self) -> str:
        return str(self.subject)

    @override
    def with_distortion(self, distortion: Distortion) -> Self:
        """Raises PydanticCustomError unless the distortion only puts images at places."""
        if not isinstance(distortion, Placing):
            able = [name for name, kind in DISTORTIONS.items() if issubclass(kind, Placing)]
            raise PydanticCustomError(
                "distortion",
                "colocalisation asks where an image was put; set distortion to {able}",
                {"able": " or ".join(able)},
            )
        return super().with_distortion(distortion)

    @override
    def selected(self, splits: Splits, seed: int) -> Splits:
        images = splits.test if self.drawn_from == "test" else splits.training
        found = (images.labels == self.subject).nonzero().flatten()
        if len(found) < self.count:
            raise ConfigError(
                [
                    f"task.colocalisation.count is {self.count}; of class {self.subject} there are "
                    f"{len(found)} {self.drawn_from} images: set it lower, or subject to a class "
                    f"from 0 to {len(images.classes) - 1}"
                ]
            )
        order = torch.randperm(
            len(found), generator=stream_generator(seed, "subject", self.subject)
        )
        chosen = found[order[: self.count]]
        one_class = Images(
            images.pixels[chosen], images.labels[chosen], images.classes, splits.training
        )
        return splits._replace(training=one_class, validation=one_class[:0], test=one_class)

    @override
    def shape(self, images: ImageFormat) -> Shape:
        return images.shape[0], self.distortion.canvas_px, self.distortion.canvas_px

    @override
    def classes(self, images: ImageFormat) -> tuple[str, ...]:
        return ()

    @override
    def outputs(self, images: ImageFormat) -> int:
        return 0

    @override
    def draw(self, images: Images, generator: Generator) -> Draws:
        # A function of the images alone: the canvases that are trained on are those that are asked
        # about.
        own = stream_generator(int(images.sha256()[:15], 16), "places", 0)
        return self.distortion.draws(images, own)

    @override
    def batch(self, images: Images, index: Tensor | slice, draws: Draws) -> Batch:
        assert isinstance(self.distortion, Placing)
        corner = self.distortion.places(draws)  # (B, 2)
        corners = torch.cat([corner, corner + self.distortion.image_px], dim=1)  # (B, 4)
        boxes = 2 * corners / self.distortion.canvas_px - 1
        canvases = self.distortion.apply(images, index, draws)
        return Batch(canvases, boxes, self.all_maps(images)[index])

    def all_maps(self, images: Images) -> Tensor:
        """`maps_of` the canvases of all images: (N, P, G).

        Every step of a run shows the same canvases, so their maps are computed once.
        """
        known: dict[str, Tensor] = MAPS.setdefault(images.pixels, {})
        key = self.distortion.model_dump_json()
        if key not in known:
            draws = self.draw(images, torch.Generator())
            on_device = tuple(each.to(images.labels.device) for each in draws)
            canvases = self.distortion.apply(images, slice(None), on_device)
            known[key] = torch.cat([maps_of(part) for part in canvases.split(20)])
        return known[key]

    @override
    def loss(
        self, network: Callable[[Tensor], Tensor], batch: Batch, label_smoothing: float
    ) -> Tensor:
        assert batch.context is not None
        grids = network(batch.inputs)  # (B, S, S, 2)
        encoder = frozen_encoder(batch.inputs.device)
        windows = encoder.features(windows_of(batch.inputs, grids))  # (B, F)
        boxes = self.answers(grids)  # (B, 4)
        with torch.no_grad():
            crops = encoder.features(self.random_crops(batch.inputs))  # (B, F)
            wanted = self.best_boxes(batch.context, windows)  # (B, 4)
            off_px = (
                (centres(boxes) - centres(wanted)).abs().amax(1) * self.distortion.canvas_px / 2
            )
            settled = off_px < SETTLED_SHARE * self.distortion.image_px  # (B,)
        search = ((boxes - wanted).square().sum(1) * ~settled).mean()
        return SEARCH * search + TRIPLET * triplet_loss(windows, crops, self.margin, settled)

    def best_boxes(self, maps: Tensor, windows: Tensor) -> Tensor:
        """For each canvas the window, of those the size of an image, that fits best: (B, 4).

        maps: (B, P, G) by `Encoder.everywhere`. Best is what is near to the present windows (B, F)
        of the NEAREST other canvases that are nearest, and far from what canvases show on average;
        distances are squared.
        """
        count, places, width = maps.shape
        flat = maps.flatten(0, 1)  # (B * P, G)
        apart = squared_distances(flat, windows[:, -width:]).view(count, places, count)
        own = torch.eye(count, dtype=torch.bool, device=maps.device)
        apart = apart.masked_fill(own[:, None], torch.inf)
        nearest = apart.topk(min(NEAREST, count - 1), dim=2, largest=False).values.mean(2)
        unusual = (flat - flat.mean(0)).square().sum(1).view(count, places)
        best = (nearest - unusual).argmin(1)  # (B,)
        side = math.isqrt(places)
        corner_px = STRIDE_PX * torch.stack([best % side, best // side], dim=1)  # (B, 2)
        corners_px = torch.cat([corner_px, corner_px + SIDE_PX], dim=1)
        return 2 * corners_px / self.distortion.canvas_px - 1

    def random_crops(self, inputs: Tensor) -> Tensor:
        """A window of each input (B, C, S, S), as large as an image, at a random place."""
        scale = self.distortion.image_px / self.distortion.canvas_px
        centres = (1 - scale) * (2 * torch.rand(len(inputs), 2, device=inputs.device) - 1)
        points = scale * pixel_centres((SIDE_PX, SIDE_PX), inputs.device)  # (784, 2)
        grids = (points + centres[:, None]).unflatten(1, (SIDE_PX, SIDE_PX))  # (B, 28, 28, 2)
        return windows_of(inputs, grids)

    @override
    def answers(self, outputs: Tensor) -> Tensor:
        """The boxes (B, 4) around sampling grids (B, H, W, 2), with the pixels' own width."""
        _, height, width, _ = outputs.shape
        low, high = outputs.flatten(1, 2).amin(1), outputs.flatten(1, 2).amax(1)  # (B, 2)
        # The points are the middles of pixels; for a window that is not turned this is exact.
        margin = (high - low) / (2 * (outputs.new_tensor([width, height]) - 1).clamp(min=1))
        return torch.cat([low - margin, high + margin], dim=1)

    @override
    def score(self, answers: Tensor, targets: Tensor) -> Tensor:
        return intersection_over_union(answers, targets) > LEAST_IOU


MAPS = WeakTensorKeyDictionary()
"""What `all_maps` has computed of images still in use, by their pixels and the distortion."""


def maps_of(canvases: Tensor) -> Tensor:
    """What the encoder makes of every place of canvases (B, C, S, S): (B, P, G)."""
    with torch.no_grad():
        return frozen_encoder(canvases.device).everywhere(grey(canvases))


def windows_of(images: Tensor, grids: Tensor) -> Tensor:
    """What sampling grids (B, H, W, 2) show of images (B, C, S, S): grey, (B, 1, 28, 28)."""
    return F.adaptive_avg_pool2d(grey(sample(images, grids)), SIDE_PX)


def grey(images: Tensor) -> Tensor:
    """Images (B, C, H, W) without their colours: (B, 1, H, W)."""
    return images.mean(1, keepdim=True)


def triplet_loss(windows: Tensor, crops: Tensor, margin: float, settled: Tensor) -> Tensor:
    """The hinge loss of A.2: a mean over all ordered pairs of windows, where both are settled (B,).

    Two windows (B, F) must be nearer to each other, by a margin, than the first is to a random crop
    (B, F) of its image. Distances are squared. Other pairs count as zero.
    """
    apart = squared_distances(windows, windows)  # (B, B)
    from_crop = (windows - crops).square().sum(1, keepdim=True)  # (B, 1)
    pairs = settled[:, None] & settled & ~torch.eye(len(windows), dtype=torch.bool).to(settled)
    hinges = F.relu(apart - from_crop + margin) * pairs
    return hinges.sum() / (len(windows) * (len(windows) - 1))


def squared_distances(features: Tensor, others: Tensor) -> Tensor:
    """Between all features (M, F) and all others (N, F): (M, N)."""
    norms = features.square().sum(1)[:, None] + others.square().sum(1)
    return norms - 2 * features @ others.T


def centres(boxes: Tensor) -> Tensor:
    """The middles of boxes (B, 4): (B, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def intersection_over_union(boxes: Tensor, others: Tensor) -> Tensor:
    """Of boxes (B, 4), one by one: (B,)."""
    top_left = torch.maximum(boxes[:, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(1)
    return shared / (area(boxes) + area(others) - shared)


def area(boxes: Tensor) -> Tensor:
    """Of boxes (B, 4): (B,)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
