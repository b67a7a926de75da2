"""The chart of a table."""

from dataclasses import replace

from matplotlib.colors import to_rgb

from stn_train.runs.result import reference_results
from stn_train.table.chart import COLOURS, error_table
from stn_train.table.paper import TABLES
from stn_train.table.rows import table_rows, verdict

MNIST = TABLES["mnist"]


def test_each_column_has_its_cells_measured_and_published():
    rows = table_rows(reference_results(), MNIST)
    figure = error_table(rows, MNIST, "measured here")
    assert [axis.get_title() for axis in figure.axes] == list(MNIST.columns)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == MNIST.models
    for axis, column in zip(figure.axes, MNIST.columns, strict=True):
        shown = [row for row in rows if row.cell.distortion == column]
        diamonds = [line for line in axis.lines if line.get_marker() == "D"]
        means = [line for line in axis.lines if line.get_marker() == "o"]
        assert [line.get_xdata()[0] for line in diamonds] == [row.paper for row in shown]
        assert [line.get_xdata()[0] for line in means] == [row.mean for row in shown]
        numbers = [(text.get_text(), text.xy[0]) for text in axis.texts]
        assert numbers == [(f"{row.mean:.2f}", row.mean) for row in shown]
        assert [to_rgb(line.get_color()) for line in means] == [
            to_rgb(COLOURS[verdict(row, MNIST)]) for row in shown
        ]
    assert figure.get_supxlabel() == "measured here"


def test_a_table_without_results_or_published_values_is_drawn_too():
    one_column = replace(MNIST, columns=("RTS",), rows={("CNN", "Aff"): (None,)})
    rows = table_rows(reference_results(), one_column)
    figure = error_table(rows, one_column, "")
    assert [line.get_marker() for line in figure.axes[0].lines if line.get_marker() == "D"] == []
    figure.savefig("/dev/null", format="png")
    error_table([], MNIST, "").savefig("/dev/null", format="png")
