"""Every flag and every setting, as the program has them."""

import json
import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, get_args

from pydantic import ValidationError
from typer.main import get_command

from stn_train.cli.export import run_demo, run_export
from stn_train.cli.model import run_eval, run_visualize
from stn_train.cli.table import run_table
from stn_train.cli.train import run_train
from stn_train.config import Config
from stn_train.models.placements import Placement
from stn_train.settings import Choice, Settings, name_and_settings
from stn_train.table.rows import markdown_lines


def flags_table() -> str:
    """The commands with their arguments and flags, in Markdown, as --help tells them."""
    parts = []
    for name, command in commands().items():
        lines = [("flag", "meaning"), *map(flag_line, command.params)]
        flags = markdown_lines([line for line in lines if "completion" not in line[0]])
        parts.append(f"### {name}\n\n{command.help}\n\n{flags}")
    return "\n".join(parts)


def flag_line(parameter: Any) -> tuple[str, str]:
    """An argument or a flag of a command, and what it is for."""
    flags = [flag for flag in parameter.opts if flag.startswith("-")]
    text = " ".join(parameter.help.split()).replace("<", "\\<").replace("|", "\\|")
    if isinstance(parameter.default, StrEnum):
        text += f" One of {', '.join(f'`{each}`' for each in type(parameter.default))}."
    return ", ".join(f"`{flag}`" for flag in flags or [parameter.metavar or parameter.name]), text


def settings_table() -> str:
    """Every key of a config: its default, what it can be and what it means, in Markdown."""
    choices = ({"backbone": "FCN"}, {"backbone": "CNN"}, {"backbone": "CNN", "recipe": "paper"})
    configs = [Config.model_validate(choice) for choice in choices]
    sections = [name for name in own_fields(Config) if is_section(Config, name)]
    others = [name for name in own_fields(Config) if name not in sections]
    others.sort(key=lambda name: choice_of(Config, name) is None)  # what is chosen comes first
    lines = [("key", "FCN", "CNN", "paper", "allowed", "meaning")]
    lines += [setting_line("", Config, name, *configs) for name in others]
    for name in sections:
        values = [getattr(config, name) for config in configs]
        kind = type(values[0])
        lines += [setting_line(f"{name}.", kind, key, *values) for key in kind.model_fields]
    return "\n".join([markdown_lines(lines), *plug_in_tables()])


def plug_in_tables() -> Iterator[str]:
    """For each name that a config can choose, the settings that come with it, in Markdown."""
    for key, choice in choices_in(Config):
        for name, kind in choice.registry.items():
            if not kind.model_fields:
                continue
            default, paper = (chosen_settings(key, name, recipe) for recipe in ("default", "paper"))
            by_recipe = default != paper
            lines = [("key", *(("default", "paper") if by_recipe else ("default",)))]
            lines[0] += ("allowed", "meaning")
            for field in kind.model_fields:
                values = [default, paper] if by_recipe else [default]
                lines.append(setting_line(f"{key}.{name}.", kind, field, *values))
            yield f"With `{yaml_form(key, name)}`:\n\n{markdown_lines(lines)}"
    lines = [("key", "default", "allowed", "meaning")]
    for field in Placement.model_fields:
        lines.append(setting_line("transformers.PLACE.", Placement, field, Placement()))
    yield f"At each place of `transformers: {{PLACE: {{...}}}}`:\n\n{markdown_lines(lines)}"


def own_fields(kind: type[Settings]) -> list[str]:
    """The fields that a user sets; `given` is written by the program."""
    return [name for name in kind.model_fields if name != "given"]


def choice_of(kind: type[Settings], name: str) -> Choice | None:
    """What a field chooses from, if it is a choice, perhaps of null too."""
    field = kind.model_fields[name]
    metadata = list(field.metadata)
    for part in get_args(field.annotation)[:1]:
        metadata += getattr(part, "__metadata__", ())
    return next((each for each in metadata if isinstance(each, Choice)), None)


def is_section(kind: type[Settings], name: str) -> bool:
    """Whether a field is a section of settings."""
    annotation = kind.model_fields[name].annotation
    is_settings = isinstance(annotation, type) and issubclass(annotation, Settings)
    return is_settings and choice_of(kind, name) is None


def choices_in(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, Choice]]:
    """The keys under which a plug-in is chosen, and what each can be."""
    for name in own_fields(kind):
        choice = choice_of(kind, name)
        if choice is not None:
            yield f"{prefix}{name}", choice
        elif is_section(kind, name):
            section: Any = kind.model_fields[name].annotation
            yield from choices_in(section, f"{prefix}{name}.")


def chosen_settings(key: str, name: str, recipe: str) -> Settings | None:
    """The settings of a plug-in by a recipe; None if it has some without a default."""
    data: Any = name
    for part in reversed(key.split(".")):
        data = {part: data}
    try:
        settings: Any = Config.model_validate({**data, "recipe": recipe})
    except ValidationError:
        return None
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def yaml_form(key: str, name: str) -> str:
    """How a config says which settings of a plug-in it wants."""
    *sections, last = key.split(".")
    text = f"{last}: {{{name}: {{...}}}}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    return text


def setting_line(
    prefix: str, kind: type[Settings], name: str, *settings: Settings | None
) -> tuple[str, ...]:
    """A key, its value in each of these settings, what it can be, and its documentation.

    Where there are no settings to show, the value is the field's default.
    """
    field, choice = kind.model_fields[name], choice_of(kind, name)
    text = " ".join((field.description or "").split())
    shown = []
    for each in settings:
        if each is None:
            shown.append("required" if field.is_required() else written(field.default))
        else:
            value = each.model_dump(mode="json")[name]
            if choice is not None and value is not None:
                value = name_and_settings(value)[0]
            shown.append(written(value))
    if choice is not None:
        can_be = ", ".join(choice.names())
    else:
        can_be = allowed(kind.model_json_schema()["properties"][name])
    return f"`{prefix}{name}`", *shown, can_be, text.replace("|", "\\|")


def allowed(schema: dict[str, Any]) -> str:
    """What a setting can be, by its JSON schema, where that says more than the kind of value."""
    kind = schema.get("anyOf", [schema])[0]  # the other is null
    if kind.get("type") == "boolean":
        return "true, false"
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
    high, below = kind.get("maximum", math.inf), kind.get("exclusiveMaximum", math.inf)
    if above is not None:
        ends = {", below": below, ", at most": high}
        return f"above {above}" + "".join(
            f"{text} {end}" for text, end in ends.items() if end < WITHOUT_BOUND
        )
    if low is None:
        return ""
    if high < WITHOUT_BOUND:
        return f"{low} to {high}"
    return f"{low} to below {below}" if below < WITHOUT_BOUND else f"from {low}"


WITHOUT_BOUND = 1e18
"""Larger bounds are what a number can hold."""


def written(value: Any) -> str:
    """A setting's value as a config has it: floats shortened, null left out of sections."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        given = (f"{key}: {written(each)}" for key, each in value.items() if each is not None)
        return f"{{{', '.join(given)}}}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def commands() -> dict[str, Any]:
    """Every command by the name it is called with; click's object of each."""
    single = {
        "stn-train": run_train,
        "stn-eval": run_eval,
        "stn-visualize": run_visualize,
        "stn-export": run_export,
        "stn-demo": run_demo,
    }
    found = {name: get_command(app) for name, app in single.items()}
    below = get_command(run_table).commands
    return found | {f"stn-table {name}": command for name, command in below.items()}
