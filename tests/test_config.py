"""The tree of settings: defaults, bounds, the rules between fields, and configs of other runs."""

import copy
from typing import Any, get_args

import pytest
import yaml
from conftest import NEEDED
from pydantic import ValidationError

from stn_train.cell import Cell, experiment_title
from stn_train.config import REGISTRIES, Config, EvaluateSettings, LogSettings, TrainSettings
from stn_train.config_changes import changed_settings, refuse_other_config
from stn_train.config_errors import ConfigSource, check
from stn_train.data.distortions import DISTORTIONS, Rotation, RotationScaleTranslation
from stn_train.data.folder import Folder
from stn_train.data.images import ImageFormat
from stn_train.data.sources import SOURCES, DataSettings
from stn_train.errors import ConfigError
from stn_train.geometry.transforms import TRANSFORMS, Affine, ThinPlateSpline
from stn_train.models.backbones import BACKBONES, FullyConnected
from stn_train.models.transformer_settings import TransformerSettings
from stn_train.recipes import RECIPES
from stn_train.tasks import TASKS
from stn_train.trainer.optimisers import ITERATIONS

SECTIONS = (Config, DataSettings, TransformerSettings, TrainSettings, EvaluateSettings, LogSettings)
MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))


def checked(**data: Any) -> Config:
    return check(data, ConfigSource("test"))


def nested(key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Config data with one key."""
    for name in reversed(key):
        value = {name: value}
    return value


# Defaults and choices.


def test_default_is_the_best_cell_of_the_paper_on_mnist():
    config = Config()
    assert config.cell == Cell("RTS", "CNN", "Aff")
    assert config.distortion == DISTORTIONS["RTS"]()
    assert (config.source_name, config.data.validation) == ("mnist", 0)
    assert config.task_name == "classification"
    assert config.evaluate.draws == 10
    assert config.recipe == "default"


@pytest.mark.parametrize(
    ("section", "field", "known"),
    [(Config, "recipe", RECIPES), (TrainSettings, "muon_iteration", ITERATIONS)],
)
def test_closed_choices_are_the_keys_of_their_dict(section, field, known):
    assert get_args(section.model_fields[field].annotation) == tuple(known)


SETTINGS_NEEDED = {"folder": {"path": "pictures"}, "cub_format": {"path": "birds"}}


@pytest.mark.parametrize(
    ("key", "name"),
    [(key, name) for key, registry in REGISTRIES.items() for name in registry],
    ids=lambda part: part if isinstance(part, str) else ".".join(part),
)
def test_every_name_of_every_registry_is_accepted_with_and_without_settings(key, name):
    needed = SETTINGS_NEEDED.get(name, {})
    choices: list[Any] = [{name: needed}] if needed else [name, {name: {}}, {name: None}]
    for choice in choices:
        others = {"transform": "none", "backbone": "FCN"} | NEEDED.get(name, {})
        config = checked(**others | nested(key, choice))
        value: Any = config
        for part in key:
            value = getattr(value, part)
        assert type(value) is REGISTRIES[key][name]
        assert check(config.as_dict(), ConfigSource("again")) == config


def test_names_are_documented_where_they_are_chosen():
    for field, registry in (("distortion", DISTORTIONS), ("transform", TRANSFORMS)):
        documented = Config.model_fields[field].description
        assert documented is not None
        assert all(name in documented for name in registry)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_outside_the_sections_is_documented(section):
    bare = {name for name, field in section.model_fields.items() if not field.description}
    assert bare <= {"data", "model", "train", "evaluate", "log"}


# Cells and titles.


@pytest.mark.parametrize(
    ("cell", "title", "file_name"),
    [
        (("P", "FCN", "none"), "FCN on P", "p_fcn"),
        (("RTS", "CNN", "none"), "CNN on RTS", "rts_cnn"),
        (("P", "FCN", "TPS"), "ST-FCN TPS on P", "p_tps_fcn"),
        (("RTS", "CNN", "Aff"), "ST-CNN Aff on RTS", "rts_affine"),
        (("RTS", "FCN", "Proj"), "ST-FCN Proj on RTS", "rts_projective_fcn"),
        (
            ("none", "tutorial", "Aff"),
            "ST-tutorial Aff on undistorted images",
            "none_affine_tutorial",
        ),
        (("Shear", "CNN", "Attention"), "ST-CNN Attention on Shear", "shear_attention"),
    ],
    ids=str,
)
def test_cell_is_named_as_in_the_paper(cell, title, file_name):
    cell = Cell(*cell)
    assert (cell.title, cell.file_name) == (title, file_name)
    assert str(cell) == ":".join(cell[:3])


def test_title_tells_task_and_source_where_they_are_not_the_papers():
    assert Config().title == "ST-CNN Aff on RTS"
    assert checked(data={"source": "kmnist"}).title == "ST-CNN Aff on RTS, kmnist"
    cell = Cell("R", "FCN", "none")
    assert experiment_title(cell, "counting", "mnist") == "FCN on R, counting"
    assert experiment_title(cell, "counting", "kmnist") == "FCN on R, counting, kmnist"


# Ways there and back.


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_config_survives_yaml(distortion, recipe):
    config = checked(distortion=distortion, recipe=recipe, transform="none")
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    assert checked(**yaml.safe_load(text)) == config


def test_config_with_own_settings_survives_yaml():
    config = checked(
        distortion={"E": {"control_std_px": 2.5, "control_side": 3, "canvas_px": 40}},
        backbone={"CNN": {"filters": [3, 5]}},
        transform={"TPS": {"side": 5}},
        seed=2**63 - 1,
        data={"training_digits": 100, "source": {"emnist": {"split": "letters"}}},
        model={"st_output_px": 66, "st_pool": 3},
        train={"steps": 7, "learning_rate": 1e-5, "step_at": [0.1, 1 / 3, 0.7]},
    )
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    assert checked(**yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"recipe": "paper"},
        {"backbone": "FCN"},
        {"backbone": {"FCN": {"hidden": 64}}, "transform": {"TPS": {"side": 3}}},
        {"backbone": "tutorial", "distortion": "none"},
        {"recipe": "paper", "backbone": "FCN", "train": {"momentum": 0.5}},
        {"recipe": "paper", "train": {"epochs": 3}},
    ],
    ids=str,
)
def test_config_made_in_python_is_the_one_from_yaml(data):
    assert Config(**data) == Config.model_validate(data) == checked(**data)


@pytest.mark.parametrize("recipe", RECIPES)
def test_objects_in_python_are_what_their_names_and_settings_are_in_yaml(recipe):
    made = Config(
        recipe=recipe,
        distortion=Rotation(max_angle_deg=10.0),
        backbone=FullyConnected(hidden=64),
        transform=ThinPlateSpline(side=3),
        data={"source": Folder(path="/x")},
        train={"log_every": 7},
    )
    written = checked(
        recipe=recipe,
        distortion={"R": {"max_angle_deg": 10.0}},
        backbone={"FCN": {"hidden": 64}},
        transform={"TPS": {"side": 3}},
        data={"source": {"folder": {"path": "/x"}}},
        train={"log_every": 7},
    )
    assert made == written
    assert made.given == written.given
    assert Config.model_validate(made.as_dict()) == made


def test_whole_train_section_in_python_is_taken_as_it_is():
    train = TrainSettings(epochs=7)
    assert Config(recipe="paper", train=train).train == train


def test_a_distortion_of_another_config_is_fitted_anew():
    distortion = Config().distortion
    folder = DataSettings(source=Folder(path="x", size=64))
    config = Config(distortion=distortion, data=folder)
    assert config.distortion.canvas_px == 96
    assert Config(distortion=config.distortion).distortion == distortion


@pytest.mark.parametrize(
    "wrong",
    [{"distortion": Affine()}, {"transform": Rotation()}, {"task": Affine()}, {"data": Affine()}],
    ids=str,
)
def test_an_object_of_another_kind_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Config(**wrong)


@pytest.mark.parametrize(
    ("section", "field"),
    [(None, "seed"), ("train", "epochs"), ("data", "source"), ("distortion", "canvas_px")],
)
def test_config_is_frozen(section, field):
    settings = Config() if section is None else getattr(Config(), section)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, field, getattr(settings, field))


# Bounds and rules.


def test_a_duration_of_null_is_none():
    whole = checked(backbone="FCN")
    assert checked(backbone="FCN", train={"steps": None}).train == whole.train
    assert checked(backbone="FCN", train={"epochs": None, "steps": 7}).train.epochs is None


@pytest.mark.parametrize(
    ("train", "epochs", "steps"),
    [
        ({}, 30, None),
        ({"epochs": 3}, 3, None),
        ({"steps": 5}, None, 5),
        ({"epochs": None, "steps": 5}, None, 5),
        ({"epochs": 3, "steps": None}, 3, None),
    ],
)
def test_duration_is_epochs_or_steps(train, epochs, steps):
    settings = TrainSettings.model_validate(train)
    assert (settings.epochs, settings.steps) == (epochs, steps)


@pytest.mark.parametrize(
    "train", [{"epochs": 3, "steps": 5}, {"epochs": None}, {"epochs": None, "steps": None}]
)
def test_two_durations_or_none_are_refused(train):
    with pytest.raises(ValidationError, match="either epochs or steps"):
        TrainSettings.model_validate(train)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"seed": "1"}, "int_type"),
        ({"seed": 1.0}, "int_type"),
        ({"seed": True}, "int_type"),
        ({"train": {"learning_rate": float("nan")}}, "finite"),
        ({"train": {"learning_rate": float("inf")}}, "finite"),
        ({"train": {"fresh_distortions": 1}}, "bool_type"),
        ({"train": {"momentum": 1.0}}, "less than 1"),
        ({"backbone": {"CNN": {"filters": [64, 64, 64]}}}, "too_long"),
        ({"model": {"filters": [64, 64, 64]}}, "too_long"),
        ({"model": {"st_output_px": 43, "st_pool": 2}}, r"st_output_px is 43.* at least 42"),
        ({"distortion": "R", "model": {"st_output_px": 20}}, r"st_output_px is 20.* at least 21"),
        ({"distortion": "R", "model": {"localisation_pool": 3}}, "localisation_pool is 3.* 28 px"),
        ({"model": {"sampling": "integer"}}, "integer cannot be trained with.*bilinear or bicubic"),
        ({"model": {"sampling": "nearest"}}, "literal_error"),
        ({"evaluate": {"draws": 0}}, "greater than or equal to 1"),
        ({"sed": 1}, "extra_forbidden"),
        ({"distort": {"sed": 1}}, "extra_forbidden"),
        ({"distortion": {"R": {"sed": 1}}}, "extra_forbidden"),
        ({"data": {"source": {"mnist": {"sed": 1}}}}, "extra_forbidden"),
        ({"distortion": {"R": {"canvas_px": 27}}}, "canvas_px is 27"),
        ({"data": {"source": {"folder": {"path": "x", "size": 1024}}}}, "canvas_px is 1536"),
    ],
    ids=str,
)
def test_nothing_is_converted_clipped_or_ignored(data, reason):
    with pytest.raises(ValidationError, match=reason):
        Config.model_validate(data)


def test_settings_must_belong_to_the_chosen_distortion():
    moved = checked(distortion={"RTS": {"max_shift_px": 3.0}}).distortion
    assert moved == RotationScaleTranslation(max_shift_px=3.0)
    with pytest.raises(ValidationError, match="max_shift_px"):
        Config.model_validate({"distortion": {"R": {"max_shift_px": 3.0}}})


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_baseline_is_not_refused_for_what_it_does_not_use(backbone):
    unused = {"st_output_px": 30, "st_pool": 4, "localisation_pool": 4}
    config = checked(distortion="R", backbone=backbone, transform="none", model=unused)
    assert [*config.build_network(MNIST)._modules] == ["classifier"]
    with pytest.raises(ConfigError, match=r"model\.st_output_px"):
        checked(distortion="R", backbone=backbone, transform="Aff", model=unused)


@pytest.mark.parametrize(
    "backbone", [name for name in BACKBONES if BACKBONES[name].smallest_input > 8]
)
def test_a_baseline_that_sees_too_little_is_refused(backbone):
    small = {"source": {"folder": {"path": "x", "size": 8}}}
    with pytest.raises(ConfigError, match=rf"8 px; the {backbone} needs"):
        checked(distortion="R", backbone=backbone, transform="none", data=small)


def test_embedded_digits_are_said_to_be_gone():
    with pytest.raises(ConfigError, match=r"data\.source.*embedded.* gone.* mnist"):
        checked(data={"source": "embedded"})
    assert "embedded" not in SOURCES


def test_every_task_sees_what_the_distortion_makes():
    for name in TASKS:
        distortion = NEEDED.get(name, {}).get("distortion", "R")
        config = checked(task=name, distortion={distortion: {"canvas_px": 50}})
        assert config.task.distortion == config.distortion


# What was given.


def test_a_config_remembers_what_was_given():
    data = {"backbone": "FCN", "train": {"epochs": 3}, "distortion": {"R": {"canvas_px": 30}}}
    config = checked(**copy.deepcopy(data))
    assert config.given == data
    assert checked(**config.as_dict()).given == data
    assert checked().given == {}


def test_given_is_resolved_anew_to_the_same_config():
    for data in ({}, {"recipe": "paper"}, {"backbone": "FCN", "train": {"steps": 3}}):
        config = checked(**data)
        assert checked(**config.given) == config


def test_a_recorded_config_stays_as_it_was_resolved(monkeypatch):
    recorded = checked(backbone="FCN").as_dict()
    changed = copy.deepcopy(RECIPES["default"]["FCN"])
    changed["train"]["learning_rate"] = 0.5
    monkeypatch.setitem(RECIPES["default"], "FCN", changed)
    assert checked(backbone="FCN").train.learning_rate == 0.5
    assert checked(**recorded).train.learning_rate != 0.5
    assert checked(**recorded).as_dict() == recorded


# Configs of earlier versions.

FORMER: dict[str, Any] = {
    "distortion": "E",
    "backbone": "FCN",
    "transform": "TPS",
    "seed": 4,
    "recipe": "default",
    "data": {"source": "mnist", "validation": 0, "training_digits": None, "test_digits": None},
    "distort": {
        "canvas_px": 28,
        "min_scale": 0.75,
        "max_scale": 1.0,
        "control_std_px": 2.5,
        "control_side": 4,
        "control_span": 0.75,
    },
    "model": {
        "hidden": 200,
        "filters": [64, 64],
        "dropout": 0.0,
        "localisation_pool": 2,
        "localisation_hidden": 160,
        "localisation_filters": 20,
        "localisation_features": 20,
        "st_iterations": 3,
        "st_output_px": 28,
        "st_pool": 1,
    },
    "train": {
        "epochs": 12,
        "steps": None,
        "batch_size": 256,
        "optimizer": "muon",
        "learning_rate": 0.002,
        "localisation_learning_rate_scale": 1.0,
        "momentum": 0.9,
        "weight_decay": 0.2,
        "precision": "auto",
        "cuda_graph": True,
        "schedule": "one_cycle",
        "warmup": 0.2,
        "step_at": [1 / 3, 2 / 3],
        "step_factor": 0.1,
        "label_smoothing": 0.1,
        "max_gradient_norm": None,
        "ema_decay": 0.0,
        "fresh_distortions": True,
        "validate_every": 1,
        "log_every": 50,
    },
    "evaluate": {"draws": 10},
}
"""What a run of an earlier version recorded, before `muon_iteration` and `log`."""


def former(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(FORMER) | changes


def test_a_run_in_the_former_layout_is_read():
    config = Config.from_run(former())
    assert config.cell == Cell("E", "FCN", "TPS")
    assert config.distortion == DISTORTIONS["E"](**FORMER["distort"])
    assert config.backbone == FullyConnected(hidden=200, localisation_hidden=160)
    assert config.model.model_dump() == {
        "st_iterations": 3,
        "st_output_px": 28,
        "st_output_depth": None,
        "st_pool": 1,
        "localisation_pool": 2,
        "sampling": "bilinear",  # the only one there was
        "st_jitter": 0.0,
    }
    assert (config.train.epochs, config.train.optimizer) == (12, "muon")
    assert Config.from_run(config.as_dict()) == config


def test_reading_leaves_what_was_recorded_alone():
    data = former()
    Config.from_run(data)
    assert data == FORMER


def test_settings_added_since_get_the_fields_default_and_not_the_recipes(monkeypatch):
    changed = copy.deepcopy(RECIPES["default"]["FCN"])
    changed["train"] |= {"muon_iteration": "polar_express"}
    changed["model"] |= {"st_iterations": 5}
    monkeypatch.setitem(RECIPES["default"], "FCN", changed)
    older = former()
    del older["model"]["st_iterations"]
    config = Config.from_run(older)
    assert config.train.muon_iteration == "newton_schulz"
    assert config.model.st_iterations == 1
    assert config.log == LogSettings()
    assert checked(backbone="FCN").model.st_iterations == 5


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_takes_from_a_full_model_section_what_is_its_own(backbone):
    config = Config.from_run(former(backbone=backbone, transform="none"))
    for name, value in FORMER["model"].items():
        if name in BACKBONES[backbone].model_fields:
            found = config.backbone.model_dump(mode="json")[name]
            assert found == value


def test_what_the_former_layout_gave_is_all_but_what_recipes_set():
    given = Config.from_run(former()).given
    assert given["backbone"] == "FCN"
    assert given["distortion"] == {"E": FORMER["distort"]}
    assert given["seed"] == 4
    assert "train" not in given
    assert "model" not in given


@pytest.mark.parametrize(
    "damage",
    [{"backbone": ["FCN"]}, {"distortion": {"E": 5}}, {"distort": 5}, {"model": []}, {"seed": "1"}],
    ids=str,
)
def test_a_damaged_config_of_a_run_is_not_valid(damage):
    with pytest.raises(ConfigError, match=next(iter(damage))):
        Config.from_run(former(**damage))
    with pytest.raises(ConfigError, match="not valid"):
        refuse_other_config("run", former(**damage), Config())


def test_hand_written_sections_of_the_former_layout_follow_the_recipe():
    config = checked(
        distortion="R",
        backbone="FCN",
        distort={"max_angle_deg": 10.0},
        model={"hidden": 64, "st_iterations": 2},
        train={"log_every": 7},
        data={},
        evaluate={},
    )
    recipe = RECIPES["default"]["FCN"]
    assert config.distortion == Rotation(max_angle_deg=10.0)
    assert config.backbone == FullyConnected(hidden=64, **recipe["backbone"])
    assert (config.model.st_iterations, config.model.st_pool) == (2, recipe["model"]["st_pool"])
    assert config.train.optimizer == recipe["train"]["optimizer"]


# Differences.


def told(old: Config, new: Config) -> list[str]:
    return [str(change) for change in changed_settings(old.as_dict(), new.as_dict())]


def test_differences_are_told_by_key_and_value():
    old = checked(backbone="FCN", seed=1, train={"epochs": 3})
    new = checked(backbone="FCN", seed=2, train={"epochs": 4})
    assert told(old, new) == [
        "seed is 1 in the run, 2 was asked for",
        "train.epochs is 3 in the run, 4 was asked for",
    ]
    assert told(old, old) == []


def test_another_choice_is_told_by_its_name():
    old, new = checked(distortion="R", transform="TPS"), checked(distortion="P", transform="none")
    assert told(old, new) == [
        "distortion is R in the run, P was asked for",
        "transform is TPS in the run, none was asked for",
    ]


def test_another_setting_of_the_same_choice_is_told_by_its_key():
    old, new = checked(transform="TPS"), checked(transform={"TPS": {"side": 5}})
    assert told(old, new) == ["transform.TPS.side is 4 in the run, 5 was asked for"]


def test_what_is_logged_or_was_given_is_no_difference_between_runs():
    quiet = Config()
    loud = checked(log={"snapshots": 5, "tensorboard": True}, seed=1, distortion="RTS")
    assert quiet.given != loud.given
    assert told(quiet, loud) == []


def test_a_run_with_another_config_is_refused_with_each_difference(tmp_path):
    config = Config.from_run(former())
    refuse_other_config(tmp_path, former(), config)
    refuse_other_config(tmp_path, config.as_dict(), config)
    other = checked(**config.as_dict() | {"seed": 5})
    with pytest.raises(ConfigError, match=r"seed is 4 .* 5") as caught:
        refuse_other_config(tmp_path, former(), other, advice="do this")
    assert str(tmp_path) in caught.value.problems[0]
    assert "do this" in caught.value.problems[0]
