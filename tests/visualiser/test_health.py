"""The picture of a transformer's health: what it draws of runs, new and old, and what it says."""

import itertools
import json
import shutil

import pytest
import torch
from conftest import Finished
from untrained import parallel_network, run_of, some_digits, texts, untrained_run

from stn_train.errors import ConfigError
from stn_train.runs.directory import Run, load_run
from stn_train.tasks.examples import Examples
from stn_train.visualiser.health import health_page, history
from stn_train.visualiser.style import RIGHT, WRONG


def flat(figure) -> str:
    return " ".join(texts(figure).split())


def predict_always(run: Run, theta: list[float]) -> None:
    """Have the transformers of a run predict one theta for all images."""
    with torch.no_grad():
        for transformer in run.model.transformers.values():
            transformer.regression.weight.zero_()
            transformer.regression.bias.copy_(torch.tensor(theta))


def verdict_colours(figure) -> set[str]:
    head = figure.subfigs[0]
    return {text.get_color() for text in head.texts[1:]}


@pytest.mark.parametrize(
    ("theta", "told"),
    [
        ([1, 0, 9, 0, 1, 9], "makes everything black: 100 % of the points"),
        ([2.5, 0, 0, 0, 2.5, 0], "zooms out: it reads an area 2.5 times as wide"),
        ([0.01, 0, 0, 0, 0.01, 0], "has shrunk to a spot"),
        ([1, 0, 0, 0, 1, 0], "does not move: it does the same to every image"),
    ],
)
def test_what_is_the_matter_is_told_in_red(theta, told, tmp_path):
    once = {"model": {"st_iterations": 1}}
    run, test = untrained_run(tmp_path, distortion="R", transform="Aff", **once)
    predict_always(run, theta)
    figure = health_page(run, test)
    assert told in flat(figure)
    assert "What to change: " in flat(figure)
    assert verdict_colours(figure) == {WRONG}


def test_a_transformer_without_anything_to_undo_is_healthy(tmp_path):
    run, test = untrained_run(tmp_path, distortion="none", transform="Aff")
    figure = health_page(run, test)
    assert "The spatial transformer is healthy" in flat(figure)
    assert verdict_colours(figure) == {RIGHT}


def test_panels_show_the_records_of_the_run(finished: Finished, splits):
    run = load_run(finished.run.path)
    figure = health_page(run, splits.test)
    records = [each for each in finished.run.read_metrics() if each["kind"] == "transformer"]
    panels = figure.subfigs[1].axes
    outside, *_, gradient = panels
    points = outside.lines[0].get_xydata().tolist()
    assert [step for step, _ in points] == [10, 20]
    shares = [100 * record["outside_share"] for record in records]
    assert [share for _, share in points] == pytest.approx(shares)
    lines = {line.get_label(): line.get_ydata().tolist() for line in gradient.lines}
    for part in ("localisation", "classifier"):
        assert lines[part] == [record[f"{part}_gradient_norm"] for record in records]


def test_steps_of_six_digits_do_not_overlap(finished: Finished, splits):
    figure = health_page(load_run(finished.run.path), splits.test)
    panels = figure.subfigs[1].axes
    for axis in panels:
        axis.set_xlim(0, 154_500)
    figure.draw_without_rendering()
    for axis in panels:
        places = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
        shown = [label.get_window_extent() for step, label in places if 0 <= step <= 154_500]
        assert len(shown) >= 3
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_of_an_old_run_the_rest_is_measured(tiny, trained, splits):
    kept = trained(tiny(log={"snapshots": 3}))
    old = {"kind", "step", "pass", "outside_share", "theta_spread"}
    lines = []
    for record in kept.run.read_metrics():
        own = old if record["kind"] == "transformer" else record.keys()
        lines.append(json.dumps({key: record[key] for key in record if key in own}))
    kept.run.metrics.write_text("\n".join(lines) + "\n")
    run = load_run(kept.run.path)
    examples = Examples.for_test(run.config.task, splits.test, 0)
    records = history(run, examples)
    snapshots = [int(path.stem.rpartition("-")[2]) for path in kept.run.kept_snapshots()]
    assert [each["step"] for each in records] == sorted({*snapshots, 10, 20})
    assert [each["step"] for each in records if "scale" in each] == snapshots
    assert "localisation_gradient_norm" not in records[-1]
    health_page(run, splits.test)
    shutil.rmtree(kept.run.snapshots)
    kept.run.metrics.unlink()
    (alone,) = history(run, examples)
    assert alone.keys() >= {"step", "scale", "outside_share"}


def test_an_earlier_checkpoint_is_judged_as_of_its_step(finished, splits):
    run = load_run(finished.run.previous)
    assert run.step == 10
    records = history(run, Examples.for_test(run.config.task, splits.test, 0))
    assert [each["step"] for each in records] == [10]


def test_each_of_several_transformers_is_judged(tmp_path):
    run = run_of(tmp_path, parallel_network(), some_digits(), distortion="R")
    with torch.no_grad():
        run.model.transformers["transformer.1"].regression.bias[2] = 9.0
    figure = health_page(run, some_digits())
    assert "The transformer transformer.1 makes everything black" in flat(figure)
    assert "The transformer transformer.0 does not move" in flat(figure)


@pytest.mark.parametrize("choices", [{"task": "extruded"}, {"transform": "TPS"}], ids=str)
def test_volumes_and_splines_are_drawn(tmp_path, choices):
    run, test = untrained_run(tmp_path, distortion="none", backbone="FCN", **choices)
    health_page(run, test[:20])


def test_without_a_transformer_there_is_no_health(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R", transform="none")
    with pytest.raises(ConfigError, match="no spatial transformer"):
        health_page(run, test)
