"""The base of every section of a config, and the choice of a plug-in by its name."""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, create_model
from pydantic_core import PydanticCustomError


class Settings(BaseModel):
    """Frozen settings without unknown keys or silent conversions.

    The documentation of a field stands under it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class Choice:
    """A field that holds settings of one class of a registry: ``Annotated[Base, *chosen(...)]``.

    In YAML it is the class's name in the registry, or ``{name: {settings}}``.
    """

    def __init__(self, registry: Mapping[str, type[Settings]], none: bool) -> None:
        self.registry, self.none = registry, none

    def names(self) -> list[str]:
        """The names that can be chosen now; tests and users add to registries."""
        return [*self.registry, *(["none"] if self.none else [])]

    def validate(self, value: Any) -> Settings | None:
        """The settings that a config names; raises PydanticCustomError or ValidationError."""
        if self.none and value is None:
            return None
        if isinstance(value, Settings) and type(value) in self.registry.values():
            return value
        try:
            name, settings = name_and_settings(value)
        except (TypeError, ValueError):
            name, settings = value, {}
        if self.none and name == "none":
            if settings:
                raise PydanticCustomError("no_settings", "none has no settings")
            return None
        if not isinstance(name, str) or name not in self.registry:
            # The type and context of pydantic's own error for a closed choice.
            raise PydanticCustomError(
                "literal_error", "one of {expected}", {"expected": self.names()}
            )
        holder = holder_of(name, self.registry[name])
        chosen: Settings = getattr(holder.model_validate({name: settings}), name)
        return chosen

    def dump(self, value: Settings | None) -> Any:
        """How a config says it: the name alone where there is nothing to set."""
        name = name_of(self.registry, value)
        settings = value.model_dump(mode="json") if value is not None else {}
        return {name: settings} if settings else name


def chosen(
    registry: Mapping[str, type[Settings]], none: bool = False
) -> tuple[Choice, PlainValidator, PlainSerializer]:
    """The annotations of a field that is chosen from a registry.

    none: the name ``none`` stands for None.
    """
    choice = Choice(registry, none)
    return choice, PlainValidator(choice.validate), PlainSerializer(choice.dump)


class Holder(Settings):
    """The base of settings with one field that are made while the program runs."""

    model_config = ConfigDict(use_attribute_docstrings=False)  # they have no source to read


@functools.cache
def holder_of(name: str, kind: type[Settings]) -> type[Holder]:
    """Settings with one field: errors in ``{name: {settings}}`` then say where they are."""
    return create_model(name, __base__=Holder, **{name: (kind, ...)})  # type: ignore[call-overload, no-any-return]


def name_of(registry: Mapping[str, type[Settings]], value: Settings | None) -> str:
    """The name that settings are registered under; ``none`` for None."""
    if value is None:
        return "none"
    return next(name for name, kind in registry.items() if kind is type(value))


def name_and_settings(value: Any) -> tuple[str, dict[str, Any]]:
    """The two parts of ``name`` or ``{name: {settings}}``; raises ValueError for anything else."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        ((name, settings),) = value.items()
        return name, {} if settings is None else settings
    raise ValueError(f"a choice is a name or {{name: {{settings}}}}, not {value!r}")
