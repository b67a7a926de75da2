"""Recipes: the training settings a config starts from, one set for all cells of a backbone.

A config's own settings stand above its recipe, the recipe above the fields' defaults.
"""

from typing import Any

# Section 4.1 and A.4: "SGD, batch 256, base learning rate 0.01, 150k iterations, dropped every
# 50k by 10, no weight decay, no dropout". Momentum is the one setting not stated.
PAPER = {
    "steps": 150_000,
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "step",
    "step_at": [1 / 3, 2 / 3],
    "step_factor": 0.1,
    "precision": "float32",
}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"FCN": {"epochs": 40}, "CNN": {"epochs": 30}, "tutorial": {"epochs": 20}},
    "paper": {"FCN": PAPER, "CNN": PAPER, "tutorial": PAPER},
}
"""recipe -> backbone -> settings of the config's `train` section."""


def with_recipe(data: dict[str, Any]) -> dict[str, Any]:
    """Config data with its recipe's settings filled in where it has none of its own."""
    recipe = RECIPES.get(str(data.get("recipe", "default")), {})
    settings = recipe.get(str(data.get("backbone", "CNN")), {})
    own = data.get("train", {})
    if not isinstance(own, dict):
        return data  # not a section at all: the config's check says so
    if "epochs" in own or "steps" in own:  # one duration takes the place of the other
        settings = {key: value for key, value in settings.items() if key not in ("epochs", "steps")}
    return {**data, "train": {**settings, **own}}
