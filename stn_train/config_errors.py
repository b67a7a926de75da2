"""Errors in a config in the user's words: the place, the key, the value, and what is allowed."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stn_train.config import REGISTRIES, Config, chosen_in, present_layout
from stn_train.errors import ConfigError
from stn_train.models.placements import Placement

Key = tuple[str, ...]


DEFAULTS = Config()


class ConfigSource:
    """Where each key of the config data was written, and how, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.written: dict[Key, str] = {}

    def note(self, key: Key, place: str, written: str) -> None:
        """Note where a key stands, and how it was written."""
        self.places[key], self.written[key] = place, written

    def of(self, key: Key) -> str:
        """The file and line of a key, or of the section it would stand in."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)

    def as_written(self, key: Key) -> Key:
        """A key of the present layout as the user wrote it, perhaps in the former one."""
        former = {"distortion": "distort", "backbone": "model"}.get(key[0] if key else "")
        if former and len(key) > 1 and key not in self.places:
            written = (former, *key[2:])
            return written if written in self.places else key
        return key


def check(data: dict[str, Any], source: ConfigSource, problems: Sequence[str] = ()) -> Config:
    """The config that plain data describes; raises ConfigError, earlier problems included."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = [
            " ".join(describe(details, source, data).splitlines())  # a key may have line breaks
            for details in error.errors(include_url=False)
            if details["type"] != "invalid_key" or not problems  # told while parsing, with its line
        ]
        # Each once, in the order of the file's lines, then those of the command line.
        raise ConfigError(sorted(dict.fromkeys([*problems, *found]), key=line_number)) from None
    if problems:
        raise ConfigError(sorted(problems, key=line_number))
    return config


def line_number(problem: str) -> float:
    """The line that a problem names; those of the command line come last."""
    match = re.match(r"(?!--set ).*?:(\d+): ", problem)
    return int(match[1]) if match else math.inf


def describe(details: ErrorDetails, source: ConfigSource, data: dict[str, Any]) -> str:
    """One validation error as a message: the place, the key, the value, and what is allowed."""
    location = tuple(str(part) for part in details["loc"] if not isinstance(part, int))
    location = source.as_written(location)
    place, key = source.of(location), source.written.get(location, ".".join(location))
    got, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            known = known_keys(location[:-1], data)
            sectioned = {field: f"{section}.{field}" for section, field in fields_of_sections()}
            elsewhere = sectioned.get(key)
            hint = f" (did you mean {elsewhere}?)" if elsewhere else nearest(location[-1], known)
            hint = hint or f"; known here: {', '.join(known) or 'nothing'}"
            return f"{place}: unknown key {key}{hint}"
        case "literal_error":
            expected = context["expected"]
            choices = expected if isinstance(expected, str) else ", ".join(expected)
            if isinstance(got, dict) and len(got) == 1:
                (got,) = got
            hint = nearest(str(got), choices.replace("'", "").replace(" or ", ", ").split(", "))
            return f"{place}: {key} is {got!r}; it can be {choices}{hint}"
        case kind if kind in BOUNDS:
            bound = next(iter(context.values()))
            shown = bound if isinstance(bound, int) else f"{bound:g}"
            return f"{place}: {key} is {got!r}; it must be {BOUNDS[kind]} {shown}"
        case "missing" if isinstance(details["loc"][-1], str):
            return f"{place}: {key} is missing; it has no default"
        case "missing" | "too_long":  # the only list of a fixed length
            return f"{place}: {key} must be a list of 2, such as [64, 64]"
        case "canvas_px":
            name, _ = chosen_in(present_layout(data), "distortion")
            location = source.as_written(("distortion", name, "canvas_px"))
            key = source.written.get(location, ".".join(location))
            return f"{source.of(location)}: {key}{details['msg'].removeprefix('canvas_px')}"
        case "sizes":
            named = tuple(details["msg"].split()[0].split("."))
            return f"{source.of(named)}: {details['msg']}"
        case kind if kind in WANTED:
            hint = ""
            if isinstance(got, str) and is_number(got) and kind in ("int_type", "float_type"):
                value = int(float(got)) if float(got).is_integer() else float(got)
                number = yaml.safe_dump(value).split()[0]
                hint = f" (YAML reads {got} as text: write {number})"
            return f"{place}: {key} is {got!r:.80}; it must be {WANTED[kind]}{hint}"
        case _:
            return f"{place}: {key or 'the config'}: {details['msg']}"


BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
}
"""How a number is bounded, by the type of pydantic's error."""


WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "a text that is not empty",
    "bool_type": "true or false",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "tuple_type": "a list, such as [64, 64]",
    "dict_type": "a section of `key: value` lines",
}
"""What a value must be, by the type of pydantic's error."""


def fields_of_sections() -> list[Key]:
    """The keys of all sections: (section, key)."""
    sections = {name: getattr(DEFAULTS, name) for name in Config.model_fields}
    return [
        (name, field)
        for name, section in sections.items()
        if isinstance(section, BaseModel) and (name,) not in REGISTRIES
        for field in type(section).model_fields
    ]


def known_keys(section: Key, data: dict[str, Any]) -> list[str]:
    """The known keys of a section of the config; those of a choice depend on its name."""
    if section[:1] in (("distort",), ("model",)) and len(section) == 1:
        chosen = "distortion" if section == ("distort",) else "backbone"
        name, _ = chosen_in(present_layout(data), chosen)
        kind = REGISTRIES[chosen,].get(name) if isinstance(name, str) else None
        own = list(kind.model_fields) if kind else []
        return own if section == ("distort",) else [*type(DEFAULTS.model).model_fields, *own]
    registry = REGISTRIES.get(section[:-1])
    if registry is not None:
        return list(registry[section[-1]].model_fields)
    if section[:1] == ("transformers",):
        return list(Placement.model_fields) if len(section) == 2 else []
    settings: BaseModel = DEFAULTS
    for name in section:
        settings = getattr(settings, name)
    return [name for name in type(settings).model_fields if name != "given"]


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known name that was probably meant, or nothing."""
    lowered = {candidate.lower(): candidate for candidate in known}
    wanted = name.lower()
    matches = difflib.get_close_matches(wanted, lowered)
    if not matches:
        return ""
    ratios = {match: difflib.SequenceMatcher(None, match, wanted).ratio() for match in matches}
    alike = [match for match in matches if ratios[match] == ratios[matches[0]]]
    best = max(alike, key=lambda match: match[0] == wanted[0])  # CNN, not FCN, for CNM
    return f" (did you mean {lowered[best]}?)"


def is_number(text: str) -> bool:
    """Whether Python reads the text as a finite number."""
    try:
        return float(text) - float(text) == 0
    except ValueError:
        return False
