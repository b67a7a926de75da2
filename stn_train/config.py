"""What an experiment is: one frozen tree of settings, checked as a whole.

The documentation of a field stands under it. Validators check and convert; they read no file.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from stn_train.cell import Cell, experiment_title
from stn_train.data import sources
from stn_train.data.distortion import Distortion
from stn_train.data.distortions import DISTORTIONS, RotationScaleTranslation
from stn_train.data.images import ImageFormat
from stn_train.data.sources import SOURCES, DataSettings, Splits
from stn_train.errors import ConfigError
from stn_train.geometry.transforms import TRANSFORMS, Affine, Transform
from stn_train.models.assembly import build_network, resolve_placements
from stn_train.models.backbone import Backbone
from stn_train.models.backbones import BACKBONES, Convolutional
from stn_train.models.network import Network
from stn_train.models.placements import FRONT, ONE_IN_FRONT, Placement, arrangement
from stn_train.models.transformer_settings import TransformerSettings
from stn_train.recipes import with_recipe
from stn_train.settings import Settings, chosen, name_and_settings, name_of
from stn_train.tasks import TASKS
from stn_train.tasks.base import Task
from stn_train.tasks.classification import Classification

Positive = Annotated[float, Field(gt=0, le=1e30)]  # float32 ends soon after
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class TrainSettings(Settings):
    """How the weights are found."""

    epochs: Count | None = 30
    """Passes over the training images; give either this or steps."""
    steps: Count | None = None
    """Optimiser steps; give either this or epochs."""
    batch_size: Annotated[int, Field(ge=1, le=60000)] = 256
    """Images a step; the last, smaller batch of a pass is used too."""
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
    """step: what the learning rate is multiplied by at each of step_at."""
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
    tracker: Literal["trackio", "wandb"] | None = None
    """Tell this tracker every number too, offline: pip install trackio, or wandb."""


class EvaluateSettings(Settings):
    """How the trained model is measured."""

    draws: Annotated[int, Field(ge=1, le=100)] = 10
    """Fixed draws of the test distortion. The first gives the reported error; the mean over all is
    reported too."""


class Config(Settings):
    """An experiment: a cell of a table, or a variation of one."""

    recipe: Literal["default", "paper"] = "default"
    """Which values backbone, model and train start from: default, or paper for the paper's own."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Decides the first weights, the order of the images and their distortions."""
    data: DataSettings = DataSettings()
    distortion: Annotated[Distortion, *chosen(DISTORTIONS)] = RotationScaleTranslation()
    """R, RTS, P, E, T, TC, crop (of photographs) or none; or `{name: {settings}}`."""
    task: Annotated[Task, *chosen(TASKS)] = Classification()
    """What the network is asked to do with the distorted images: classification, or recognition,
    the same with the share that is right as its measure, or extruded, to classify volumes made of
    them; or `{name: {settings}}`."""
    backbone: Annotated[Backbone, *chosen(BACKBONES)] = Convolutional()
    """The classifier: FCN or CNN of the paper, Inception of its birds, or the small network of
    PyTorch's tutorial (the last two for images alone); or `{name: {settings}}`."""
    transform: Annotated[Transform | None, *chosen(TRANSFORMS, none=True)] = Affine()
    """What the spatial transformer can do: Translation, Rigid, Attention, Similarity, Aff (also of
    volumes), Proj, PiecewiseAffine, TPS or CPAB; none for no spatial transformer; or
    `{name: {settings}}`."""
    transformers: dict[str, Placement] = ONE_IN_FRONT
    """Where spatial transformers stand, `{place: {settings}}`: front, or behind a stage of a CNN
    (its convolution, pooling and ReLU): after_1, after_2. Unless given, there is one in front."""
    model: TransformerSettings = TransformerSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    log: LogSettings = LogSettings()
    given: dict[str, Any] = Field(default_factory=dict, repr=False)
    """The settings that somebody chose, written by the program. The others follow from the recipe
    and from defaults: they are filled in anew where an override changes the recipe."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "given" in data:
            return data  # recorded by a run: every setting is there
        data = present_layout(data)
        given = plain((), data)
        if isinstance(data.get("backbone"), Settings):
            data = data | {"backbone": given["backbone"]}  # the recipe adds to what was set
        return with_recipe(data) | {"given": given}

    @field_validator("distortion", mode="after")
    @classmethod
    def _fits_the_images(cls, distortion: Distortion, info: ValidationInfo) -> Distortion:
        if "data" not in info.data:
            return distortion  # what is wrong there has been reported
        try:
            return distortion.fitted(info.data["data"].source.side_px)
        except ValueError as error:
            raise PydanticCustomError("canvas_px", "{told}", {"told": str(error)}) from None

    @field_validator("transformers", mode="before")
    @classmethod
    def _a_place_alone_is_enough(cls, transformers: Any) -> Any:
        if not isinstance(transformers, dict):
            return transformers
        return {place: {} if own is None else own for place, own in transformers.items()}

    @field_validator("task", mode="after")
    @classmethod
    def _on_distorted_images(cls, task: Task, info: ValidationInfo) -> Task:
        if "distortion" not in info.data:
            return task  # what is wrong there has been reported
        return task.with_distortion(info.data["distortion"])

    @model_validator(mode="after")
    def _networks_see_enough(self) -> Self:
        side_px = self.data.source.side_px
        shape = self.task.shape(ImageFormat((1, side_px, side_px), ()))
        _, *sides = shape
        volumes = len(sides) == 3
        try:
            in_front = self.transform is not None and FRONT in self.transformers
            if volumes and self.transform is not None:
                front = self.transformers.get(FRONT, Placement())
                self._refuse_what_warps_images_alone(front.transform or self.transform)
            if not in_front and min(sides) < self.backbone.smallest_input:
                least_px = self.backbone.smallest_input
                made, advice = (
                    (f"task makes volumes of {min(sides)} voxels a side", "set more side_voxels")
                    if volumes
                    else (f"distortion makes images of {min(sides)} px", "set a larger canvas_px")
                )
                raise ValueError(
                    f"{made}; the {self.cell.backbone} needs at least {least_px}: {advice}"
                )
            if self.task.locates and not self.has_one_in_front:
                raise ValueError(
                    f"task {self.task_name} asks where a transformer looks: name a transform, and "
                    f"only one transformer, in {FRONT}"
                )
            resolve_placements(
                self.backbone, self.transform, self.model, shape, side_px, self.transformers
            )
        except ValueError as error:
            raise PydanticCustomError("sizes", "{told}", {"told": str(error)}) from None
        return self

    def _refuse_what_warps_images_alone(self, transform: Transform) -> None:
        """Raise ValueError unless transform and backbone can warp the volumes of the task."""
        if not transform.warps_volumes:
            able = [name for name, each in TRANSFORMS.items() if each.warps_volumes]
            raise ValueError(
                f"transform is {name_of(TRANSFORMS, transform)}, which warps images alone; task "
                f"{self.task_name} makes volumes: choose {' or '.join([*able, 'none'])}"
            )
        if not self.backbone.localises_volumes:
            able = [name for name, each in BACKBONES.items() if each.localises_volumes]
            raise ValueError(
                f"backbone is {self.cell.backbone}, whose localisation network sees images alone; "
                f"task {self.task_name} makes volumes: choose {' or '.join(able)}, "
                "or transform none"
            )

    @property
    def cell(self) -> Cell:
        """The names of distortion, backbone and transform or arrangement, and the subject."""
        return Cell(
            self.distortion.label(name_of(DISTORTIONS, self.distortion)),
            name_of(BACKBONES, self.backbone),
            arrangement(self.transformers, self.transform),
            self.task.about,
        )

    @property
    def has_one_in_front(self) -> bool:
        """Whether the network has a single spatial transformer, and that in front."""
        fronts = [(place, each.count) for place, each in self.transformers.items()]
        return self.transform is not None and fronts == [(FRONT, 1)]

    @property
    def source_name(self) -> str:
        """The name of the source of the images."""
        return name_of(SOURCES, self.data.source)

    @property
    def task_name(self) -> str:
        """The name of the task."""
        return name_of(TASKS, self.task)

    @property
    def title(self) -> str:
        """The experiment in words, as in the paper's table: ST-CNN Aff on RTS."""
        return experiment_title(self.cell, self.task_name, self.source_name)

    def as_dict(self) -> dict[str, Any]:
        """The whole config, defaults included, in types that YAML and JSON have."""
        return self.model_dump(mode="json")

    def load_splits(self, data_dir: Path | None = None) -> Splits:
        """The images of a run; raises DataError or ConfigError as `sources.load_splits` does."""
        return self.task.selected(sources.load_splits(self.data, data_dir), self.seed)

    def build_network(self, images: ImageFormat) -> Network:
        """The network for images of a format, with fresh weights from torch's global generator."""
        return build_network(
            self.backbone,
            self.transform,
            self.model,
            self.task.shape(images),
            self.task.outputs(images),
            self.distortion.image_px,
            self.transformers,
        )

    @classmethod
    def from_run(cls, data: dict[str, Any]) -> Self:
        """The config that a run recorded, in the present or the former layout.

        Settings added since get the field's default, which always reproduces the behaviour before
        the setting existed; not the recipe's value. Raises ConfigError if it is not valid.
        """
        try:
            return cls.model_validate(recorded(data))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigError(problems) from None


REGISTRIES: dict[tuple[str, ...], Mapping[str, type[Settings]]] = {
    ("task",): TASKS,
    ("distortion",): DISTORTIONS,
    ("backbone",): BACKBONES,
    ("transform",): TRANSFORMS,
    ("data", "source"): SOURCES,
}
"""The keys of a config whose value is chosen from a registry."""

FORMER_KEYS = {
    *("distortion", "backbone", "transform", "seed", "recipe"),
    *("data", "distort", "model", "train", "evaluate"),
}
"""What every config has that a run recorded in the former layout; hardly one written by hand."""


def present_layout(data: dict[str, Any]) -> dict[str, Any]:
    """Config data in the present layout.

    In the former one the settings of the distortion stood in `distort`, and those of all
    backbones in `model`. Both are still read.
    """
    data = copy.deepcopy(data)
    distort = data.pop("distort", None)
    name, own = chosen_in(data, "distortion")
    if distort is not None and isinstance(name, str):
        data["distortion"] = {name: {**distort, **own} if isinstance(distort, dict) else distort}
    model = data.get("model")
    if isinstance(model, dict) and former_backbone_keys(model):
        name, own = chosen_in(data, "backbone")
        moved = {key: model.pop(key) for key in former_backbone_keys(model)}
        if isinstance(name, str):
            known = BACKBONES[name].model_fields if name in BACKBONES else {}
            data["backbone"] = {name: {k: v for k, v in moved.items() if k in known} | own}
    return data


def former_backbone_keys(model: dict[str, Any]) -> list[str]:
    """The keys in a `model` section that are a backbone's."""
    of_backbones = {field for kind in BACKBONES.values() for field in kind.model_fields}
    return [key for key in model if key in of_backbones]


def chosen_in(data: dict[str, Any], key: str) -> tuple[Any, dict[str, Any]]:
    """The name that config data choose under a key of the top level, and its settings there.

    Where there is no choice but something else, that is returned in place of the name.
    """
    default = name_of(REGISTRIES[key,], Config.model_fields[key].default)
    try:
        name, settings = name_and_settings(data.get(key, default))
    except ValueError:
        return data[key], {}
    return (name, settings) if isinstance(settings, dict) else (data[key], {})


def recorded(data: dict[str, Any]) -> dict[str, Any]:
    """Config data as a run records them, with what was given.

    The former layout does not tell that: there whatever a recipe can set counts as not given.
    """
    if "given" in data:
        return data
    data = present_layout(data)
    given = {key: value for key, value in data.items() if key not in ("model", "train")}
    if "backbone" in data:
        given["backbone"], _ = chosen_in(data, "backbone")
    return data | {"given": given}


def plain(key: tuple[str, ...], value: Any) -> Any:
    """The value of a key of a config, with every Settings in it in types that YAML has."""
    if isinstance(value, dict):
        return {name: plain((*key, name), each) for name, each in value.items()}
    if not isinstance(value, Settings):
        return copy.deepcopy(value)
    settings = value.model_dump(mode="json", exclude_unset=True)
    registry = REGISTRIES.get(key)
    if registry is None:
        return settings
    known = type(value) in registry.values()
    return {name_of(registry, value): settings} if known else value
