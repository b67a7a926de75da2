"""What a network is asked to do: what it sees, what is right, and how wrong an answer is.

Legend: N images, B batch, C channels, H height, W width.

To add a task: write a `Task` and name it in TASKS. Its fields become config keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

from pydantic import PrivateAttr
from torch import Generator, Tensor

from stn_train.data.distortion import Distortion
from stn_train.data.distortions import Undistorted
from stn_train.data.draws import Draws
from stn_train.data.images import ImageFormat, Images, Shape
from stn_train.data.sources import Splits
from stn_train.settings import Settings


class Measure(NamedTuple):
    """What is reported of a network: the mean score of its answers."""

    key: str = "error_percent"
    """Its name in files: `test_error_percent`, `validation_error_percent`."""
    name: str = "error"
    """Its name in sentences and on axes."""
    unit: str = "%"
    lower_is_better: bool = True

    @property
    def worst(self) -> float:
        """Worse than any measurement."""
        return float("inf") if self.lower_is_better else float("-inf")

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another."""
        return value < other if self.lower_is_better else value > other


class Batch(NamedTuple):
    """What a network is shown, and what it should say."""

    inputs: Tensor
    """float (B, C, H, W), of volumes (B, C, D, H, W), in [0, 1]; the background is 0."""
    targets: Tensor
    """What is right, (B, ...)."""
    context: Tensor | None = None
    """What else the task's loss is to know of the inputs, (B, ...); most tasks need nothing."""


class Task(Settings, ABC):
    """What is asked of a network.

    Sources hold images, a task makes inputs and targets of them, by a distortion.
    """

    measure: ClassVar[Measure] = Measure()
    locates: ClassVar[bool] = False
    """Whether the network has no classifier, and its answer is where its only transformer looks: a
    sampling grid (B, H, W, 2)."""

    _distortion: Distortion = PrivateAttr(default_factory=Undistorted)

    @property
    def about(self) -> str:
        """The class that a run is about, by its number; nothing where it is about all."""
        return ""

    @property
    def distortion(self) -> Distortion:
        """How images are distorted before a network sees them."""
        return self._distortion

    def with_distortion(self, distortion: Distortion) -> Self:
        """The same task on images that are distorted in another way."""
        copy = self.model_copy()
        copy._distortion = distortion
        return copy

    def selected(self, splits: Splits, seed: int) -> Splits:  # noqa: ARG002
        """The images that a run is about, of those that its source has: all of them.

        Raises ConfigError where there are not enough.
        """
        return splits

    @abstractmethod
    def shape(self, images: ImageFormat) -> Shape:
        """(C, H, W) of an input; (C, D, H, W) of a volume."""

    @abstractmethod
    def classes(self, images: ImageFormat) -> tuple[str, ...]:
        """The names of the answers; none where an answer is not one of several."""

    @abstractmethod
    def outputs(self, images: ImageFormat) -> int:
        """How many numbers the network gives for an input; 0 for a task that `locates`."""

    @abstractmethod
    def draw(self, images: Images, generator: Generator) -> Draws:
        """The random choices for each image: tensors (N, ...) on the CPU.

        The distortion's own come first: an animation puts others in their place.
        """

    @abstractmethod
    def batch(self, images: Images, index: Tensor | slice, draws: Draws) -> Batch:
        """Inputs and targets of some images (B,) by their draws (B, ...), on the images' device."""

    @abstractmethod
    def loss(
        self, network: Callable[[Tensor], Tensor], batch: Batch, label_smoothing: float
    ) -> Tensor:
        """What training lowers: a number.

        label_smoothing: share of the target that is spread over all classes.
        """

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """What the network says, of its outputs (B, ...): (B, ...)."""

    @abstractmethod
    def score(self, answers: Tensor, targets: Tensor) -> Tensor:
        """How each answer does, 0 to 1 (B,). Its mean, in %, is the task's `measure`."""

    def identity(self) -> list[str]:
        """What tells this task and its distortion from others, for the hash of a test set."""
        return [
            type(self).__name__,
            self.model_dump_json(),
            type(self.distortion).__name__,
            self.distortion.model_dump_json(),
        ]
