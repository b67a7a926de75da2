"""Recipes: the settings a config starts from, one set for all experiments of a task and a backbone.

A config's own settings take precedence over its recipe, and the recipe over the fields' defaults.
"""

from typing import Any

from stn_train.settings import name_and_settings

Sections = dict[str, dict[str, Any]]
"""Settings by section of the config; those under ``backbone`` are the backbone's own."""

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


# docs/recipe.md has the validation errors that these were chosen by.
DEFAULT_FCN: Sections = {
    "backbone": {"localisation_hidden": 160},
    "model": {
        "localisation_pool": 2,
        "st_iterations": 3,
        "st_output_px": 28,
        "st_pool": 1,
    },
    "train": {
        "epochs": 50,
        "optimizer": "muon",
        "learning_rate": 0.002,
        "weight_decay": 0.2,
        "label_smoothing": 0.1,
    },
}

DEFAULT_LOCALISATION = {"localisation_filters": 32, "localisation_features": 64}

DEFAULT_CNN: Sections = {
    "backbone": {"filters": [48, 128], **DEFAULT_LOCALISATION},
    "model": {"st_iterations": 2},
    "train": {
        "epochs": 32,
        "optimizer": "muon",
        "learning_rate": 0.004,
        "weight_decay": 0.2,
        "label_smoothing": 0.1,
    },
}

# A.6: "SGD, base learning rate 0.1, dropped by 10 after 10k, 20k and 25k of 30k iterations, weight
# decay 1e-5, the localisation network's learning rate 1e-4 of that". Not tuned here.
BIRDS = {
    "steps": 30_000,
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "localisation_learning_rate_scale": 1e-4,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "schedule": "step",
    "step_at": [1 / 3, 2 / 3, 5 / 6],
    "step_factor": 0.1,
}

RECIPES: dict[str, dict[str, Sections]] = {
    "default": {
        "FCN": DEFAULT_FCN,
        "CNN": DEFAULT_CNN,
        "tutorial": {"train": {"epochs": 20}},
        "strided": {**DEFAULT_CNN, "backbone": {"filters": [48, 128]}},
        "DCN": {**DEFAULT_CNN, "backbone": DEFAULT_LOCALISATION},
        "Inception": {"train": BIRDS},
    },
    "paper": {
        **{
            name: {"model": {"st_output_px": "input"}, "train": PAPER}
            for name in ("FCN", "CNN", "tutorial", "DCN", "strided")
        },
        "Inception": {"train": {**BIRDS, "precision": "float32"}},
    },
}
"""recipe -> backbone -> section -> settings. The fields' own defaults are the paper's networks."""

# Two channels of 42 px in, at most 400,000 weights in every network, as in A.1: "all networks
# have the same number of parameters". One look finds no digits; two do.
ADDITION_FCN: Sections = {
    "backbone": {"hidden": 104, "localisation_hidden": 88},
    "model": {"st_iterations": 2, "st_output_px": 21},
}

# Chosen on sets of training digits; docs/experiments.md tells what was tried.
COLOCALISATION: Sections = {
    "model": {"st_iterations": 1, "st_pool": 1},
    "train": {
        "epochs": 60,
        "batch_size": 20,
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "warmup": 0.1,
        "max_gradient_norm": 1.0,
        "validate_every": 10,
        "log_every": 10,
    },
    "evaluate": {"draws": 1},
}

TASK_RECIPES: dict[str, dict[str, dict[str, Sections]]] = {
    "addition": {"default": {"FCN": ADDITION_FCN}},
    "colocalisation": {"default": {"strided": COLOCALISATION}},
}
"""task -> recipe -> backbone -> section -> settings: what another task than classification takes
otherwise."""

DURATIONS = ("epochs", "steps")
"""Two ways to say how long to train: one takes the place of the other."""


def with_recipe(data: dict[str, Any]) -> dict[str, Any]:
    """Config data with its recipe's settings filled in where it has none of its own.

    What is not as a config should be is left as it is: the config's check says so.
    """
    try:
        backbone, own_backbone = name_and_settings(data.get("backbone", "CNN"))
        task, _ = name_and_settings(data.get("task", "classification"))
    except ValueError:
        return data
    sections = sections_of(str(data.get("recipe", "default")), backbone, task)
    filled = dict(data)
    for name, settings in sections.items():
        own = own_backbone if name == "backbone" else data.get(name, {})
        if not isinstance(own, dict):
            continue
        if any(own.get(key) is not None for key in DURATIONS):
            settings = {key: settings[key] for key in settings if key not in DURATIONS}
        merged = {**settings, **own}
        filled[name] = {backbone: merged} if name == "backbone" else merged
    return filled


def sections_of(recipe: str, backbone: str, task: str) -> Sections:
    """The settings of a recipe for a backbone and a task; none where there is no such recipe."""
    sections = RECIPES.get(recipe, {}).get(str(backbone), {})
    of_task = TASK_RECIPES.get(str(task), {}).get(recipe, {}).get(str(backbone), {})
    return {
        name: {**sections.get(name, {}), **of_task.get(name, {})} for name in sections | of_task
    }
