"""What an experiment is: one frozen tree of settings, checked as a whole.

The documentation of a field stands under it. Validators check and convert; they read no file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stn_train.digits import SIDE
from stn_train.distortions import DISTORTIONS, Distortion, Undistorted
from stn_train.errors import ConfigError
from stn_train.published import cell_title
from stn_train.recipes import with_recipe
from stn_train.settings import Settings
from stn_train.transforms import TRANSFORMS

SMALLEST_INPUT = {"FCN": 1, "CNN": 21, "tutorial": 16}
"""The backbones, and the smallest side in pixels that leaves the last layer a pixel to see."""

SMALLEST_LOOK = {"FCN": 1, "CNN": 13, "tutorial": 18}
"""The same for the localisation networks."""

Positive = Annotated[float, Field(gt=0, le=1e30)]  # float32 ends soon after
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=4096)]


class DataSettings(Settings):
    """Which digits."""

    source: Literal["mnist", "embedded"] = "mnist"
    """mnist, or digits rendered from the fonts inside matplotlib, which need no download."""
    validation: Annotated[int, Field(ge=0)] = 0
    """How many training digits, from the end, are kept back for validation. Choose settings with
    some kept back, 5,000 for example; then train on all."""
    training_digits: Count | None = None
    """Use only the first so many training digits, validation among them; null for all."""
    test_digits: Count | None = None
    """Use only the first so many test digits; null for all."""


class ModelSettings(Settings):
    """Sizes of the networks."""

    hidden: Width = 256
    """FCN: units in each of the two hidden layers (128 to 256 in the paper)."""
    filters: Annotated[tuple[Width, Width], Field(strict=False)] = (64, 64)
    """CNN: filters of the two convolutions (32 to 64 in the paper)."""
    dropout: Fraction = 0.0
    """Dropout probability before the classifier's output layer; FCN and CNN only."""
    localisation_pool: Annotated[int, Field(ge=1, le=4)] | None = None
    """The localisation network sees the image average-pooled by this; null for 2 with a CNN (A.4),
    else 1."""
    localisation_hidden: Width = 32
    """ST-FCN: units in each of the three layers of the localisation network (A.4)."""
    localisation_filters: Width = 20
    """ST-CNN: filters of the two convolutions of the localisation network (A.4)."""
    localisation_features: Width = 20
    """ST-CNN: units in the fully connected layer of the localisation network (A.4)."""
    st_iterations: Annotated[int, Field(ge=1, le=8)] = 1
    """How often the localisation network looks: from the second time on at the image as warped so
    far, to refine the transform (Lin and Lucey 2017). The paper looks once."""
    st_output_px: Annotated[int, Field(ge=1, le=256)] | None = None
    """Side of the image that the transformer samples; null for 28 times st_pool, so that the
    classifier sees 28 px. The literal reading, the size of the input, is 42 on RTS."""
    st_pool: Annotated[int, Field(ge=1, le=8)] | None = None
    """Average pooling of the transformer's output before the classifier; null for 2 where the
    input is larger than 28 px (the paper's RTS), else 1."""


class TrainSettings(Settings):
    """How the weights are found."""

    epochs: Count | None = 30
    """Passes over the training digits; give either this or steps."""
    steps: Count | None = None
    """Optimiser steps; give either this or epochs."""
    batch_size: Annotated[int, Field(ge=1, le=60000)] = 256
    """Digits a step; the last, smaller batch of a pass is used too."""
    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    """Stochastic gradient descent (the paper), AdamW, or Muon for the hidden layers and AdamW for
    the rest."""
    learning_rate: Positive = 0.002
    """The largest learning rate of the schedule."""
    localisation_learning_rate_scale: NonNegative = 1.0
    """The localisation network's learning rate, as a multiple of learning_rate."""
    momentum: Fraction = 0.9
    """SGD's momentum. The paper does not state it; without it its schedule ends far above its
    errors."""
    weight_decay: NonNegative = 0.0
    """L2 penalty (sgd) or decoupled weight decay (the others), of all weights but the biases."""
    muon_iteration: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    """muon: how it brings singular values near one, in five steps or, roughly, in three."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: convolutions and linear layers multiply in bfloat16 and add up in float32; weights,
    coordinates, sampling, loss and evaluation stay float32. auto: where the hardware has it."""
    cuda_graph: bool = True
    """On an NVIDIA GPU, record a step once and replay it: no time is lost on launching it."""
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = "one_cycle"
    """one_cycle: the learning rate rises, then falls along a cosine; cosine: it only falls; step:
    it falls at step_at; constant: it stays."""
    warmup: Fraction = 0.2
    """one_cycle: the share of the run in which the learning rate rises."""
    step_at: Annotated[tuple[Fraction, ...], Field(strict=False)] = (1 / 3, 2 / 3)
    """step: the shares of the run after which the learning rate is multiplied by step_factor."""
    step_factor: Positive = 0.1
    """See step_at."""
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread over all classes."""
    max_gradient_norm: Positive | None = None
    """Clip the norm of the whole gradient to this; null for no clipping."""
    ema_decay: Fraction = 0.0
    """Average the weights over steps with this decay and use the average; 0 for off. The decay
    rises to its value over the first steps, so that the first weights are soon forgotten."""
    fresh_distortions: bool = True
    """Draw the distortions anew every pass; false draws them once. The paper does not say."""
    validate_every: Count = 1
    """Passes between validations, which also save a checkpoint."""
    log_every: Count = 50
    """Steps between lines in metrics.jsonl."""

    @model_validator(mode="before")
    @classmethod
    def _steps_take_the_place_of_epochs(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("steps") is not None and "epochs" not in data:
            return {**data, "epochs": None}
        return data

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise PydanticCustomError("duration", "give either epochs or steps, not both or none")
        return self


class LogSettings(Settings):
    """What a run leaves beside its numbers and checkpoints."""

    snapshots: Annotated[int, Field(ge=0, le=1000)] = 0
    """Keep at most so many models on the way, most of them early on, for
    `stn-visualize RUN --animate training.gif`."""
    tensorboard: bool = False
    """Write curves and pictures for TensorBoard too: pip install tensorboard."""


class EvaluateSettings(Settings):
    """How the trained model is measured."""

    draws: Annotated[int, Field(ge=1, le=100)] = 10
    """Fixed draws of the test distortion. The first gives the reported error; the mean over all is
    reported too."""


class Config(Settings):
    """An experiment: a cell of the paper's table, or a variation of one."""

    distortion: str = "RTS"
    """R, RTS, P, E or none."""
    backbone: Literal["FCN", "CNN", "tutorial"] = "CNN"
    """The classifier: FCN or CNN of the paper, or the small network of PyTorch's tutorial."""
    transform: str = "Aff"
    """What the spatial transformer can do: Aff, Proj or TPS; none for no spatial transformer."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Decides the first weights, the order of the digits and their distortions."""
    recipe: Literal["default", "paper"] = "default"
    """Which values model and train start from: default, or paper for the paper's own."""
    data: DataSettings = DataSettings()
    distort: SerializeAsAny[Distortion] = Undistorted()
    """The chosen distortion's own parameters: see its class in stn_train/distortions.py."""
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, data: Any) -> Any:
        return with_recipe(data) if isinstance(data, dict) else data

    @field_validator("distortion", "transform", mode="before")
    @classmethod
    def _known_name(cls, name: Any, info: ValidationInfo) -> Any:
        known = [*DISTORTIONS] if info.field_name == "distortion" else [*TRANSFORMS, "none"]
        if not isinstance(name, str) or name not in known:
            # The type and context of pydantic's own error for a closed choice.
            raise PydanticCustomError("literal_error", "one of {expected}", {"expected": known})
        return name

    @field_validator("distort", mode="before")
    @classmethod
    def _distortion_of_that_name(cls, value: Any, info: ValidationInfo) -> Any:
        distortion = DISTORTIONS.get(info.data.get("distortion", ""))
        if distortion is None or value == Undistorted():
            # A wrong name has been reported, its parameters cannot be judged; or none were given.
            return (distortion or Undistorted)()
        return distortion.model_validate(value)

    @model_validator(mode="after")
    def _classifier_sees_enough(self) -> Self:
        pool, sampled_px, least_px = self.st_pool, self.st_output_px, SMALLEST_INPUT[self.backbone]
        if sampled_px % pool or sampled_px // pool < least_px:
            raise PydanticCustomError(
                "st_output_px",
                "model.st_output_px is {sampled_px}; with the pooling by {pool} it must be a "
                "multiple of {pool}, at least {least_px}",
                {"sampled_px": sampled_px, "pool": pool, "least_px": least_px * pool},
            )
        return self

    @model_validator(mode="after")
    def _localisation_sees_enough(self) -> Self:
        pool, canvas_px, least_px = self.localisation_pool, self.distort.canvas_px, SMALLEST_LOOK
        if canvas_px // pool < least_px[self.backbone]:
            raise PydanticCustomError(
                "localisation_pool",
                "model.localisation_pool is {pool}; of {canvas_px} px that leaves the {backbone}'s "
                "localisation network fewer than the {least_px} px it needs",
                {
                    "pool": pool,
                    "canvas_px": canvas_px,
                    "backbone": self.backbone,
                    "least_px": least_px[self.backbone],
                },
            )
        return self

    @property
    def localisation_pool(self) -> int:
        """How far the image is pooled for the localisation network."""
        return self.model.localisation_pool or (2 if self.backbone == "CNN" else 1)

    @property
    def localisation_px(self) -> int:
        """Side of what the localisation network sees."""
        return self.distort.canvas_px // self.localisation_pool

    @property
    def st_pool(self) -> int:
        """How far the transformer's output is pooled: section 4.1 pools RTS by 2."""
        return self.model.st_pool or (2 if self.distort.canvas_px > SIDE else 1)

    @property
    def st_output_px(self) -> int:
        """Side of the image that the transformer samples."""
        return self.model.st_output_px or self.st_pool * SIDE

    @property
    def cell(self) -> str:
        """The experiment's name, as in the paper's table: ST-CNN Aff on RTS, or CNN on RTS."""
        return cell_title((self.distortion, self.backbone, self.transform))

    def as_dict(self) -> dict[str, Any]:
        """The whole config, defaults included, in types that YAML and JSON have."""
        return self.model_dump(mode="json")


def refuse_other_config(
    run: Path, old: dict[str, Any], new: dict[str, Any], advice: str = "name another --out"
) -> None:
    """Raise ConfigError, naming each setting that differs, unless a run's config is the new one."""
    differences = changed_settings(completed(old), new)
    if differences:
        told = f"{run} was started with other settings ({advice}):"
        raise ConfigError([told, *map(str, differences)])


SECTIONS: dict[str, type[Settings]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "log": LogSettings,
}


def completed(data: dict[str, Any]) -> dict[str, Any]:
    """A run's config as data, with settings that came after it was written.

    They have the values of their fields' defaults, which are as it was before there was a choice,
    and not those of the present recipe.
    """
    sections = {name: section().model_dump(mode="json") for name, section in SECTIONS.items()}
    filled = {
        name: default | data.get(name, {})
        for name, default in sections.items()
        if isinstance(data.get(name, {}), dict)
    }
    return data | filled


class Change(NamedTuple):
    """A setting that two configs have different values of."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """As it is told to somebody who wants to resume a run."""
        return f"{self.key} is {self.old} in the run, {self.new} was asked for"


def changed_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """What differs between two configs; `log` does not count, since it changes no result."""
    changes = []
    for key in old | new:
        if key == "log":
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_settings(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(Change(f"{prefix}{key}", before, after))
    return changes
