"""The tables and charts of README and docs, written from the committed results."""

from collections.abc import Callable

from matplotlib.figure import Figure

from document_tables.choices import (
    calibration_table,
    levers_table,
    readings_table,
    short_readings_table,
    validation_table,
)
from document_tables.clusters import grid_table, ray_table
from document_tables.errors import (
    cells_table,
    error_table,
    paper_recipe_table,
    poses_table,
    recipes_table,
)
from document_tables.experiments import (
    addition_table,
    clutter_samples,
    clutter_table,
    colocalisation_table,
    deformable_table,
    layers_table,
    made_birds_table,
    volumes_table,
)
from document_tables.families import families_table, random_maps_chart, undoing_chart
from document_tables.reference import flags_table, settings_table
from document_tables.speed import numerics_table, speed_table, time_chart, time_table, waiting_table

TABLES = {
    "results": ("README.md", error_table),
    "speed": ("docs/speed.md", speed_table),
    "time": ("docs/speed.md", time_table),
    "numerics": ("docs/speed.md", numerics_table),
    "waiting": ("docs/speed.md", waiting_table),
    "flags": ("docs/reference.md", flags_table),
    "settings": ("docs/reference.md", settings_table),
    "cells": ("docs/results.md", cells_table),
    "paper recipe": ("docs/results.md", paper_recipe_table),
    "readings": ("docs/results.md", readings_table),
    "short readings": ("docs/results.md", short_readings_table),
    "recipes": ("docs/results.md", recipes_table),
    "poses": ("docs/results.md", poses_table),
    "addition": ("docs/experiments.md", addition_table),
    "clutter": ("docs/clutter.md", clutter_table),
    "made birds": ("docs/experiments.md", made_birds_table),
    "colocalisation": ("docs/experiments.md", colocalisation_table),
    "layers": ("docs/experiments.md", layers_table),
    "volumes": ("docs/experiments.md", volumes_table),
    "deformable": ("docs/experiments.md", deformable_table),
    "calibration": ("docs/calibration.md", calibration_table),
    "validation": ("docs/recipe.md", validation_table),
    "levers": ("docs/recipe.md", levers_table),
    "families": ("docs/transforms.md", families_table),
    "grid": ("docs/cluster.md", grid_table),
    "ray": ("docs/cluster.md", ray_table),
}
"""The parts of documents that are written here: name -> (document, what stands there)."""

CHARTS: dict[str, Callable[[], Figure]] = {
    "docs/time_to_result.png": time_chart,
    "docs/random_maps.png": random_maps_chart,
    "docs/undoing.png": undoing_chart,
    "docs/clutter.png": clutter_samples,
}
"""The pictures that are drawn here."""
