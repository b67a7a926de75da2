"""HTML pages from templates."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(wing: str, name: str, **filters: Callable[..., Any]) -> Template:
    """A template that lies in a wing of the package, with filters of its own.

    What it shows is escaped; a name that it is not given is an error.
    """
    environment = Environment(
        loader=PackageLoader(f"stn_train.{wing}", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(name)
