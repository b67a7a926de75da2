"""How Sphinx builds the documentation: `sphinx-build -W docs site`."""

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
nb_execution_timeout = 300
nb_merge_streams = True

default_role = "py:obj"  # `Name` in a docstring: a link where there is something of that name
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}

suppress_warnings = ["myst.xref_missing"]  # links to files of the repository
