"""How Sphinx builds the documentation: `sphinx-build -W docs site`."""

from pathlib import Path

from sphinx.application import Sphinx

from stn_train.cli.export import SHOWN
from stn_train.cli.options import let_threads_sleep
from stn_train.demo.page import save_page
from stn_train.runs.directory import load_run

project = "stn_train"
copyright = "2026, The stn_train authors"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_nb"]

html_theme = "furo"
html_title = "stn_train"
html_theme_options = {"top_of_page_buttons": []}

myst_heading_anchors = 3
nb_execution_mode = "force"
"""The notebook is run anew: what it shows is what the program does now."""
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds for a cell, on a slow machine that is busy with other things
nb_merge_streams = True

default_role = "py:obj"  # `Name` in a docstring: a link where there is something of that name
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}

suppress_warnings = ["myst.xref_missing"]  # links to files of the repository


def setup(app: Sphinx) -> None:
    """Have the live page made after the others, which docs/live.md shows.

    The notebook trains in a process of its own, whose threads sleep as a command's do.
    """
    let_threads_sleep()
    app.connect("build-finished", write_live_page)


def write_live_page(app: Sphinx, error: Exception | None) -> None:
    """Write the live page of the model that ships beside the pages of HTML."""
    if error is None and app.builder.format == "html":
        run = load_run(SHOWN)
        save_page(run, run.config.load_splits().test, Path(app.outdir) / "demo.html")
