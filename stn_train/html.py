"""HTML pages from templates."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(package: str, name: str, **filters: Callable[..., Any]) -> Template:
    """A template that lies in one of our packages, with filters of its own.

    What it shows is escaped; a name that it is not given is an error.
    """
    environment = Environment(
        loader=PackageLoader(f"stn_train.{package}", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(name)
