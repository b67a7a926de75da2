"""Charts: that they show the numbers they are given."""

import pytest
import torch
from test_visualiser import fresh_run, texts

from stn_train import charts, visualiser
from stn_train.data import test_set as fixed_test_set
from stn_train.errors import ConfigError
from stn_train.evaluator import predict

METRICS = [
    {"kind": "train", "pass": 0.5, "loss": 2.0},
    {"kind": "train", "pass": 1.0, "loss": 0.5},
]
VALIDATED = [*METRICS, {"kind": "validation", "pass": 1.0, "validation_error_percent": 7.0}]


def test_curves_plot_what_was_logged(tmp_path):
    figure = charts.learning_curves("a run", {"a run": METRICS})
    (loss,) = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[0.5, 2.0], [1.0, 0.5]]
    assert "at the end 0.5" in loss.get_title()
    path = visualiser.save(figure, tmp_path / "made" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_validation_has_a_panel_where_it_was_measured():
    figure = charts.learning_curves("two runs", {"one": METRICS, "other": VALIDATED})
    loss, validation = figure.axes
    assert len(loss.lines) == 2
    assert validation.get_ylabel() == "validation error (%)"
    assert validation.lines[0].get_xydata().tolist() == [[1.0, 7.0]]
    assert {"one", "other"} <= set(texts(figure).splitlines())


def test_a_run_that_logged_nothing_says_so():
    assert "nothing yet" in texts(charts.learning_curves("a run", {"a run": []}))


def test_class_errors_count_each_class(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R")
    predictions = predict(run.model, fixed_test_set(test, run.config.distort, 0)).argmax(1)
    bars, table = charts.class_errors(run, test).axes
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars.patches}
    for digit in range(10):
        own = predictions[test.labels == digit]
        assert heights[digit] == pytest.approx(100 * float((own != digit).float().mean()))
    shown = sum(int(text.get_text()) for text in table.texts)
    assert shown == int((predictions != test.labels).sum())


def test_poses_of_an_identity_are_those_of_the_distortion(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R", transform="Aff")
    figure = charts.poses_undone(run, test)
    above, below = figure.axes
    points = torch.as_tensor(above.collections[0].get_offsets().data)
    assert points[:, 0].std() > 40  # uniform in 90 degrees either way
    assert float(points[:, 1].abs().max()) < 1e-3  # it takes all for upright
    assert "angle" in above.get_title()
    before, after = below.get_title().split(" by the distortion, ")
    assert before.removeprefix("spread ") == after.split(" left")[0]


def test_poses_need_a_transformer(tmp_path):
    run, test = fresh_run(tmp_path, distortion="R", transform="none")
    with pytest.raises(ConfigError, match="no spatial transformer"):
        charts.poses_undone(run, test)
