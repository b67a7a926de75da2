"""The tree of settings: defaults, bounds, and the rules between fields."""

from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from stn_train.config import (
    SMALLEST_INPUT,
    Config,
    DataSettings,
    EvaluateSettings,
    LogSettings,
    ModelSettings,
    TrainSettings,
    changed_settings,
    completed,
)
from stn_train.config_file import Source, check
from stn_train.distortions import DISTORTIONS
from stn_train.muon import ITERATIONS
from stn_train.recipes import PAPER, RECIPES, with_recipe
from stn_train.transforms import TRANSFORMS

SECTIONS = (Config, DataSettings, ModelSettings, TrainSettings, EvaluateSettings, LogSettings)


def checked(**data) -> Config:
    return check(data, Source("test"))


def test_default_is_the_best_cell_of_the_paper_on_mnist():
    config = Config()
    assert (config.distortion, config.backbone, config.transform) == ("RTS", "CNN", "Aff")
    assert config.distort == DISTORTIONS["RTS"]()
    assert (config.data.source, config.data.validation) == ("mnist", 0)
    assert config.evaluate.draws == 10
    assert config.recipe == "default"


@pytest.mark.parametrize(
    ("section", "field", "known"),
    [
        (Config, "backbone", SMALLEST_INPUT),
        (Config, "recipe", RECIPES),
        (TrainSettings, "muon_iteration", ITERATIONS),
    ],
)
def test_closed_choices_are_the_keys_of_their_dict(section, field, known):
    assert get_args(section.model_fields[field].annotation) == tuple(known)


def test_a_duration_of_null_is_none():
    whole = checked(backbone="FCN")
    assert checked(backbone="FCN", train={"steps": None}) == whole
    assert checked(backbone="FCN", train={"epochs": None, "steps": 7}).train.epochs is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_settings_for_every_backbone(recipe):
    assert RECIPES[recipe].keys() == SMALLEST_INPUT.keys()


@pytest.mark.parametrize(
    ("field", "names"), [("distortion", [*DISTORTIONS]), ("transform", [*TRANSFORMS, "none"])]
)
def test_every_known_name_is_accepted_and_documented(field, names):
    assert [getattr(checked(**{field: name}), field) for name in names] == names
    assert all(name in Config.model_fields[field].description for name in names)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_outside_the_sections_is_documented(section):
    bare = {name for name, field in section.model_fields.items() if not field.description}
    assert bare <= {"data", "model", "train", "evaluate", "log"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_config_survives_yaml(distortion, recipe):
    config = checked(distortion=distortion, recipe=recipe, transform="none")
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    assert checked(**yaml.safe_load(text)) == config


def test_config_with_own_settings_survives_yaml():
    config = checked(
        distortion="E",
        backbone="FCN",
        seed=2**63 - 1,
        distort={"control_std_px": 2.5, "control_side": 3, "canvas_px": 40},
        data={"training_digits": 100, "validation": 0},
        model={"filters": [3, 5], "st_output_px": 30, "st_pool": 3},
        train={"steps": 7, "learning_rate": 1e-5, "step_at": [0.1, 1 / 3, 0.7]},
    )
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    assert checked(**yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    ("section", "field"), [(None, "seed"), ("train", "epochs"), ("data", "source")]
)
def test_config_is_frozen(section, field):
    settings = Config() if section is None else getattr(Config(), section)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, field, getattr(settings, field))


def test_parameters_of_a_distortion_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().distort.canvas_px = 28  # type: ignore[misc]


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
        ({"model": {"filters": [64, 64, 64]}}, "too_long"),
        ({"model": {"st_output_px": 43, "st_pool": 2}}, "must be a multiple of 2, at least 42"),
        ({"distortion": "R", "model": {"st_output_px": 20}}, "a multiple of 1, at least 21"),
        (
            {"distortion": "R", "model": {"localisation_pool": 3}},
            "localisation_pool is 3; of 28 px that leaves the CNN's localisation network fewer",
        ),
        ({"evaluate": {"draws": 0}}, "greater than or equal to 1"),
        ({"sed": 1}, "extra_forbidden"),
        ({"distort": {"sed": 1}}, "extra_forbidden"),
    ],
)
def test_nothing_is_converted_clipped_or_ignored(data, reason):
    with pytest.raises(ValidationError, match=reason):
        Config.model_validate(data)


def test_parameters_must_belong_to_the_chosen_distortion():
    assert checked(distortion="RTS", distort={"max_shift_px": 3.0}).distort.max_shift_px == 3
    with pytest.raises(ValidationError, match="max_shift_px"):
        Config.model_validate({"distortion": "R", "distort": {"max_shift_px": 3.0}})


@pytest.mark.parametrize(("transform", "cell"), [("none", "FCN on P"), ("TPS", "ST-FCN TPS on P")])
def test_cell_is_named_as_in_the_paper(transform, cell):
    assert checked(distortion="P", backbone="FCN", transform=transform).cell == cell


@pytest.mark.parametrize("backbone", SMALLEST_INPUT)
def test_paper_recipe_is_what_the_paper_states(backbone):
    config = checked(recipe="paper", backbone=backbone, distortion="R")
    assert config.model == ModelSettings()  # the paper's networks
    train = config.train
    assert (train.optimizer, train.learning_rate) == ("sgd", 0.01)
    assert (train.steps, train.epochs, train.batch_size) == (150_000, None, 256)
    assert (train.weight_decay, train.label_smoothing, train.ema_decay) == (0, 0, 0)
    assert train.max_gradient_norm is None


def test_default_recipe_of_a_backbone_stands_above_the_defaults():
    config, recipe = checked(backbone="FCN"), RECIPES["default"]["FCN"]
    assert config.train.epochs == recipe["train"]["epochs"]
    assert config.model.st_iterations == recipe["model"]["st_iterations"] != 1


def test_own_settings_stand_above_the_recipe():
    train = checked(recipe="paper", train={"learning_rate": 0.5, "log_every": 7}).train
    assert (train.learning_rate, train.log_every) == (0.5, 7)
    assert (train.optimizer, train.steps) == ("sgd", 150_000)


@pytest.mark.parametrize("own", [{"epochs": 3}, {"steps": 3}])
def test_own_duration_takes_the_place_of_the_recipes(own):
    train = checked(recipe="paper", train=own).train
    assert {"epochs": train.epochs, "steps": train.steps} == {"epochs": None, "steps": None} | own


@pytest.mark.parametrize(
    "data",
    [
        {"recipe": "nope"},
        {"backbone": ["a"]},
        {"train": 5, "model": 5},
        {"train": None, "model": 0},
    ],
)
def test_what_no_recipe_fits_is_left_for_the_check(data):
    assert with_recipe(data) == data


def test_recipe_leaves_its_input_alone():
    data = {"recipe": "paper", "train": {"momentum": 0.5}}
    assert with_recipe(data)["train"] == PAPER | {"momentum": 0.5}
    assert data == {"recipe": "paper", "train": {"momentum": 0.5}}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"recipe": "paper"},
        {"backbone": "FCN"},
        {"backbone": "tutorial", "distortion": "none"},
        {"recipe": "paper", "backbone": "FCN", "train": {"momentum": 0.5}},
        {"recipe": "paper", "train": {"epochs": 3}},
    ],
)
def test_config_made_in_python_is_the_one_from_yaml(data):
    assert Config(**data) == Config.model_validate(data) == checked(**data)


def test_recipe_and_backbone_count_in_python():
    assert (Config(recipe="paper").train.steps, Config(recipe="paper").train.epochs) == (
        PAPER["steps"],
        None,
    )
    assert Config(recipe="paper").train.optimizer == "sgd"
    for backbone in ("FCN", "CNN", "tutorial"):
        epochs = RECIPES["default"][backbone]["train"]["epochs"]
        assert Config(backbone=backbone).train.epochs == epochs


def test_whole_train_section_in_python_is_taken_as_it_is():
    train = TrainSettings(epochs=7)
    assert Config(recipe="paper", train=train).train == train


# Configs of older runs.


def test_an_older_run_is_completed_by_the_fields_defaults_and_not_by_the_recipe():
    whole = Config(backbone="FCN").as_dict()
    assert whole["model"]["st_iterations"] > 1
    older = {**whole, "model": {k: v for k, v in whole["model"].items() if k != "st_iterations"}}
    del older["log"]
    assert completed(older)["model"]["st_iterations"] == 1
    assert completed(older)["log"] == LogSettings().model_dump()
    assert completed(whole) == whole
    assert [str(each) for each in changed_settings(completed(older), whole)] == [
        f"model.st_iterations is 1 in the run, {whole['model']['st_iterations']} was asked for"
    ]


def test_what_is_logged_is_no_difference_between_runs():
    quiet, loud = Config(), Config(log=LogSettings(snapshots=5, tensorboard=True))
    assert changed_settings(quiet.as_dict(), loud.as_dict()) == []
