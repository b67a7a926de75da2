"""The health of spatial transformers: what they did over the training, and what is the matter.

Returns a matplotlib Figure that nothing else refers to; `style.save` writes it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stn_train.data.images import Images
from stn_train.diagnosis import (
    OUTSIDE_SHARE,
    SPOT_SCALE,
    STILL,
    Circumstances,
    Finding,
    circumstances,
    judge,
    of_transformer,
    watched,
)
from stn_train.errors import ConfigError
from stn_train.runs.directory import Run, load_run
from stn_train.tasks.examples import WATCHED, Examples
from stn_train.visualiser.pages import draw_example, inspect, one_of_each
from stn_train.visualiser.style import GREY, RIGHT, WRONG

PANELS_A_ROW = 12
"""Inputs and outputs in the row of examples."""

COLOURS = ("tab:blue", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")
"""Of a network's transformers, in turn."""

WIDTH_INCHES = 11
LINE_INCHES = 0.21
LETTERS = 118
"""Of a line of the verdict: its height, and how many letters it has."""

MAX_LINEAR = 4
"""A scale or a shift above this is drawn on a logarithmic axis."""

STEP_INTERVALS = 4
"""At most this many intervals between ticks on the axis of steps: labels of six digits fit."""

NO_GRADIENT = 1e-6
"""Where a norm of zero is drawn, on an axis that has none."""

Record = dict[str, Any]


class Band(NamedTuple):
    """A number that is drawn over the steps, with its spread over the images where it has one."""

    title: str
    key: str
    spread: str | None
    label: str
    """Of the vertical axis."""
    factor: float = 1.0
    """What the number is multiplied by."""


BANDS = (
    Band("outside the image", "outside_share", None, "% of the points read", 100),
    Band("scale: the width of the area read", "scale", "scale_spread", "of the image's width"),
    Band("angle", "angle_deg", "angle_spread_deg", "degrees, counter-clockwise"),
    Band("shift", "shift", "shift_spread", "from the middle; 1: the edge"),
    Band("spread of theta over images", "theta_spread", None, "standard deviation"),
)


def health_page(run: Run, test: Images) -> Figure:
    """What each spatial transformer did over the training, some examples, and a verdict.

    Old runs recorded less: what is missing is measured on their snapshots and on the model. Raises
    ConfigError if there is no spatial transformer.
    """
    if not run.model.transformers:
        raise ConfigError([f"{run.config.title} has no spatial transformer to be healthy"])
    examples = Examples.for_test(run.config.task, test[:WATCHED], 0)
    records = history(run, examples)
    given = surroundings(run, examples)
    verdicts = []
    for name, own in given.items():
        finding = judge(of_transformer(records[-1], name), own)
        verdicts += [(line, finding) for line in sentences(run, name, finding)]
    heights = [0.75 + LINE_INCHES * len(verdicts), 5.6, 1.3]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), dpi=110)
    parts = figure.subfigures(3, 1, squeeze=False, height_ratios=heights)
    head, body, foot = parts[:, 0]
    heading = f"{run.config.title}: is the spatial transformer healthy?"
    place = 1 - 0.3 / heights[0]
    head.text(0.5, place, heading, ha="center", va="center", fontsize=13, weight="bold")
    for number, (line, finding) in enumerate(verdicts):
        place = 1 - (0.65 + LINE_INCHES * number) / heights[0]
        colour = RIGHT if finding.healthy else WRONG
        head.text(0.5, place, line, ha="center", va="center", fontsize=10.5, color=colour)
    draw_panels(body, run, records, next(iter(given.values())))
    draw_examples(foot, run, test)
    return figure


def surroundings(run: Run, examples: Examples) -> dict[str, Circumstances]:
    """What each transformer has to undo. Of several none has to turn: another may do it."""
    rate_scale = run.config.train.localisation_learning_rate_scale
    found = {
        name: circumstances(examples, each, rate_scale)
        for name, each in run.model.transformers.items()
    }
    if len(found) == 1:
        return found
    return {name: given._replace(turned_deg=0.0) for name, given in found.items()}


def history(run: Run, examples: Examples) -> list[Record]:
    """The records of the transformers up to the step of the model, in order.

    The last is of that step: as it was recorded or, if it was not, measured on the examples.
    """
    records = [
        record
        for record in (run.directory.read_metrics() if run.directory.metrics.exists() else [])
        if record["kind"] == "transformer" and record["step"] <= run.step
    ]
    newest = records[-1] if records else {}
    if newest.get("step") == run.step and "scale" in newest:
        return records
    norms = {key: value for key, value in newest.items() if "gradient_norm" in key}
    if not any("scale" in record for record in records):
        steps = {record["step"]: record for record in records}
        for path in run.directory.kept_snapshots():
            snapshot = load_run(path)
            if snapshot.step < run.step:
                steps[snapshot.step] = measured(snapshot, examples)
        records = [steps[step] for step in sorted(steps)]
    before = [record for record in records if record["step"] < run.step]
    return [*before, measured(run, examples) | norms]


@torch.inference_mode()
def measured(run: Run, examples: Examples) -> Record:
    """What a model's transformers do to examples, as a record of metrics.jsonl has it."""
    warps = run.model.trace(examples.batch(slice(None)).inputs).warps
    return {"step": run.step, **watched(warps, run.model)}


def sentences(run: Run, name: str, finding: Finding) -> list[str]:
    """A verdict in words, in lines."""
    which = f"transformer {name}" if len(run.model.transformers) > 1 else "spatial transformer"
    lines = textwrap.wrap(f"The {which} {finding.told}.", LETTERS)
    if finding.advice:
        lines += textwrap.wrap(
            f"What to change: {finding.advice}.", LETTERS, break_on_hyphens=False
        )
    return lines


def draw_panels(place: Any, run: Run, records: Sequence[Record], given: Circumstances) -> None:
    """The numbers over the steps; dashed in red the bounds of what is healthy."""
    names = [*run.model.transformers]
    panels = place.subplots(2, 3).flatten()
    place.subplots_adjust(0.07, 0.09, 0.98, 0.93, wspace=0.27, hspace=0.42)
    own = {name: [of_transformer(record, name) for record in records] for name in names}
    for axis, band in zip(panels, BANDS, strict=False):
        for name, colour in zip(names, COLOURS * len(names), strict=False):
            draw_band(axis, band, own[name], colour, name if len(names) > 1 else None)
        axis.set_title(band.title, fontsize=10)
        axis.set_ylabel(band.label, fontsize=8)
    outside, scale, angle, shift, theta, gradient = panels
    outside.set_ylim(-3, 103)
    bound(outside, 100 * OUTSIDE_SHARE)
    scale.axhline(1, color=GREY, linewidth=0.7)
    bound(scale, SPOT_SCALE)
    if given.turned_deg:
        for side in (-1, 1):
            angle.axhline(side * given.turned_deg, color=GREY, linewidth=0.9, linestyle=":")
        angle.set_title(f"angle; dotted: that of the images, ± {given.turned_deg:.0f}°", size=10)
    bound(theta, STILL)
    theta.set_yscale("log")
    for axis in (scale, shift):
        if axis.dataLim.y1 > MAX_LINEAR:
            axis.set_yscale("log")
    draw_gradients(gradient, own)
    if len(names) > 1:
        outside.legend(fontsize=7)
    for axis in panels:
        axis.grid(alpha=0.3)
        axis.tick_params(which="both", labelsize=8)
        axis.set_xlabel("step", fontsize=8)
        axis.set_xlim(0, max(run.step, 1) * 1.03)
        axis.xaxis.set_major_locator(MaxNLocator(STEP_INTERVALS, integer=True))
        if not axis.collections and not axis.lines:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")


def draw_band(
    axis: Axes, band: Band, records: Sequence[Mapping[str, Any]], colour: str, name: str | None
) -> None:
    """A number over the steps, shaded as far as it spreads over the images."""
    known = [record for record in records if band.key in record]
    steps = [record["step"] for record in known]
    values = [band.factor * record[band.key] for record in known]
    if not known:
        return
    axis.plot(steps, values, marker="." if len(steps) < 40 else "", color=colour, label=name)
    if band.spread is not None:
        spreads = [band.factor * record[band.spread] for record in known]
        if len(known) == 1:
            axis.errorbar(steps, values, spreads, color=colour, capsize=3)
        low = [value - spread for value, spread in zip(values, spreads, strict=True)]
        high = [value + spread for value, spread in zip(values, spreads, strict=True)]
        axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    if len(known) < len(records):
        told = "earlier: not recorded"
        axis.text(0.04, 0.9, told, transform=axis.transAxes, fontsize=8, color=GREY)


def draw_gradients(axis: Axes, own: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Norms of the gradient of each localisation network and of the classifier."""
    axis.set_title("norm of the gradient", fontsize=10)
    parts = {
        f"localisation {name}" if len(own) > 1 else "localisation": (records, "localisation")
        for name, records in own.items()
    }
    parts["classifier"] = (next(iter(own.values())), "classifier")
    for (label, (records, part)), colour in zip(
        parts.items(), [*COLOURS[: len(own)], "black"], strict=False
    ):
        points = [
            (record["step"], max(record[f"{part}_gradient_norm"], NO_GRADIENT))
            for record in records
            if f"{part}_gradient_norm" in record
        ]
        if points:
            marker = "." if len(points) < 40 else ""
            axis.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
    if axis.lines:
        axis.set_yscale("log")
        axis.legend(fontsize=7)


def bound(axis: Axes, value: float) -> None:
    """A bound of what is healthy."""
    axis.axhline(value, color=WRONG, linewidth=0.9, linestyle="--")


def draw_examples(place: Any, run: Run, test: Images) -> None:
    """A row of test images with their grids, each before what the classifier sees."""
    examples = Examples.for_test(run.config.task, test, 0)
    count = max(1, PANELS_A_ROW // (1 + len(run.model.transformers)))
    inspected = inspect(run, examples, one_of_each(test)[:count])
    shown = len(inspected.inputs)
    places = place.subfigures(1, shown, squeeze=False)[0]
    for number, each in enumerate(places):
        draw_example(each, inspected, number, WIDTH_INCHES / shown)
