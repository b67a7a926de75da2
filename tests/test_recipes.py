"""Recipes: what a config starts from, and what takes precedence over them."""

import copy

import pytest

from stn_train.config import Config
from stn_train.models.backbones import BACKBONES
from stn_train.recipes import DURATIONS, PAPER, RECIPES, TASK_RECIPES, with_recipe
from stn_train.tasks import TASKS

EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES)
EVERY_BACKBONE = pytest.mark.parametrize("backbone", BACKBONES)


@EVERY_RECIPE
def test_a_recipe_has_settings_for_every_backbone(recipe):
    assert RECIPES[recipe].keys() == BACKBONES.keys()


@EVERY_RECIPE
@EVERY_BACKBONE
def test_every_setting_of_a_recipe_reaches_the_config(recipe, backbone):
    config = Config(recipe=recipe, backbone=backbone, distortion="R")
    for section, settings in RECIPES[recipe][backbone].items():
        reached = getattr(config, section).model_dump(mode="json")
        assert reached | settings == reached


@pytest.mark.parametrize(
    ("task", "recipe", "backbone"),
    [
        (task, recipe, backbone)
        for task, recipes in TASK_RECIPES.items()
        for recipe, backbones in recipes.items()
        for backbone in backbones
    ],
)
def test_a_task_sets_some_things_otherwise_and_takes_the_rest_from_the_backbones_recipe(
    task, recipe, backbone
):
    assert (task in TASKS, recipe in RECIPES, backbone in BACKBONES) == (True, True, True)
    where: dict[str, object] = {"distortion": "T"} if TASKS[task].locates else {}
    config = Config(recipe=recipe, backbone=backbone, task=task, **where)
    same = Config(recipe=recipe, backbone=backbone, task={task: {}}, **where)
    assert (same.backbone, same.model, same.train) == (config.backbone, config.model, config.train)
    other = TASK_RECIPES[task][recipe][backbone]
    for section in {*RECIPES[recipe][backbone], *other}:
        reached = getattr(config, section).model_dump(mode="json")
        expected = RECIPES[recipe][backbone].get(section, {}) | other.get(section, {})
        assert reached | expected == reached
    where["model"] = {"st_iterations": 7}
    own = Config(recipe=recipe, backbone=backbone, task=task, **where)
    assert own.model.st_iterations == 7
    assert Config(recipe=recipe, backbone=backbone).model != config.model


@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - {"Inception"}))
def test_paper_recipe_is_what_the_paper_states(backbone):
    config = Config(recipe="paper", backbone=backbone, distortion="R")
    assert config.model == type(config.model)(st_output_px="input")  # 42 px on RTS, pooled to 21
    assert config.backbone == BACKBONES[backbone]()  # the paper's networks
    train = config.train
    assert (train.optimizer, train.learning_rate, train.precision) == ("sgd", 0.01, "float32")
    assert (train.steps, train.epochs, train.batch_size) == (150_000, None, 256)
    assert (train.weight_decay, train.label_smoothing, train.ema_decay) == (0, 0, 0)
    assert train.max_gradient_norm is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_birds_are_trained_as_the_paper_states(recipe):
    """Section A.6, of the Inception network."""
    config = Config(recipe=recipe, backbone="Inception", distortion="crop")
    train = config.train
    assert config.backbone == BACKBONES["Inception"]()
    assert (train.optimizer, train.learning_rate, train.weight_decay) == ("sgd", 0.1, 1e-5)
    assert train.localisation_learning_rate_scale == 1e-4
    assert (train.steps, train.schedule, train.step_factor) == (30_000, "step", 0.1)
    assert [round(at * train.steps) for at in train.step_at] == [10_000, 20_000, 25_000]


def test_default_recipe_of_a_backbone_takes_precedence_over_the_fields_defaults():
    config, recipe = Config(backbone="FCN"), RECIPES["default"]["FCN"]
    assert config.train.epochs == recipe["train"]["epochs"] != type(config.train)().epochs
    assert config.model.st_iterations == recipe["model"]["st_iterations"] != 1
    assert config.backbone.localisation_hidden == recipe["backbone"]["localisation_hidden"]
    assert config.backbone != BACKBONES["FCN"]()


def test_own_settings_take_precedence_over_the_recipe():
    train = Config(recipe="paper", train={"learning_rate": 0.5, "log_every": 7}).train
    assert (train.learning_rate, train.log_every) == (0.5, 7)
    assert (train.optimizer, train.steps) == ("sgd", 150_000)
    backbone = Config(backbone={"FCN": {"hidden": 64}}).backbone
    assert backbone.hidden == 64
    assert backbone.localisation_hidden != type(backbone)().localisation_hidden  # the recipe's


@pytest.mark.parametrize("own", [{"epochs": 3}, {"steps": 3}])
@EVERY_RECIPE
def test_own_duration_takes_the_place_of_the_recipes(own, recipe):
    train = Config(recipe=recipe, train=own).train
    assert {key: getattr(train, key) for key in DURATIONS} == dict.fromkeys(DURATIONS) | own


@pytest.mark.parametrize(
    "data",
    [
        {"recipe": "nope"},
        {"backbone": ["a"]},
        {"backbone": "nope"},
        {"backbone": {"nope": {}}},
        {"backbone": {"FCN": {}, "CNN": {}}},
        {"train": 5, "model": 5, "backbone": {"CNN": 5}},
        {"train": None, "model": 0, "backbone": {"CNN": "x"}},
    ],
    ids=str,
)
def test_what_no_recipe_fits_is_left_for_the_check(data):
    before = copy.deepcopy(data)
    assert with_recipe(data) == data == before


@pytest.mark.parametrize("backbone", ["CNN", {"CNN": {}}, {"CNN": None}], ids=str)
def test_recipe_leaves_its_input_alone(backbone):
    data = {"recipe": "paper", "backbone": backbone, "train": {"momentum": 0.5}}
    before = copy.deepcopy(data)
    assert with_recipe(data)["train"] == PAPER | {"momentum": 0.5}
    assert data == before


@EVERY_RECIPE
@EVERY_BACKBONE
def test_a_recipe_is_left_alone_by_the_configs_made_of_it(recipe, backbone):
    before = copy.deepcopy(RECIPES)
    config = Config(recipe=recipe, backbone=backbone, distortion="R", train={"steps": 3})
    config.as_dict()["train"]["step_at"].clear()
    assert before == RECIPES
