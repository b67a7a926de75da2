"""Charts: that they show the numbers they are given."""

import pytest
import torch
from untrained import (
    Faded,
    WithoutClasses,
    parallel_network,
    run_of,
    some_digits,
    texts,
    untrained_run,
)

from stn_train.config import Config
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import Images
from stn_train.errors import ConfigError
from stn_train.evaluator import predict
from stn_train.tasks import TASKS
from stn_train.tasks.examples import Examples
from stn_train.visualiser import charts, style

METRICS = [
    {"kind": "train", "pass": 0.5, "loss": 2.0},
    {"kind": "train", "pass": 1.0, "loss": 0.5},
]
VALIDATED = [*METRICS, {"kind": "validation", "pass": 1.0, "validation_error_percent": 7.0}]
OVERLAPPED = [{"kind": "validation", "pass": 2.0, "step": 9, "validation_overlap": 0.4}]


def test_curves_plot_what_was_logged(tmp_path):
    figure = charts.learning_curves("a run", {"a run": METRICS})
    (loss,) = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[0.5, 2.0], [1.0, 0.5]]
    assert "at the end 0.5" in loss.get_title()
    path = style.save(figure, tmp_path / "made" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_validation_has_a_panel_where_it_was_measured():
    figure = charts.learning_curves("two runs", {"one": METRICS, "other": VALIDATED})
    loss, validation = figure.axes
    assert len(loss.lines) == 2
    assert validation.get_ylabel() == "validation error (%)"
    assert validation.lines[0].get_xydata().tolist() == [[1.0, 7.0]]
    assert {"one", "other"} <= set(texts(figure).splitlines())


def test_each_measure_of_validation_has_a_panel_of_its_own():
    figure = charts.learning_curves("two runs", {"one": VALIDATED, "other": OVERLAPPED})
    _, error, overlap = figure.axes
    assert (error.get_ylabel(), overlap.get_ylabel()) == (
        "validation error (%)",
        "validation overlap",
    )
    assert overlap.lines[0].get_xydata().tolist() == [[2.0, 0.4]]
    alone = charts.learning_curves("a run", {"a run": OVERLAPPED})
    assert [axis.get_ylabel() for axis in alone.axes] == ["validation overlap"]


def test_validation_curve_is_of_the_measure_of_the_task(finished):
    records = finished.run.read_metrics()
    (_, validation) = charts.curves_in(records)
    assert validation.field == f"validation_{finished.config.task.measure.key}"


def test_a_run_that_logged_nothing_says_so():
    assert "nothing yet" in texts(charts.learning_curves("a run", {"a run": []}))


def test_class_errors_count_each_class(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R")
    examples = Examples.for_test(run.config.task, test, 0)
    outputs, _ = predict(run.model, examples)
    predictions = outputs.argmax(1)
    bars, table = charts.class_errors(run, test).axes
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars.patches}
    for number in range(len(test.classes)):
        own = predictions[test.labels == number]
        assert heights[number] == pytest.approx(100 * float((own != number).float().mean()))
    counted = sum(int(text.get_text()) for text in table.texts)
    assert counted == int((predictions != test.labels).sum())


def test_class_errors_name_the_classes(tmp_path):
    digits, names = some_digits(), tuple("abcdefghij")
    test = Images(digits.pixels, digits.labels, names)
    run, _ = untrained_run(tmp_path, distortion="R")
    bars, table = charts.class_errors(run._replace(format=test.format), test).axes
    for labels in (bars.get_xticklabels(), table.get_xticklabels(), table.get_yticklabels()):
        assert tuple(label.get_text() for label in labels) == names
    assert bars.get_xlabel() == "true class"


def test_class_errors_need_classes(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "without", WithoutClasses)
    run, test = untrained_run(tmp_path, distortion="R", task="without")
    with pytest.raises(ConfigError, match="no classes"):
        charts.class_errors(run, test)


def test_poses_of_an_identity_are_those_of_the_distortion(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R", transform="Aff")
    figure = charts.poses_undone(run, test)
    above, below = figure.axes
    points = torch.as_tensor(above.collections[0].get_offsets().data)
    assert points[:, 0].std() > 40  # uniform in 90 degrees either way
    assert float(points[:, 1].abs().max()) < 1e-3  # it takes all for upright
    assert "angle" in above.get_title()
    before, after = below.get_title().split(" by the distortion, ")
    assert before.removeprefix("spread ") == after.split(" left")[0]


def test_poses_need_a_transformer(tmp_path):
    run, test = untrained_run(tmp_path, distortion="R", transform="none")
    with pytest.raises(ConfigError, match="no spatial transformer"):
        charts.poses_undone(run, test)


def test_poses_need_a_single_transformer(tmp_path):
    run = run_of(tmp_path, parallel_network(), some_digits(), distortion="R")
    with pytest.raises(ConfigError, match=r"single.* transformer\.0, transformer\.1"):
        charts.poses_undone(run, some_digits())


def test_poses_need_a_map_of_the_plane(tmp_path, monkeypatch):
    monkeypatch.setitem(DISTORTIONS, "faded", Faded)
    run, test = untrained_run(tmp_path, distortion="faded")
    with pytest.raises(ConfigError, match="map of the plane"):
        charts.poses_undone(run, test)


def test_a_run_has_the_pictures_that_can_be_drawn_of_it(monkeypatch):
    monkeypatch.setitem(DISTORTIONS, "faded", Faded)
    monkeypatch.setitem(TASKS, "without", WithoutClasses)

    def missing(**choices) -> set[str]:
        return charts.PICTURES.keys() - charts.pictures_of(Config.model_validate(choices))

    asked_for = {"health"}
    assert missing() == asked_for | {"volumes"}
    assert missing(transform="none") == asked_for | {"volumes", "poses"}
    assert missing(distortion="faded") == asked_for | {"volumes", "poses"}
    assert missing(task="without") == asked_for | {"volumes", "classes"}
    assert missing(task="extruded") == asked_for | {"poses"}
